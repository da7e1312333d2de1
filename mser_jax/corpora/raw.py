"""One item of a corpus as its owners ship it, before any check: what corpus builders yield."""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

SPLITS = ("train", "validation", "test", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawUtterance:
    """One item as a corpus has it, before any check. Same fields and conventions as `record.Utterance`.

    audio: a file (any format libsndfile or ffmpeg reads), the bytes of one, or samples [time] or [time, channels] as
      int16 or float in [-1, 1]; `sampling_rate` (Hz) is needed with samples and ignored otherwise.
    id: unique within the corpus, and the same in every build.
    speaker: `corpus` is put in front where it is not yet.
    emotion: None looks `emotion_native` up in emotions.py; give a canonical name or "" to decide it here.
    origin: what the report calls the item when it is skipped; the path or the id by default.
    correction: the known defect that was put right in this item, as "wrong → right" or in words; counted by name.
    emobox_fold: EmoBox's fold in which it is tested, from 1; 0 = none (see folds.py). Only in the index.
    """

    id: str
    audio: os.PathLike | bytes | np.ndarray
    sampling_rate: int = 0
    language: str
    corpus: str
    speaker: str
    gender: str = ""
    age: str = ""
    emotion_native: str = ""
    emotion: str | None = None
    votes: str = ""
    valence: float = math.nan
    arousal: float = math.nan
    dominance: float = math.nan
    transcript: str = ""
    parallel_id: str = ""
    domain: str = "real"
    split: str = ""
    license: str = ""
    origin: str = ""
    correction: str = ""
    emobox_fold: int = 0

    @property
    def name(self) -> str:
        """What messages call this item."""
        return self.origin or (os.fspath(self.audio) if isinstance(self.audio, os.PathLike) else self.id)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An item of the source that gives no utterance.

    on_purpose: counted by reason and no fault of the source (other material that is shipped along); else it is listed
    as skipped, and too many of those stop the build.
    """

    name: str
    reason: str
    detail: str = ""
    on_purpose: bool = False
