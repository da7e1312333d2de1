"""EmoBox's lists of which recordings its folds train and test on, read from a clone of its repository.

https://github.com/emo-box/EmoBox (Ma et al., Interspeech 2024): data/NAME/fold_K/NAME_{train,valid,test}_fold_K.jsonl,
one JSON object a line with key, wav ("downloads/NAME/…"), emo, and start_time and end_time of what is cut out of a
longer recording; data/NAME/label_map.json: emo -> word.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping

from etils import epath

from mser_jax import storage
from mser_jax.corpora import folds, tables
from mser_jax.corpora.builder import RawUtterance

# Our names that are not theirs with other marks.
_FOLDERS = {"asvp_esd_all": "asvpesd", "turev": "turevdb", "polish_esc": "polish"}
_PARTS = {"train": "train", "valid": "validation", "test": "test"}
_FILE = re.compile(r"(?P<part>train|valid|test)_fold_?(?P<fold>\d+)\.jsonl$")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One utterance of EmoBox.

    name: its key without the corpus. path: of its recording, below downloads/NAME. emotion: the corpus's code. start,
    end: seconds in the recording; 0, 0 = all of it. fold: which tests it, 0 = none. split: of fold 1.
    """

    name: str
    path: str
    emotion: str
    start: float
    end: float
    fold: int
    split: str


def folder_of(name: str) -> str:
    """What EmoBox calls one of our corpora: "jl_corpus" -> "jlcorpus"."""
    return _FOLDERS.get(name, name.replace("_", ""))


def folder(emobox: epath.PathLike, name: str) -> epath.Path:
    """Return where a clone of EmoBox has its lists of the corpus `name`, ours or theirs.

    Raises:
      FileNotFoundError: not a clone, or it has no lists of this corpus (those that it has are named).
    """
    root = storage.absolute(emobox) / "data"
    lists = root / folder_of(name)
    if not lists.exists():
        there = sorted(path.name for path in root.iterdir()) if root.exists() else []
        raise FileNotFoundError(
            f"{lists}: EmoBox has no lists of {name!r}; {f'it has {there}' if there else 'expected a clone'}"
            " of https://github.com/emo-box/EmoBox"
        )
    return lists


class Lists:
    """The lists of one corpus. `found`: names of entries that `fold` was asked for. `unlisted`: number of others."""

    def __init__(self, emobox: epath.PathLike, name: str):
        """
        Args:
          emobox: the clone.
          name: ours, or theirs.

        Raises:
          FileNotFoundError: as `folder`.
          ValueError: a line that is none of theirs (named).
        """
        self._folder, self._corpus = folder(emobox, name), folder_of(name)
        self.found: set[str] = set()
        self.unlisted = 0

    @functools.cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Name -> entry, in the order of the lists, fold by fold."""
        entries: dict[str, Entry] = {}
        for path, part, fold in self._files():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    entry = self._entry(json.loads(line), part, fold)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}:{number}: no line of EmoBox ({error!r}): {line[:100]}") from None
                known = entries.get(entry.name, entry)
                entries[entry.name] = dataclasses.replace(known, fold=known.fold or entry.fold)
        if not entries:
            raise FileNotFoundError(f"{self._folder}: no fold_K/*_fold_K.jsonl in it")
        return entries

    @functools.cached_property
    def labels(self) -> Mapping[str, str]:
        """The corpus's code of an emotion -> EmoBox's word; empty where the code is the word."""
        path = self._folder / "label_map.json"
        return tables.json_of(path, dict) if path.exists() else {}

    def fold(self, raw: RawUtterance) -> int:
        """The fold that tests an utterance, 0 = none, folds.UNLISTED = EmoBox does not have it.

        It is looked up by its id and by its file: the longest end of its path that any entry's path has, without
        endings (recordings are kept in other formats, too), and only where that end is one entry's alone. A file that
        has a wrong name, which the lists may have put right, is found by the end of its id.
        """
        entry = self.entries.get(raw.id)
        if entry is None:
            # Longest first: "a/b/c", "b/c", "c".
            tails = (*_tails(raw.name), *_tails(raw.id))
            entry = next((self._by_tail[tail] for tail in tails if tail in self._by_tail), None)
        if entry is None:
            self.unlisted += 1
            return folds.UNLISTED
        self.found.add(entry.name)
        return entry.fold

    @functools.cached_property
    def _by_tail(self) -> Mapping[str, Entry | None]:
        """End of a path -> the entry; None where several end so, or the recording holds several."""
        tails: dict[str, Entry | None] = {}
        for entry in self.entries.values():
            for tail in _tails(entry.path):
                tails[tail] = None if tail in tails or entry.end else entry
        return tails

    def _files(self) -> Iterator[tuple[epath.Path, str, int]]:
        """(list, part, fold), by fold. Some folds are there twice, as "fold_1" and "fold1", with the same content."""
        files: dict[tuple[int, str], epath.Path] = {}
        for folder in self._folder.iterdir():
            for path in folder.iterdir() if re.fullmatch(r"fold_\d+", folder.name) else ():
                if match := _FILE.search(path.name):
                    key = int(match["fold"]), _PARTS[match["part"]]
                    if key not in files or "fold_" in path.name:
                        files[key] = path
        return ((path, part, fold) for (fold, part), path in sorted(files.items()))

    def _entry(self, line: Mapping[str, object], part: str, fold: int) -> Entry:
        wav, key = str(line["wav"]), str(line["key"])
        f"{wav}{key}{line['emo']}".encode()
        start, end = float(line.get("start_time", 0.0)), float(line.get("end_time", 0.0))
        if end and not 0 <= start < end:
            raise ValueError(f"from {start} to {end} s")
        return Entry(
            name=key.removeprefix(f"{self._corpus}-"),
            path=wav.removeprefix(f"downloads/{self._corpus}/"),
            emotion=str(line["emo"]),
            start=start,
            end=end,
            fold=fold if part == "test" else 0,
            split=part,
        )

    def counts(self) -> dict[str, int]:
        """For the report: utterances that EmoBox lists, those of them that were found, how many it does not list, and
        how many each fold tests.
        """
        tests = collections.Counter(self.entries[name].fold for name in self.found)
        found = {f"tested in fold {fold}": count for fold, count in sorted(tests.items()) if fold}
        return {"listed": len(self.entries), "found": len(self.found), "unlisted": self.unlisted, **found}


def _tails(path: str) -> Iterator[str]:
    parts = re.sub(r"\.\w{2,4}$", "", path.casefold()).split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))
