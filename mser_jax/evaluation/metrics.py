"""Figures of merit from confusion matrices, calibration error, and intervals that resample speakers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

FIGURES = ("ua", "wa", "macro_f1", "weighted_f1")


def confusion(references: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts [classes, classes], int64, of class ids in [0, classes): row reference, column prediction."""
    cells = np.asarray(references, np.int64) * classes + np.asarray(predictions, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that count; NaN where none does."""
    count = where.sum(-1)
    total = np.where(where, values, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.zeros(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)))
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def recall(matrix: np.ndarray) -> np.ndarray:
    """Recall [..., classes] of counts as in `figures`; NaN where a class has no references."""
    support = matrix.sum(-1)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.where(support > 0, _ratio(hits, support), np.nan)


def figures(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """UA, WA, macro-F1 and weighted-F1 of confusion counts, each [...] in [0, 1].

    Counts are [..., classes, classes], or [..., classes, classes + 1] where a last column counts the answers that
    named no class: they are wrong, and no class is blamed for them.

    - ua: unweighted accuracy = UAR = mean recall over the classes *present in the references*, as in
      scikit-learn's balanced_accuracy_score: a corpus without disgust is not punished for it, but a model
      that answers disgust is.
    - wa: weighted accuracy, the share of correct answers.
    - macro_f1: mean F1 over the classes present in references or predictions (scikit-learn's default).
    - weighted_f1: mean F1 weighted by the number of references.

    All are NaN for an empty matrix.
    """
    support, predicted = matrix.sum(-1), matrix.sum(-2)[..., : matrix.shape[-2]]
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    f1 = _ratio(2.0 * hits, support + predicted)
    total = support.sum(-1)
    empty = total == 0
    return {
        "ua": _mean_where(_ratio(hits, support), support > 0),
        "wa": np.where(empty, np.nan, _ratio(hits.sum(-1), total)),
        "macro_f1": _mean_where(f1, support + predicted > 0),
        "weighted_f1": np.where(empty, np.nan, _ratio((f1 * support).sum(-1), total)),
    }


def reliability(probabilities: np.ndarray, references: np.ndarray, bins: int = 15) -> dict[str, np.ndarray]:
    """What a reliability diagram shows of the top answers, over `bins` equal-width bins of confidence (lo, hi].

    Args:
      probabilities: [n, classes], rows sum to 1.
      references: class ids [n].
      bins: number of confidence bins.

    Returns:
      {"count", "confidence", "accuracy"}: [bins] each, the latter two means over a bin (NaN where it is empty).
    """
    confidence = probabilities.max(-1)
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    correct = probabilities.argmax(-1) == references
    means = [
        np.divide(np.bincount(which, weights=values, minlength=bins), count, out=np.full(bins, np.nan), where=count > 0)
        for values in (confidence, correct)
    ]
    return {"count": count, "confidence": means[0], "accuracy": means[1]}


def expected_calibration_error(probabilities: np.ndarray, references: np.ndarray, bins: int = 15) -> float:
    """ECE (Guo et al. 2017, arXiv 1706.04599, eq. 3) of the top answer; arguments as in `reliability`.

    Returns:
      Σ_b n_b/n · |accuracy_b − confidence_b|, in [0, 1]; NaN for n = 0.
    """
    if len(references) == 0:
        return float("nan")
    found = reliability(probabilities, references, bins)
    gap = np.abs(found["accuracy"] - found["confidence"])
    return float(np.nansum(found["count"] * gap) / len(references))


def bootstrap(by_speaker: np.ndarray, resamples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Figures of `resamples` draws of as many speakers as there are, with replacement.

    Utterances of one speaker are not independent, so speakers are drawn, each with all of its utterances.
    With a handful of speakers the percentile interval is too narrow; with one there is none.

    Args:
      by_speaker: confusion counts [speakers, …] as in `figures`.
      resamples: number of draws.
      seed: of the draws, fixed so that the same table gives the same interval.

    Returns:
      {figure: [resamples]} for every name of FIGURES.
    """
    speakers = len(by_speaker)
    times = np.random.default_rng(seed).multinomial(speakers, np.full(speakers, 1 / speakers), size=resamples)
    return figures(np.tensordot(times, by_speaker, axes=1))


def joint_draws(rows: Sequence[Sequence[str]], resamples: int = 1000, seed: int = 0) -> list[np.ndarray]:
    """Draw speakers once for all rows that they are in.

    Rows that share a speaker, directly or through others, are one population: as many of its speakers as there are
    are drawn with replacement, and each row takes its own of them. Rows that share none are drawn independently.

    Args:
      rows: the names of each row's speakers, distinct within a row; the same name is the same person.
      resamples: number of draws.
      seed: of the draws. A population's draws depend on it and on the names alone, not on other rows.

    Returns:
      For each row int64 [resamples, speakers]: how often each is drawn. A draw may leave a row without speakers.
    """
    populations: list[set[str]] = []
    for names in rows:
        mine = set(names)
        apart = [other for other in populations if not mine & other]
        populations = [*apart, mine.union(*(other for other in populations if mine & other))]
    times: dict[str, np.ndarray] = {}
    for population in filter(None, populations):
        names = sorted(population)
        rng = np.random.default_rng([seed, zlib.crc32("\0".join(names).encode())])
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        times |= dict(zip(names, drawn.T, strict=True))
    empty = np.zeros((resamples, 0), np.int64)
    return [np.stack([times[name] for name in names], 1) if len(names) else empty for names in rows]


def interval95(draws: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of bootstrap draws [resamples]; those that are NaN do not count."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)
