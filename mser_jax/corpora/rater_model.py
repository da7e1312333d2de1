"""Labels from many raters of unequal care: the model of Dawid & Skene, Applied Statistics 28, 1979."""

from __future__ import annotations

import numpy as np

_SMALLEST = 1e-10  # of a probability, before its logarithm


def dawid_skene(
    items: np.ndarray, raters: np.ndarray, labels: np.ndarray, iterations: int = 100, tolerance: float = 1e-5
) -> np.ndarray:
    """Probability of every label for every item, float64 [items, labels], by expectation maximisation.

    Every rater has a table of what he says where what is true; it is estimated along with what is true. Starts from
    the shares of the votes and ends when the evidence per vote rises by less than `tolerance`, as crowd-kit does.

    Args:
      items, raters, labels: of each vote, int [votes], numbered from 0 without gaps.
    """
    counts = np.zeros((items.max() + 1, labels.max() + 1))
    np.add.at(counts, (items, labels), 1)
    truth = counts / counts.sum(axis=1, keepdims=True)
    num_items, num_labels = truth.shape
    said, cells = raters * num_labels + labels, (raters.max() + 1) * num_labels
    evidence = -np.inf
    for iteration in range(iterations + 1):
        prior = np.log(truth.mean(axis=0).clip(_SMALLEST))
        says = np.stack([np.bincount(said, weights, cells) for weights in truth[items].T])
        says = says.reshape(num_labels, -1, num_labels).clip(_SMALLEST)  # [true, rater, said]
        log_says = np.log(says / says.sum(axis=2, keepdims=True)).reshape(num_labels, -1)[:, said]  # [true, votes]
        if iteration:
            entropy = -(truth * np.log(truth.clip(_SMALLEST))).sum()
            new = ((truth[items].T * (log_says + prior[:, None])).sum() + entropy) / len(items)
            if new - evidence < tolerance:
                break
            evidence = new
        score = prior + np.stack([np.bincount(items, weights, num_items) for weights in log_says], axis=1)
        truth = np.exp(score - score.max(axis=1, keepdims=True))
        truth /= truth.sum(axis=1, keepdims=True)
    return truth
