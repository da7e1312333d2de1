"""`speech_folder:DIR`: any folder with a manifest.jsonl is a corpus."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import builder, emotions, label_map, persons, shard_cache
from mser_jax.corpora.build_report import BuildReport
from mser_jax.corpora.folder import content
from mser_jax.corpora.folder.files import Folder
from mser_jax.corpora.folder.manifest import EXPECTED, MANIFEST, ManifestRow, default_corpus, read_manifest

_OUTSIDE = "?outside="


@dataclasses.dataclass(eq=False)
class SpeechFolderConfig(tfds.core.BuilderConfig):
    """TFDS config of one folder: its name carries the fingerprint: a changed folder is another data set.

    folder: absolute, links followed. outside: the folder elsewhere whose recordings the manifest may name, or "".
    states_corpus: whether every line says which corpus it is of.
    """

    folder: str = ""
    outside: str = ""
    states_corpus: bool = True


class SpeechFolder(builder.CorpusBuilder):
    """Recordings and labels as listed in a manifest."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "A folder of recordings with a manifest."

    @classmethod
    def from_argument(cls, argument: str, data_dir: str = "") -> SpeechFolder:
        """Builder for the folder `argument`; "DIR?outside=ELSEWHERE" lets its manifest name recordings below ELSEWHERE.

        Reads the manifest, and of the recordings those that were written since they were last read: a change in either
        gives another fingerprint and so another build.

        Raises:
          FileNotFoundError: no such folder, or no manifest in it.
          ValueError: no folder given, or a manifest line that cannot be used (named).
          OSError: a recording that is there cannot be read.
        """
        given, _, outside = argument.partition(_OUTSIDE)
        if not given:
            raise ValueError(f"corpus 'speech_folder' needs a folder: speech_folder:DIR. {EXPECTED}")
        rows, folder = read_manifest(given, outside), Folder(given).path
        corpus = default_corpus(folder)
        place = epath.Path(data_dir or builder.default_data_dir()) / cls.name
        # The corpus is in it as well: names of folders that differ in other characters have the same slug.
        made_of = f"{_fingerprint(rows, _digests(rows, folder, place), label_map.in_folder(folder))} {corpus}"
        config = SpeechFolderConfig(
            name=f"{_slug(corpus)}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}",
            version=cls.VERSION,
            folder=os.fspath(folder),
            outside=outside,
            states_corpus=all(row.fields.get("corpus") for row in rows),
        )
        return cls(config=config, data_dir=data_dir or None)

    @property
    def short_name(self) -> str:
        """The folder's name and fingerprint: two folders may be in one mix."""
        return self.builder_config.name

    @property
    def place(self) -> str:
        """See CorpusBuilder.place."""
        return self.builder_config.folder

    @property
    def own_corpus(self) -> str:
        """See CorpusBuilder.own_corpus."""
        return "" if self.builder_config.states_corpus else default_corpus(epath.Path(self.place))

    def raw_utterances(self) -> Iterator[builder.RawUtterance | builder.LeftOut]:
        """The rows of the manifest, in their order."""
        rows, folder = self._rows, epath.Path(self.builder_config.folder)
        digests = _digests(rows, folder, self.data_path.parent.parent)
        _refuse_shared(rows, digests, folder / MANIFEST)
        labels = label_map.in_folder(folder)
        for row in rows:
            if row.file.missing:
                yield builder.LeftOut(row.file.id, "missing", row.file.missing)
            else:
                emotion = label_map.emotion(row.fields["emotion_native"], labels)
                fields = {"corpus": default_corpus(folder)} | row.fields
                yield builder.RawUtterance(audio=row.path, emotion=emotion, **fields)

    def expected_count(self) -> int:
        """Number of manifest rows."""
        return len(self._rows)

    def accept(self, report: BuildReport) -> None:
        """See CorpusBuilder.accept; and a recording is in one split. (Of published corpora the report tells it.)"""
        super().accept(report)
        report.repeats.refuse_shared(self.info.full_name)

    @functools.cached_property
    def _rows(self) -> list[ManifestRow]:
        return read_manifest(self.builder_config.folder, self.builder_config.outside)


def fingerprint(folder: epath.PathLike, outside: str = "", place: epath.Path | None = None) -> str:
    """12 hex digits over what the manifest says and what the recordings hold.

    Canonical emotions, genders and ages are in it so that a new entry of their tables, or of the folder's labels.toml,
    reaches the folders that it concerns; the folder's place and name are not. place: where digests are remembered,
    None = nowhere. Errors as of `SpeechFolder.from_argument`.
    """
    rows, folder = read_manifest(folder, outside), Folder(folder).path
    return _fingerprint(rows, _digests(rows, folder, place), label_map.in_folder(folder))


def _fingerprint(rows: Sequence[ManifestRow], digests: Sequence[str], labels: Mapping[str, str]) -> str:
    whole = hashlib.sha256()
    for row, digest in zip(rows, digests, strict=True):
        native = row.fields["emotion_native"]
        emotion = label_map.emotion(native, labels, emotions.canonical(native)[0])
        speaker = [persons.gender(row.fields.get("gender", "")), persons.age(row.fields.get("age", ""))]
        whole.update(json.dumps([digest, emotion, speaker, row.fields], sort_keys=True).encode())
    return whole.hexdigest()[:12]


def _digests(rows: Sequence[ManifestRow], folder: epath.Path, place: epath.Path | None) -> list[str]:
    memory = None
    if place is not None:
        name = f".content-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}.json"
        memory = epath.Path(shard_cache.local_folder(place)) / name
    return content.digests([row.file for row in rows], memory)


def _refuse_shared(rows: Sequence[ManifestRow], digests: Sequence[str], manifest: epath.Path) -> None:
    """ValueError where files of the same bytes are in two splits."""
    first: dict[str, ManifestRow] = {}
    shared: list[tuple[ManifestRow, ManifestRow]] = []
    for row, digest in zip(rows, digests, strict=True):
        split = row.fields.get("split", "")
        if not split or digest == content.NO_FILE or row.file.stamp[0] == 0:
            continue
        other = first.setdefault(digest, row)
        if other.fields["split"] != split:
            shared.append((row, other))
    if shared:
        row, other = shared[0]
        raise ValueError(
            f"{manifest}, line {row.line}: {row.file.id!r} ({row.fields['split']}) holds the same bytes as "
            f"{other.file.id!r} ({other.fields['split']}) of line {other.line}{_and_more(shared)}. A model would be "
            "tested on what it was trained on: take one of the two out, or put both into one split"
        )


def _and_more(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more such pairs" if len(found) > 1 else ""


def _slug(name: str) -> str:
    """A name with only what is safe in a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()[:60] or "folder"
