"""`speech_folder:DIR`: any folder with a manifest.jsonl is a corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from mser_jax.corpora import builder, emotions, label_map
from mser_jax.corpora.manifest import EXPECTED, MANIFEST, read_manifest


@dataclasses.dataclass(eq=False)
class SpeechFolderConfig(tfds.core.BuilderConfig):
    """TFDS config of one folder: its name carries the fingerprint: a changed folder is another data set."""

    folder: str = ""


class SpeechFolder(builder.CorpusBuilder):
    """Recordings and labels as listed in a manifest."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "A folder of recordings with a manifest."

    @classmethod
    def from_argument(cls, argument: str, data_dir: str = "") -> SpeechFolder:
        """Builder for the folder `argument`.

        Reads the manifest and the sizes of the recordings (not the recordings): a change in either gives
        another fingerprint and so another build.

        Raises:
          FileNotFoundError: no such folder, or no manifest in it.
          ValueError: no folder given, or a manifest line that cannot be used (named).
        """
        if not argument:
            raise ValueError(f"corpus 'speech_folder' needs a folder: speech_folder:DIR. {EXPECTED}")
        folder = epath.Path(argument).expanduser()
        name = f"{_slug(folder)}-{fingerprint(folder)}"
        config = SpeechFolderConfig(name=name, version=cls.VERSION, folder=str(folder))
        return cls(config=config, data_dir=data_dir or None)

    @property
    def short_name(self) -> str:
        """The folder's name and fingerprint: two folders may be in one mix."""
        return self.builder_config.name

    def raw_utterances(self) -> Iterator[builder.RawUtterance]:
        """The rows of the manifest, in their order."""
        folder = epath.Path(self.builder_config.folder)
        labels = label_map.in_folder(folder)
        for row in read_manifest(folder):
            emotion = label_map.emotion(row.fields["emotion_native"], labels)
            yield builder.RawUtterance(audio=row.path, emotion=emotion, **row.fields)

    def expected_count(self) -> int:
        """Number of manifest rows."""
        return len(read_manifest(epath.Path(self.builder_config.folder)))


def fingerprint(folder: epath.Path) -> str:
    """12 hex digits over the manifest's bytes, each recording's size (−1: missing) and canonical emotion.

    The emotion is in it so that a new entry of emotion_words.toml, or of the folder's labels.toml, reaches the folders
    whose labels it concerns.
    """
    rows, labels = read_manifest(folder), label_map.in_folder(folder)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes())
    for row in rows:
        try:
            size = row.path.stat().length
        except OSError:
            size = -1
        native = row.fields["emotion_native"]
        emotion = label_map.emotion(native, labels, emotions.canonical(native)[0])
        digest.update(f"{size},{emotion};".encode())
    return digest.hexdigest()[:12]


def _slug(folder: epath.Path) -> str:
    """The folder's name with only what is safe in a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", folder.name).strip("_").lower() or "folder"
