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

from mser_jax.evaluation import zero_shot

# Inverse strength of the penalty: thousands of features, and a few thousand utterances in other languages.
_C = 1e-3


def standardised(
    features: np.ndarray, columns: Mapping[str, np.ndarray], adapt: str, min_utterances: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, d] less the mean of their group, by its standard deviation; arguments as of `zero_shot.centres`.

    Returns:
      [n, d] (unchanged for adapt="none"), and bool [n]: a speaker's few utterances that fell back to the corpus.
    """
    centres, fallback = zero_shot.centres(features, columns, adapt, min_utterances)
    if adapt == "none":
        return features, fallback
    centred = features - centres
    variances, _ = zero_shot.centres(np.square(centred), columns, adapt, min_utterances)
    return centred / np.sqrt(variances + 1e-12), fallback


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
