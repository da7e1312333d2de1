"""Transductive scoring: the utterances of a corpus are answered together, as clusters of what the encoder says of them.

What an unheard corpus shifts is where the emotions lie, less how they lie to each other. So every label gets a Gaussian
over the encoder's features, all with one covariance, and expectation maximisation fits them to the unlabelled
utterances; each utterance's own answer is its prior over the labels, which says which cluster is which emotion and
holds what lies between two. TransCLIP (Zanella et al. 2024, arXiv:2406.01837) does so for images, with a penalty on
the distance from the text's answers where this has a prior, and a graph of neighbours that this does without.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

# Directions of largest variance that are clustered: hundreds more add noise to the covariance.
_COMPONENTS = 60
# A covariance of d directions wants several times d utterances.
_UTTERANCES_PER_COMPONENT = 2
# Of the mean variance, added to the covariance's diagonal.
_RIDGE = 0.1
# How much an utterance's own answer counts: a model is too sure of itself in a language that it has not heard.
_PRIOR_WEIGHT = 0.5
_MOST_ITERATIONS, _TOLERANCE = 50, 1e-3
_SMALLEST = np.finfo(np.float32).tiny


def directions(features: np.ndarray) -> np.ndarray:
    """The principal components that are clustered: features [n, d] -> float64 [n, ≤ 60], of mean variance 1.

    Features that are all alike have none: [n, 0].
    """
    values = np.asarray(features, np.float64)
    left, sizes, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    rank = int((sizes > 1e-6 * max(sizes.max(initial=0.0), 1e-12)).sum())
    kept = min(_COMPONENTS, len(values) // _UTTERANCES_PER_COMPONENT, rank)
    values = left[:, :kept] * sizes[:kept]
    return values / np.sqrt(np.maximum(values.var(0).mean(), _SMALLEST)) if kept else values


def transduce(probabilities: np.ndarray, features: np.ndarray) -> np.ndarray:
    """What utterances say together: the posterior of each one's cluster, after EM that starts from `probabilities`.

    Args:
      probabilities: [n, labels], what each utterance says by itself.
      features: [n, d] of one corpus, already free of what is known to be no emotion (its speaker's mean).

    Returns:
      float64 [n, labels], rows that sum to 1. Fewer utterances than four a label say nothing together: they keep
      `probabilities`, and so does a corpus whose features are all alike.
    """
    num_labels = probabilities.shape[1]
    answers = np.log(np.maximum(np.asarray(probabilities, np.float64), _SMALLEST))
    found = softmax(answers, axis=-1)
    values = directions(features) if len(features) >= 4 * num_labels else np.zeros((len(features), 0))
    if not values.shape[1]:
        return found
    total, floor = values.T @ values, _RIDGE * len(values) * np.eye(values.shape[1])
    for _ in range(_MOST_ITERATIONS):
        sizes = found.sum(0)
        means = found.T @ values / np.maximum(sizes, 1e-9)[:, None]
        within = (total - (means.T * sizes) @ means + floor) / len(values)
        # log N(x; μ_k, Σ) but for what all labels share: x·Σ⁻¹μ_k − μ_k·Σ⁻¹μ_k / 2.
        slopes = np.linalg.solve(within, means.T)
        before = found
        found = softmax(_PRIOR_WEIGHT * answers + values @ slopes - 0.5 * (means.T * slopes).sum(0), axis=-1)
        if np.abs(found - before).max() < _TOLERANCE:
            break
    return found
