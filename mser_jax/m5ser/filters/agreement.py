"""Emotion agreement: what a checkpoint of this project hears in an utterance, against what was asked for.

Models that were trained on real speech are unreliable on synthetic speech ("On the Emotion Understanding of Synthesized
Speech", 2026), and a model that was trained on the same engine agrees with its habits: look at the measures of both
before rejecting much by them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from mser_jax import run
from mser_jax.config import ConfigError
from mser_jax.m5ser.filters.base import Candidate, Verdict


@dataclasses.dataclass(frozen=True)
class EmotionAgreement:
    """Rejects where the model gives the emotion that was asked for too little probability.

    checkpoint: workdir of a training run, stage 1 or 2, or a checkpoint in it. step: of it, -1 the newest.
    labels: what the probabilities are shared among, separated by commas; every emotion of the plan is to be there.
    min_probability: .1 of six rejects where the model is rather sure of another.
    """

    checkpoint: str = ""
    step: int = -1
    labels: str = "angry,fear,happy,neutral,sad,surprise"
    min_probability: float = 0.1
    name = "emotion"
    reasons = ("emotion",)
    HOW = "e.g. --config.filters.emotion.checkpoint=DIR, the workdir of a training run"

    def __post_init__(self) -> None:
        """Refuses at the start what would fail in the first chunk."""
        if self.checkpoint:
            run.locate(self.checkpoint, self.step, what="filters.emotion.checkpoint")

    @functools.cached_property
    def _labels(self) -> tuple[str, ...]:
        return tuple(label.strip() for label in self.labels.split(","))

    @functools.cached_property
    def _score(self) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        # Here and not above: training reads what this package writes, and the generator runs without a model.
        from mser_jax import predict

        return predict.waveform_scorer(self.checkpoint, self.step, self._labels)

    def measure(self, batch: Sequence[Candidate]) -> list[Verdict]:
        """Measures agreement (probability of what was asked for) and agreement_rank (1: the most probable).

        Reason: emotion.

        Raises:
          ConfigError: an emotion is not among the labels, or the checkpoint cannot be read.
        """
        if unknown := {item.line.emotion for item in batch} - set(self._labels):
            raise ConfigError(f"filters.emotion.labels={self.labels} lacks {', '.join(sorted(unknown))} of the plan")
        verdicts = []
        for item, found in zip(batch, self._score([item.waveform for item in batch]), strict=True):
            probability = float(found[self._labels.index(item.line.emotion)])
            rank = 1 + int(np.count_nonzero(found > probability))
            measures = {"agreement": round(probability, 4), "agreement_rank": float(rank)}
            verdicts.append(Verdict(measures=measures, reason=self.name * (probability < self.min_probability)))
        return verdicts
