"""What a filter of finished audio is: it measures, and passes or names a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mser_jax.m5ser.lines import Line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """An utterance to judge. waveform: int16 [time], 16 kHz. line: what was asked for."""

    waveform: np.ndarray
    line: Line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """measures: name -> value, kept in the provenance. reason: "" passes."""

    measures: Mapping[str, float]
    reason: str = ""


class Filter(Protocol):
    """Judges utterances, a chunk at a time; the same ones give the same verdicts in any process.

    reasons: all that its verdicts may give.
    """

    name: str
    reasons: tuple[str, ...]

    def measure(self, batch: Sequence[Candidate]) -> Sequence[Verdict]:
        """A verdict for each, in order."""
        ...
