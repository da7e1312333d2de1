"""The difference of two runs on the same utterances, with a paired bootstrap over speakers.

Two runs that answer the same utterances err on the same ones, so the intervals of each say little of their difference.
Speakers are drawn once for both runs and for all rows that they are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mser_jax.evaluation import metrics, rows
from mser_jax.evaluation.predictions import Predictions, label_ids

_KEY = ("corpus", "language", "id")


def paired(a: Predictions, b: Predictions, adapt: tuple[str, str]) -> tuple[Predictions, Predictions]:
    """The utterances that both scored, in one order.

    Args:
      a, b: of the two runs.
      adapt: which adaptation of either.

    Raises:
      ValueError: label spaces, utterances or their references differ, or there is no such adaptation.
    """
    spaces = [list(found.facts["label_space"]) for found in (a, b)]
    if sorted(spaces[0]) != sorted(spaces[1]):
        raise ValueError(f"the label spaces differ: {', '.join(spaces[0])} and {', '.join(spaces[1])}")
    sides = []
    for name, found, labels in (("first", a, adapt[0]), ("second", b, adapt[1])):
        mine = found.where(found["adapt"] == labels)
        mine = mine.where(label_ids(mine["reference"], spaces[0]) >= 0)
        if not len(mine["id"]):
            raise ValueError(f"the {name} has no scored utterance with adapt={labels}; there are {_values(found)}")
        keys = list(zip(*(mine[column] for column in _KEY), strict=True))
        if len(set(keys)) != len(keys):
            raise ValueError(f"the {name} holds {len(keys) - len(set(keys))} utterances twice")
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
        sides.append((mine.where(order), set(keys)))
    (left, ours), (right, theirs) = sides
    if ours != theirs:
        example = "/".join(min(ours ^ theirs))
        raise ValueError(
            f"the utterances differ: {len(ours - theirs)} only in the first, {len(theirs - ours)} only in the second, "
            f"such as {example}; evaluate both on the same corpora, split and label space"
        )
    for column in ("reference", "speaker"):
        if (wrong := left[column] != right[column]).any():
            raise ValueError(f"the {column} of {wrong.sum()} utterances differs, such as {left['id'][wrong.argmax()]}")
    return left, right


def _values(found: Predictions) -> str:
    return ", ".join(sorted(set(found["adapt"].tolist()))) or "none at all"


def compare(
    a: Predictions, b: Predictions, adapt: tuple[str, str] = ("none", "none"), *, resamples: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """UA of two runs on the same utterances, and the paired bootstrap of its difference.

    Args:
      a, b: predictions of the two runs.
      adapt: which adaptation of either.
      resamples: joint draws of speakers.
      seed: of the draws.

    Returns:
      One dict a corpus × language, and a last one with corpus "" for the average over languages: `corpus`, `language`,
      `n`, `speakers`, `ua` [2], `difference` (second less first), `ci95` and `p`. `p` is two-sided: twice the share of
      draws on the other side of 0, at least 2 / (resamples + 1). `ci95` and `p` are None where a row has one speaker.

    Raises:
      ValueError: as `paired`.
    """
    left, right = paired(a, b, adapt)
    labels = list(left.facts["label_space"])
    pairs = sorted(set(zip(left["language"].tolist(), left["corpus"].tolist(), strict=True)))
    found, tables = [], []
    for language, corpus in pairs:
        where = (left["language"] == language) & (left["corpus"] == corpus)
        names = np.array([str(s) or f"unknown of {corpus} in {language}" for s in left["speaker"][where]], str)
        tables.append(tuple(_by_speaker(side.where(where), names, labels) for side in (left, right)))
        ua = [float(metrics.figures(np.sum(list(counts.values()), 0))["ua"]) for counts in tables[-1]]
        found.append({"corpus": corpus, "language": language, "n": int(where.sum()), "ua": ua})
    draws = [rows.ua_draws([pair[side] for pair in tables], resamples, seed) for side in (0, 1)]
    moved = draws[1] - draws[0]
    weights = rows.language_weights([row["language"] for row in found])
    for row, one, (counts, _) in zip(found, moved, tables, strict=True):
        row |= {"speakers": len(counts)} | _figures(row["ua"], one if len(counts) > 1 else None)
    ua = (weights @ np.array([row["ua"] for row in found])).tolist()
    speakers = {name for counts, _ in tables for name in counts}
    mean = {"corpus": "", "language": "", "n": len(left["id"]), "ua": ua, "speakers": len(speakers)}
    enough = all(row["speakers"] > 1 for row in found)
    return [*found, mean | _figures(ua, weights @ moved if enough else None)]


def _by_speaker(side: Predictions, speakers: np.ndarray, labels: Sequence[str]) -> dict[str, np.ndarray]:
    classes = len(labels)
    references, answers = (label_ids(side[name], labels) for name in ("reference", "answer"))
    answers = np.where(answers < 0, classes, answers)
    return {
        name: metrics.confusion(references[speakers == name], answers[speakers == name], classes + 1)[:-1]
        for name in np.unique(speakers).tolist()
    }


def _figures(ua: Sequence[float], draws: np.ndarray | None) -> dict[str, Any]:
    out: dict[str, Any] = {"difference": ua[1] - ua[0], "ci95": None, "p": None}
    if draws is None or not np.isfinite(draws).any():
        return out
    draws = draws[np.isfinite(draws)]
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    return out | {"ci95": list(metrics.interval95(draws)), "p": min(1.0, 2 * float(beyond + 1) / (len(draws) + 1))}
