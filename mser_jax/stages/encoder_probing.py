"""The linear probe that a run is compared with: learned from its training utterances, scored as it is scored."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from etils import epath, epy
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax.evaluation import rows, zero_shot
from mser_jax.stages import scoring
from mser_jax.stages.base import Params
from mser_jax.stages.embedding import SpeechEmbedder
from mser_jax.stages.speech_data import SpeechData

# scikit-learn is imported when it is used: half of a program's start is its libraries.
with epy.lazy_imports():
    from mser_jax.evaluation import encoder_probe


class EncoderProbeEvaluator:
    """Reads the encoder's time-means of the training mix and of `config.evaluate`; writes results.json and its plots.

    The training data is opened for it, also where a checkpoint is scored. It says nothing of the heads: all that a run
    is ahead of it by comes from them.
    """

    name = "encoder_probe"

    def __init__(self, config: ConfigDict, embedder: SpeechEmbedder, data: SpeechData) -> None:
        """Raises ConfigError as scoring.Evaluation does, and where the training data is gone or lacks a label."""
        self._embed = embedder
        self._evaluation = scoring.Evaluation(config, data)
        with config_lib.blame("evaluate.encoder_probe"):
            self._heard = data.table.filter(emotions=self._evaluation.labels)
            encoder_probe.check_labels(self._heard["emotion"], self._evaluation.labels)

    def run(self, params: Params, step: int, run: epath.Path, folder: epath.Path) -> Iterator[tuple[str, float]]:
        """Yields the averages over languages and each language's UA.

        Raises:
            ConfigError: the training data is gone, or lacks one of the labels.
        """
        evaluation = self._evaluation
        heard = self._heard
        train, learned = self._embed.layer_means(params, heard)
        features, kept = self._embed.layer_means(params, evaluation.table)
        of_train = {name: heard[name][learned] for name in rows.COLUMNS}
        of_test = evaluation.columns(kept)
        # In training it is known what is said.
        known = np.array([[label == emotion for label in evaluation.labels] for emotion in of_train["emotion"]], float)

        @functools.cache
        def answers(statistics: str) -> tuple[np.ndarray, np.ndarray]:
            by_corpus = answers("corpus")[0] if statistics == "speaker" else None
            seen, _ = encoder_probe.standardised(train, of_train, statistics, known)
            moved, fallback = encoder_probe.standardised(features, of_test, statistics, by_corpus)
            with config_lib.blame("evaluate.encoder_probe"):
                return encoder_probe.probabilities(seen, of_train["emotion"], moved, evaluation.labels), fallback

        found: list[rows.Row] = []
        answered: dict[str, np.ndarray] = {}
        for adapt in evaluation.adapt:
            statistics = adapt.removesuffix(rows.TOGETHER)
            said, fallback = answers(statistics)
            if adapt != statistics:
                said = zero_shot.together(said, features, of_test, statistics, answers("corpus")[0])
            answered[adapt] = said
            found += evaluation.rows(said, kept, adapt=adapt, fallback=fallback)
        strict, _ = answers("none")
        results = evaluation.results(found, strict, kept, run=run, step=step, scoring="encoder_probe")
        if jax.process_index() == 0:
            written = evaluation.write(results, folder / self.name, strict, kept, answers=answered)
            logging.info("Written: %s", ", ".join(map(str, written)))
        yield from scoring.summary(results)
