"""What every public corpus shares: its facts, the walk over its files, the grammar of its names, its folds.

A corpus is a module of `mser_jax/corpora/public/` with one subclass, about forty lines: facts, a grammar, a label
table, and what is special.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pyarrow as pa
from absl import logging
from etils import epath

from mser_jax import storage
from mser_jax.corpora import completeness, emobox_lists, emotions, folds, scratch, shard_cache, tables
from mser_jax.corpora import source as source_lib
from mser_jax.corpora.build_report import BuildReport
from mser_jax.corpora.builder import CorpusBuilder, LeftOut, RawUtterance
from mser_jax.corpora.facts import Facts

NAME_REASON, MISSING_REASON, CODE_REASON, TABLE_REASON = "name", "missing", "code", "table"
_LISTED = 1000  # missing recordings that the report of a part of a corpus lists
_UNKNOWN = 0.1  # recordings without a row, of those with one, where nothing else tells that half a table is gone
# What `utterance` returns for a recording that the corpus's table does not have.
UNLABELLED = LeftOut("", "no label", on_purpose=True)


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
    SPEAKERS: all of them, where they are known by name; EMOBOX_SPEAKERS' by default. WHOLE: utterances of the smallest
      copy that counts as all of it, where that is not FACTS's; 0 where only the corpus's own tables can tell.
    UNEXPLAINED: labels beside FACTS's that occur and mean none of the seven.
    A path that neither fits is left out with reason "name", one with a code that `utterance` does not know with reason
    "code"; more than MAX_SKIPPED of them stop the build.

    Where labels come as a table, `read_labels` reads it, by whatever key `utterance` takes them out of `labels` (pop);
    what is in the table and not among the files is listed as missing, and what it puts in `damaged` is listed too.
    """

    FACTS: ClassVar[Facts]
    GRAMMAR: ClassVar[re.Pattern[str]]
    SUFFIXES: ClassVar[tuple[str, ...]] = (".wav",)
    CORRECTIONS: ClassVar[Mapping[str, str]] = {}
    IGNORED: ClassVar[Mapping[str, str]] = {}  # pattern -> why
    NESTED_ARCHIVES: ClassVar[bool] = True
    EMOBOX_SPEAKERS: ClassVar[tuple[str, ...]] = ()
    SPEAKERS: ClassVar[tuple[str, ...]] = ()
    UNEXPLAINED: ClassVar[tuple[str, ...]] = ()
    WHOLE: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        source: str = "",
        emobox: str = "",
        allow_partial: bool = False,
        fold: folds.Fold | None = None,
        **kwargs: Any,
    ):
        """source, emobox: the original download and a clone of EmoBox, for building and not for reading. allow_partial:
        a part of the corpus will do. fold: the split that `index` shows.
        """
        self._source, self._emobox, self._fold = source, emobox, fold
        self.allow_partial = allow_partial
        self.tolerated = frozenset({MISSING_REASON} if allow_partial else ())
        self._lists: emobox_lists.Lists | None = None
        self._found = completeness.Found()
        self._unread: list[str] = []
        self.damaged: list[LeftOut] = []
        super().__init__(**kwargs)

    @classmethod
    def from_argument(
        cls, argument: str, data_dir: str = "", source: str = "", emobox: str = "", allow_partial: bool = False
    ) -> PublicCorpus:
        """Builder for "name", "name:official", "name:emobox-2" or "name:speaker-1of5" (see folds.py).

        Raises:
          ValueError: another argument.
        """
        fold = folds.parse(argument) if argument else None
        return cls(data_dir=data_dir or None, source=source, emobox=emobox, allow_partial=allow_partial, fold=fold)

    def prepare(self) -> None:
        """See CorpusBuilder.prepare.

        Raises:
          FileNotFoundError: the corpus is not on this machine and no source was given; says how to get it.
          PartialCorpusError: the source, or what was prepared from it, is a part of the corpus.
          ValueError: it was prepared from another source, or without EmoBox's folds.
        """
        if not self.is_complete() and not self._source:
            raise FileNotFoundError(self.how_to_get())
        scratch.sweep(shard_cache.local_folder(self.data_path).parent)
        super().prepare()
        if not self._source and (partial := self._report().get("partial")):
            logging.warning("%s is a part of the corpus: %s", self.data_path, partial)

    def outdated(self) -> bool:
        """Tell whether a part of the corpus is prepared, from another source than the one that is given now.

        Raises:
          PartialCorpusError: a part is prepared from this source, and it was not said that a part will do.
          ValueError: all of it is prepared, from another source or with other lists of EmoBox's than those given.
        """
        again = f"To build it again, delete {self.data_path} first"
        if self._emobox and not any(fold > 0 for fold in super().index()["emobox_fold"].to_pylist()):
            raise ValueError(f"{self.data_path} was prepared without EmoBox's folds. {again}")
        if not self._source:
            return False
        report = self._report()
        partial, built_from = report.get("partial"), report.get("source")
        if not built_from:  # of a time when it was not kept
            return report["built"] < completeness.WHOLE * self.whole().utterances
        if not source_lib.is_same(self._source, built_from, lambda: self._fingerprint):
            if partial:
                return True
            raise ValueError(
                f"{self.data_path} was built from {source_lib.describe(built_from)} and not from"
                f" {source_lib.describe(self._fingerprint)}. {again}"
            )
        lists = self._emobox and storage.absolute(self._emobox).exists() and self._fingerprint["emobox"]
        if lists and lists != built_from.get("emobox"):
            raise ValueError(f"{self.data_path} was not built with the lists of EmoBox in {self._emobox}. {again}")
        if partial and not self.allow_partial:
            raise completeness.PartialCorpusError(
                completeness.explain(self.name, self._source, partial, self._unread, self.FACTS)
            )
        return False

    def _report(self) -> dict[str, Any]:
        return json.loads(self.report_path.read_text(encoding="utf-8"))

    @functools.cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Of the source, and of EmoBox's lists where they are given."""
        found = source_lib.fingerprint(self._source)
        if self._emobox:
            found["emobox"] = source_lib.fingerprint(emobox_lists.folder(self._emobox, self.lists_of()))["names"]
        return found

    def whole(self) -> completeness.Whole:
        """Return what the whole corpus has, as far as it is published."""
        facts = self.FACTS
        return completeness.Whole(
            utterances=facts.utterances if self.WHOLE is None else self.WHOLE,
            people=facts.speakers,
            speakers=self.SPEAKERS or tuple(sorted(" ".join(self.EMOBOX_SPEAKERS).split())),
            languages=facts.languages,
            labels=() if "…" in facts.emotions else facts.emotions,
        )

    def accept(self, report: BuildReport) -> None:
        """See CorpusBuilder.accept. PartialCorpusError: it is a part, and it was not said that a part will do."""
        gone = [item["path"] for item in report.skipped_items if item["reason"] == MISSING_REASON]
        missing, found = len(gone) + report.left_out.get(MISSING_REASON, 0), self._found
        if missing > self.MAX_SKIPPED * (report.built + report.unusable + missing * self.allow_partial):
            at_least = "" if self.allow_partial else "at least "
            found.absent.append(f"{at_least}{missing} recordings are missing, the first {gone[0]}")
        if not self.whole().utterances and (unknown := report.left_out[UNLABELLED.reason]) > _UNKNOWN * report.built:
            found.absent.append(f"{unknown} recordings have no row in its table")
        found.utterances = report.built
        report.published = self.whole().utterances
        report.source = self._fingerprint
        if self._unread:
            report.left_out["archive that Python does not read"] += len(self._unread)
        # Where too much of what is there is unusable, that is the reason.
        unusable = report.unusable - (0 if self.allow_partial else len(gone))
        if unusable <= self.MAX_SKIPPED * (report.built + unusable):
            report.partial = self._refuse_a_part(found)
        super().accept(report)

    def _refuse_a_part(self, found: completeness.Found) -> str:
        """How what was found falls short of the whole, where that will do."""
        partial = self.whole().lacking(found)
        if partial and not self.allow_partial:
            raise completeness.PartialCorpusError(
                completeness.explain(self.name, self._source, partial, self._unread, self.FACTS)
            )
        return partial

    def how_to_get(self) -> str:
        """The message for who asks for a corpus that is not there."""
        return (
            f"corpus {self.name!r} ({self.FACTS.title}) is not prepared in {self.data_dir}. Get it: {self.FACTS.obtain}"
            f" (licence: {self.FACTS.license}), then: python tools/prepare_corpus.py {self.name} --source=DIR"
            f" where DIR holds {self.FACTS.folder}"
        )

    def index(self) -> pa.Table:
        """The index with the split of the chosen fold."""
        table = super().index()
        if self._fold is None:
            return table
        if self._fold.scheme == "emobox":
            self._refuse_old_lists()
        columns = {name: table[name].to_pylist() for name in ("speaker", "split", "emobox_fold")}
        split = pa.array(self._fold.split(columns), pa.string())
        return table.set_column(table.column_names.index("split"), "split", split)

    def _refuse_old_lists(self) -> None:
        """ValueError: built when utterances that EmoBox's lists lack were no different from those that they train."""
        report = self._report()
        lists = report.get("emobox")
        if lists and "unlisted" not in lists and report["built"] > lists["found"]:
            why = "does not tell which utterances EmoBox's lists lack, as they are built now"
            raise ValueError(f"{self.data_path} {why}. Delete it and build it again")

    def expected_count(self) -> int:
        """Number of utterances as published."""
        return self.FACTS.utterances

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Unpacks the source where it is an archive."""
        self._lists = emobox_lists.Lists(self._emobox, self.lists_of()) if self._emobox else None
        self._found, _ = completeness.Found(), self._fingerprint
        parent = shard_cache.local_folder(self.data_path).parent
        with source_lib.opened(self._source, parent, nested=self.NESTED_ARCHIVES) as self._folder:
            self._unread = source_lib.unread(self._folder)
            if self._unread:
                print(f"{self._source}: Python does not read {self._unread[0]}; unpack it yourself", file=sys.stderr)
            yield

    def raw_utterances(self) -> Iterator[RawUtterance | LeftOut]:
        """What `read` finds in the source, with EmoBox's folds."""
        for raw in self.read(self._folder):
            if isinstance(raw, LeftOut):
                yield raw
                continue
            self._found.add(raw)
            yield dataclasses.replace(raw, emobox_fold=self.emobox_fold(raw))

    def read(self, folder: epath.Path) -> Iterator[RawUtterance | LeftOut]:
        """Every utterance below `folder`, in the order of the paths. Corpora that come as tables override this."""
        self.damaged = []
        try:
            self.labels = self.read_labels(folder)
        except (LookupError, TypeError, AttributeError, UnicodeError) as error:
            raise tables.TableError(f"{self.name}: tables in {folder} are not as expected ({error!r})") from error
        items: Iterable[RawUtterance | LeftOut] = self._of_files(folder)
        if not self.labels:  # then the names tell at once how much there is
            items = list(items)
            found = completeness.Found()
            found.add(*(raw for raw in items if isinstance(raw, RawUtterance)))
            if found.utterances:
                self._refuse_a_part(found)
        yield from items
        for number, name in enumerate(self.labels):
            listed = number < _LISTED or not self.allow_partial
            yield LeftOut(str(name), MISSING_REASON, "there is a label for it but no such file", on_purpose=not listed)
        yield from self.damaged

    def _of_files(self, folder: epath.Path) -> Iterator[RawUtterance | LeftOut]:
        """What the names and the tables say of every file."""
        seen: set[str] = set()
        for path in source_lib.files(folder, self.SUFFIXES):
            relative = source_lib.readable(path.relative_to(folder))
            if reason := self._ignored(relative):
                yield LeftOut(relative, reason, on_purpose=True)
                continue
            match, correction = self.match(relative)
            if match is None:
                yield LeftOut(relative, NAME_REASON, f"expected a path ending like {self.FACTS.folder}")
            elif match[0] in seen:  # the download of some mirrors holds every file twice
                yield LeftOut(relative, "the same file again", on_purpose=True)
            else:
                seen.add(match[0])
                raw = self._utterance(match)
                if isinstance(raw, LeftOut):
                    yield dataclasses.replace(raw, name=relative)
                    continue
                yield dataclasses.replace(raw, audio=path, correction=raw.correction or correction, origin=relative)

    def _utterance(self, match: re.Match[str]) -> RawUtterance | LeftOut:
        """`utterance`, or why it knows nothing of this one."""
        try:
            raw = self.utterance(match)
            for name in () if isinstance(raw, LeftOut) else ("speaker", "gender", "age", "transcript", "split"):
                getattr(raw, name).encode()  # tables that are JSON can hold anything
            if isinstance(raw, LeftOut) or raw.emotion is not None or self.is_label(raw.emotion_native):
                return raw
            return LeftOut("", CODE_REASON, f"unknown label {raw.emotion_native!r}")
        except tables.TableError as error:
            return LeftOut("", TABLE_REASON, str(error))
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            detail = f"unknown code {error.args[0]!r}" if isinstance(error, KeyError) else repr(error)
            return LeftOut("", CODE_REASON, detail)

    def read_labels(self, folder: epath.Path) -> dict[str, Any]:
        """The corpus's own tables, if any; see source.find and source.rows."""
        del folder
        return {}

    def is_label(self, label: str) -> bool:
        """Tell whether the corpus has such a label, or the table of emotions knows the word."""
        known = {name.casefold() for name in (*self.FACTS.emotions, *self.UNEXPLAINED)}
        return label.strip().casefold() in known or any(emotions.canonical(label))

    def label(self, row: tables.Row, column: str) -> str:
        """Return the label in a cell of the corpus's table. TableError: none of its labels."""
        label = row[column].strip()
        if self.is_label(label):
            return label
        expected = ", ".join(self.FACTS.emotions)
        raise tables.TableError(f"{row.where}, column {column!r}: unknown label {label!r}, expected one of {expected}")

    def keyed(self, rows: Iterable[tables.Row], key: Callable[[tables.Row], str]) -> dict[str, tables.Row]:
        """Map rows by `key`. One without it, and those of one key that differ, are put into `damaged`."""
        found: dict[str, tables.Row] = {}
        twice: set[str] = set()
        for row in rows:
            try:
                name = key(row)
            except tables.TableError as error:
                self.damaged.append(LeftOut(row.where, TABLE_REASON, str(error)))
                continue
            first = found.setdefault(name, row)
            if first != row:
                twice.add(name)
                detail = f"{name!r} was already in {first.where}, with other cells"
                self.damaged.append(LeftOut(row.where, TABLE_REASON, detail))
        return {name: row for name, row in found.items() if name not in twice}

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
        """EmoBox's fold that tests this utterance, 0 = none known, folds.UNLISTED = its lists do not have it: by its
        lists, else what the builder says, else by speaker.
        """
        if self._lists is not None:
            return self._lists.fold(raw)
        by_speaker = (k for k, fold in enumerate(self.EMOBOX_SPEAKERS, start=1) if raw.speaker in fold.split())
        return raw.emobox_fold or next(by_speaker, 0)

    def lists_of(self) -> str:
        """Whose lists are read from EmoBox."""
        return self.name

    def complete(self, report: BuildReport) -> None:
        """See CorpusBuilder.complete."""
        if self._lists is not None:
            report.emobox = self._lists.counts()

    def _ignored(self, relative: str) -> str:
        return next((why for pattern, why in self.IGNORED.items() if re.search(pattern, relative)), "")

    def match(self, relative: str) -> tuple[re.Match[str] | None, str]:
        """The match of the path's end, and the correction that made it one."""
        for tail in _tails(relative):
            corrected = self.CORRECTIONS.get(tail, tail)
            if match := self.GRAMMAR.fullmatch(corrected):
                return match, f"{tail} → {corrected}" if corrected != tail else ""
        return None, ""


def votes(labels: Iterable[str] | Mapping[str, float]) -> str:
    """What raters said, one by one or with weights, as the field `votes` has it: JSON, label -> votes, most first."""
    return json.dumps(dict(collections.Counter(labels).most_common()), ensure_ascii=False)


def _tails(relative: str) -> Iterator[str]:
    """ "a/b/c" -> "a/b/c", "b/c", "c"."""
    parts = relative.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))
