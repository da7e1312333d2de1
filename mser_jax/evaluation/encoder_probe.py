"""The baseline of a run: what a linear probe hears in the encoder's states, with the same utterances to learn from.

A logistic regression on the time-means of all layers, classes weighted by their sizes. As probes of frozen speech
models are made (SUPERB, Yang et al. 2021, arXiv:2105.01051; EmoBox, Ma et al. 2024, arXiv:2406.07162), but with all
layers side by side in place of a learned mix. Adaptations standardise the features on both sides, as zero_shot.py
centres embeddings: by corpus (in one language) or by speaker, labels unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mser_jax.evaluation import pooling
from mser_jax.evaluation.rows import corpora_by_language

# Inverse strength of the penalty: thousands of features, and a few thousand utterances in other languages.
_C = 1e-3


def standardised(
    features: np.ndarray, columns: Mapping[str, np.ndarray], adapt: str, answers: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, d] less the mean of their group, by its standard deviation; arguments as of `zero_shot.centres`.

    A speaker's variance is shrunk towards the corpus's as far as the speaker's mean is.

    Returns:
      [n, d] (unchanged for adapt="none"), and bool [n] as of `zero_shot.centres`.
    """
    if adapt == "none":
        return features, np.zeros(len(features), bool)
    out, fallback = np.empty(features.shape), np.zeros(len(features), bool)
    for _, _, where in corpora_by_language(columns):
        mine, speakers = features[where], columns["speaker"][where]
        centre, shrunk = mine.mean(0), np.ones(len(mine))
        if adapt == "speaker":
            centre, shrunk = pooling.speaker_means(mine, answers[where], speakers)
            fallback[where] = shrunk > 0.5
        moved = mine - centre
        variance = np.tile(np.square(moved).mean(0), (len(mine), 1))
        for speaker in np.unique(speakers[shrunk < 1]):
            own = speakers == speaker
            variance[own] += (1 - shrunk[own, None]) * (np.square(moved[own]).mean(0) - variance[own])
        out[where] = moved / np.sqrt(variance + 1e-12)
    return out, fallback


def check_labels(emotions: Iterable[str], label_space: Sequence[str]) -> None:
    """Raises ValueError where a label has no utterance to learn from, or an emotion is no label."""
    heard = set(map(str, emotions))
    if heard != set(label_space):
        raise ValueError(f"a probe of {sorted(label_space)} has {sorted(heard)} to learn from")


def probabilities(
    train: np.ndarray, emotions: np.ndarray, features: np.ndarray, label_space: Sequence[str]
) -> np.ndarray:
    """What a probe that learned from train [m, d], emotions str [m], says of features [n, d]: [n, labels].

    Raises:
      ValueError: a label has no utterance to learn from, or an emotion is no label.
    """
    check_labels(emotions, label_space)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=_C, class_weight="balanced", max_iter=1000))
    probe.fit(train, emotions)
    return probe.predict_proba(features)[:, [list(probe.classes_).index(label) for label in label_space]]
