"""What every public corpus shares: its facts, the walk over its files, the grammar of its names, its folds.

A corpus is a module of `mser_jax/corpora/public/` with one subclass, about forty lines: facts, a grammar, a label
table, and what is special.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from etils import epath

from mser_jax import storage
from mser_jax.corpora import emobox_lists, folds, shard_cache
from mser_jax.corpora import source as source_lib
from mser_jax.corpora.build_report import BuildReport
from mser_jax.corpora.builder import CorpusBuilder, LeftOut, RawUtterance

NAME_REASON = "name"
MISSING_REASON = "missing"
# What `utterance` returns for a recording that the corpus's table does not have.
UNLABELLED = LeftOut("", "no label", on_purpose=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a corpus before it is on this machine.

    languages: BCP-47. utterances, hours, speakers: as published, 0 = unknown. emotions: its own labels. obtain: where
    it is to be had and under what conditions. folder: what --source should hold.
    """

    title: str
    languages: tuple[str, ...]
    utterances: int = 0
    hours: float = 0.0
    speakers: int = 0
    emotions: tuple[str, ...]
    license: str
    obtain: str
    citation: str
    folder: str


class PublicCorpus(CorpusBuilder):
    """Base of the public corpora. The usual subclass is

        class Ravdess(PublicCorpus):
            name = "ravdess"                       # the module's name
            VERSION = tfds.core.Version("1.0.0")
            FACTS = Facts(…)
            GRAMMAR = re.compile(r"03-01-(?P<emotion>0[1-8])-…\\.wav", re.I)
            def utterance(self, match): return self.raw(match, emotion_native=…, speaker=…)

    GRAMMAR: matched (fullmatch) against the end of each path below the source, from some folder on: "Actor_01/03-….wav"
      also where the source is the folder above. What it matches, without the suffix, is the utterance's id.
    SUFFIXES: files that are looked at. CORRECTIONS: a name's known typo -> what it should be; the end of a path, as
      GRAMMAR; each use is counted in the report. IGNORED: matches paths that are known to be no utterances of this
      corpus (search), with the reason counted in the report.
    EMOBOX_SPEAKERS: "whom EmoBox tests on in fold 1", "in fold 2", …, blanks between speakers, where its folds go by
      speaker; other folds are lists of files, read from a clone of EmoBox where one is given (emobox_lists.py).
    A path that neither fits is left out with reason "name", and stops the build where there are more than MAX_SKIPPED.

    Where labels come as a table, `read_labels` reads it, by whatever key `utterance` takes them out of `labels` (pop);
    what is in the table and not among the files is listed as missing.
    """

    FACTS: ClassVar[Facts]
    GRAMMAR: ClassVar[re.Pattern[str]]
    SUFFIXES: ClassVar[tuple[str, ...]] = (".wav",)
    CORRECTIONS: ClassVar[Mapping[str, str]] = {}
    IGNORED: ClassVar[Mapping[str, str]] = {}  # pattern -> why
    NESTED_ARCHIVES: ClassVar[bool] = True
    EMOBOX_SPEAKERS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, source: str = "", emobox: str = "", fold: folds.Fold | None = None, **kwargs: Any):
        """source, emobox: the original download and a clone of EmoBox, for building and not for reading. fold: the
        split that `index` shows.
        """
        self._source, self._emobox, self._fold = source, emobox, fold
        self._lists: emobox_lists.Lists | None = None
        super().__init__(**kwargs)

    @classmethod
    def from_argument(cls, argument: str, data_dir: str = "", source: str = "", emobox: str = "") -> PublicCorpus:
        """Builder for "name", "name:official", "name:emobox-2" or "name:speaker-1of5" (see folds.py).

        Raises:
          ValueError: another argument.
        """
        fold = folds.parse(argument) if argument else None
        return cls(data_dir=data_dir or None, source=source, emobox=emobox, fold=fold)

    def prepare(self) -> None:
        """See CorpusBuilder.prepare.

        Raises:
          FileNotFoundError: the corpus is not on this machine and no source was given; says how to get it.
          ValueError: EmoBox is given, for a corpus that was prepared without it.
        """
        if self._emobox and self.is_complete() and not any(super().index()["emobox_fold"].to_pylist()):
            raise ValueError(f"{self.data_dir} was prepared without EmoBox's folds. Delete it and build it with them")
        if not self.is_complete() and not self._source:
            raise FileNotFoundError(self.how_to_get())
        super().prepare()

    def how_to_get(self) -> str:
        """The message for who asks for a corpus that is not there."""
        facts = self.FACTS
        return (
            f"corpus {self.name!r} ({facts.title}) is not prepared in {self.data_dir}. Get it: {facts.obtain}"
            f" (licence: {facts.license}), then: python tools/prepare_corpus.py {self.name} --source=DIR"
            f" where DIR holds {facts.folder}"
        )

    def index(self) -> pa.Table:
        """The index with the split of the chosen fold."""
        table = super().index()
        if self._fold is None:
            return table
        columns = {name: table[name].to_pylist() for name in ("speaker", "split", "emobox_fold")}
        split = pa.array(self._fold.split(columns), pa.string())
        return table.set_column(table.column_names.index("split"), "split", split)

    def expected_count(self) -> int:
        """Number of utterances as published."""
        return self.FACTS.utterances

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Unpacks the source where it is an archive."""
        remote = storage.is_remote(self.data_path)
        scratch = Path(shard_cache.local_folder(self.data_path) if remote else self.data_path).parent
        self._lists = emobox_lists.Lists(self._emobox, self.lists_of()) if self._emobox else None
        with source_lib.opened(self._source, scratch, nested=self.NESTED_ARCHIVES) as self._folder:
            yield

    def raw_utterances(self) -> Iterator[RawUtterance | LeftOut]:
        """What `read` finds in the source, with EmoBox's folds."""
        for raw in self.read(self._folder):
            is_left_out = isinstance(raw, LeftOut)
            yield raw if is_left_out else dataclasses.replace(raw, emobox_fold=self.emobox_fold(raw))

    def read(self, folder: epath.Path) -> Iterator[RawUtterance | LeftOut]:
        """Every utterance below `folder`, in the order of the paths. Corpora that come as tables override this."""
        seen: set[str] = set()
        self.labels = self.read_labels(folder)
        for path in source_lib.files(folder, self.SUFFIXES):
            relative = path.relative_to(folder).as_posix()
            if reason := self._ignored(relative):
                yield LeftOut(relative, reason, on_purpose=True)
                continue
            match, correction = self._match(relative)
            if match is None:
                detail = f"expected a path ending like {self.FACTS.folder}"
                yield LeftOut(relative, NAME_REASON, detail)
            elif match[0] in seen:  # the download of some mirrors holds every file twice
                yield LeftOut(relative, "the same file again", on_purpose=True)
            else:
                seen.add(match[0])
                raw = self.utterance(match)
                if isinstance(raw, LeftOut):
                    yield dataclasses.replace(raw, name=relative)
                    continue
                yield dataclasses.replace(raw, audio=path, correction=raw.correction or correction, origin=relative)
        for name in self.labels:
            yield LeftOut(str(name), MISSING_REASON, "there is a label for it but no such file")

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """The corpus's own tables, if any; see source.find and source.rows."""
        del folder
        return {}

    def utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """What GRAMMAR's match says of an utterance, through `raw`; `audio` and a LeftOut's name come from `read`."""
        raise NotImplementedError(f"{type(self).__name__}: either utterance(match) or read(folder) must be there")

    def raw(self, match: re.Match[str] | None = None, **fields: Any) -> RawUtterance:
        """A RawUtterance with what is the same for the whole corpus filled in."""
        facts = self.FACTS
        defaults = {"corpus": self.name, "speaker": "", "language": facts.languages[0], "license": facts.license}
        if match is not None:
            defaults["id"] = match[0].rpartition(".")[0]
        return RawUtterance(**{"audio": b"", **defaults, **fields})

    def emobox_fold(self, raw: RawUtterance) -> int:
        """EmoBox's fold that tests this utterance, 0 = none known: by its lists, else what the builder says, else by
        speaker.
        """
        if self._lists is not None:
            return self._lists.fold(raw)
        by_speaker = (k for k, fold in enumerate(self.EMOBOX_SPEAKERS, start=1) if raw.speaker in fold.split())
        return raw.emobox_fold or next(by_speaker, 0)

    def lists_of(self) -> str:
        """Whose lists are read from EmoBox."""
        return self.name

    def learn(self, folder: epath.Path) -> None:
        """Reads the corpus's tables where they are in `folder`, for `by_name`."""
        self.labels = _Blank()
        with contextlib.suppress(FileNotFoundError):
            self.labels = self.read_labels(folder) or self.labels

    def by_name(self, path: str) -> RawUtterance | None:
        """What a recording's name, and the tables that `learn` found, say of it; None where nothing. No `audio`."""
        match = self._match(path)[0] if hasattr(self, "GRAMMAR") else None
        # Where the tables are not there, `utterance` may lack what they would have said.
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            raw = match and self.utterance(match)
            return raw if isinstance(raw, RawUtterance) else None
        return None

    def complete(self, report: BuildReport) -> None:
        """See CorpusBuilder.complete."""
        if self._lists is not None:
            report.emobox = self._lists.counts()

    def _ignored(self, relative: str) -> str:
        return next((why for pattern, why in self.IGNORED.items() if re.search(pattern, relative)), "")

    def _match(self, relative: str) -> tuple[re.Match[str] | None, str]:
        """The match of the path's end, and the correction that made it one."""
        for tail in _tails(relative):
            corrected = self.CORRECTIONS.get(tail, tail)
            if match := self.GRAMMAR.fullmatch(corrected):
                return match, f"{tail} → {corrected}" if corrected != tail else ""
        return None, ""


class _Blank(dict[Any, Any]):
    """A table of labels that has a row for everything, in which nothing stands."""

    def pop(self, *key: Any) -> Any:
        return _Blank()

    def get(self, key: Any, default: Any = None) -> Any:
        return default

    def __missing__(self, key: Any) -> str:
        return ""


def votes(labels: Iterable[str] | Mapping[str, float]) -> str:
    """What raters said, one by one or with weights, as the field `votes` has it: JSON, label -> votes, most first."""
    return json.dumps(dict(collections.Counter(labels).most_common()), ensure_ascii=False)


def _tails(relative: str) -> Iterator[str]:
    """ "a/b/c" -> "a/b/c", "b/c", "c"."""
    parts = relative.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))
