"""Which utterances are trained on and which tested, as named schemes over the index of a prepared corpus.

    official   the split its owners published (the record's own `split`)
    emobox     folds compatible with EmoBox (Ma et al., Interspeech 2024): fold k tests what carries `emobox_fold` k;
               what its lists do not name (UNLISTED) is in no fold, as it may be of the speakers that are tested
    speaker    speaker-disjoint folds by rule, for every corpus

`ravdess:emobox-2` and `ravdess:speaker-1` (default 5 folds; `ravdess:speaker-1of10`) are specs with these splits.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

SCHEMES = ("official", "emobox", "speaker")
_SPEC = re.compile(r"(official)|(emobox)-(\d+)|(speaker)-(\d+)(?:of(\d+))?")
DEFAULT_FOLDS = 5
UNLISTED = -1  # `emobox_fold` of what EmoBox's lists do not name
# The `split` of what a fold neither trains nor tests; "" would pass every filter of splits.
LEFT_OUT = "left out"


@dataclasses.dataclass(frozen=True)
class Fold:
    """One division into train and test. number: from 1. of: number of folds (`speaker` only)."""

    scheme: str
    number: int = 1
    of: int = DEFAULT_FOLDS

    def split(self, columns: Mapping[str, Sequence]) -> np.ndarray:
        """Object array [rows] of "train" | "test" | LEFT_OUT (or as published) from the columns speaker, split and
        emobox_fold.

        Raises:
          ValueError: the corpus has no such fold.
        """
        if self.scheme == "official":
            if not any(columns["split"]):
                raise ValueError("this corpus has no official split; take emobox-K or speaker-K")
            return np.array(columns["split"], dtype=object)
        folds = np.asarray(columns["emobox_fold"]) if self.scheme == "emobox" else speaker_folds(
            columns["speaker"], self.of
        )  # fmt: skip
        if self.number not in folds or self.number < 1:
            there = sorted(set(folds.tolist()) - {0, UNLISTED})
            raise ValueError(f"no fold {self.number} in scheme {self.scheme!r}; there are {there or 'none'}")
        split = np.where(folds == self.number, "test", "train").astype(object)
        split[folds == UNLISTED] = LEFT_OUT
        return split


def parse(text: str) -> Fold:
    """ "emobox-2", "speaker-1", "speaker-3of10", "official".

    Raises:
      ValueError: anything else.
    """
    match = _SPEC.fullmatch(text)
    if not match:
        raise ValueError(f"fold {text!r}: expected official, emobox-K, speaker-K or speaker-KofN")
    if match[1]:
        return Fold("official")
    if match[2]:
        return Fold("emobox", int(match[3]))
    return Fold("speaker", int(match[5]), int(match[6] or DEFAULT_FOLDS))


def speaker_folds(speakers: Sequence[str], folds: int = DEFAULT_FOLDS) -> np.ndarray:
    """int [rows] in 1…folds (fewer with fewer speakers): no speaker in two, sizes as equal as speakers allow.

    Speakers with most utterances first (ties in the order of a hash of the name), each to the smallest fold so far.
    Unknown speakers ("") get 0: they may be anybody, and are never tested on.
    """
    counts = collections.Counter(name for name in speakers if name)
    order = sorted(counts, key=lambda name: (-counts[name], hashlib.sha256(name.encode()).hexdigest()))
    sizes = [0] * max(1, min(folds, len(order)))
    fold_of = {"": 0}
    for name in order:
        smallest = int(np.argmin(sizes))
        sizes[smallest] += counts[name]
        fold_of[name] = smallest + 1
    return np.array([fold_of[name] for name in speakers], dtype=np.int32)


def summary(columns: Mapping[str, Sequence]) -> list[dict[str, int | str]]:
    """What each fold of each scheme holds: scheme, fold, train, validation, test, how many are left out, and how many
    speakers are in both train and test.
    """
    rows = []
    for fold in _all(columns):
        split = fold.split(columns)
        speakers = np.asarray(columns["speaker"], dtype=object)
        shared = (set(speakers[split == "train"]) & set(speakers[split == "test"])) - {""}
        sizes = {name: int((split == name).sum()) for name in ("train", "validation", "test")}
        sizes["left_out"] = int((split == LEFT_OUT).sum())
        rows.append({"scheme": fold.scheme, "fold": fold.number, **sizes, "speakers_in_both": len(shared)})
    return rows


def _all(columns: Mapping[str, Sequence]) -> list[Fold]:
    found = [Fold("official")] if {"train", "test"} <= set(columns["split"]) else []
    found += [Fold("emobox", int(k)) for k in sorted(set(columns["emobox_fold"]) - {0, UNLISTED})]
    numbers = sorted(set(speaker_folds(columns["speaker"]).tolist()) - {0})
    return found + ([Fold("speaker", k) for k in numbers] if len(numbers) > 1 else [])
