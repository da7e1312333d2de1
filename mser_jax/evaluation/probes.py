"""What else an embedding gives away: how well a linear probe finds the language or the speaker in it.

An embedding of emotion that is language-agnostic keeps a language probe near chance; one that heeds only the emotion
keeps a speaker probe there. The probe is a logistic regression on standardised embeddings, cross-validated: the
language is asked of speakers the probe has not met (else it would recognise voices), the speaker of utterances it has
not met.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5


def probe(embeddings: np.ndarray, target: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Any]:
    """Balanced accuracy of a cross-validated linear probe.

    Args:
      embeddings: [n, d], finite.
      target: str [n], the class of each; classes with fewer than FOLDS members, and "", are left out.
      groups: str [n]; no group is in the training and the test side of a fold. None: folds by row.

    Returns:
      "balanced_accuracy" (mean recall), "chance" (1 / classes), "classes", "n".

    Raises:
      ValueError: fewer than two classes, or groups, are left.
    """
    names, counts = np.unique(target, return_counts=True)
    kept = [name for name, count in zip(names, counts, strict=True) if name and count >= FOLDS]
    if len(kept) < 2:
        raise ValueError(
            f"a probe needs two classes of at least {FOLDS} members; there are {counts.tolist()} of {names.tolist()}"
        )
    where = np.isin(target, kept)
    x, y = np.asarray(embeddings, np.float64)[where], target[where]
    groups = None if groups is None else groups[where]
    count = FOLDS if groups is None else min(FOLDS, len(np.unique(groups)))
    if count < 2:
        raise ValueError("a probe by groups needs two groups (speakers), to ask one what was learned from the other")
    folds = (StratifiedKFold if groups is None else StratifiedGroupKFold)(count, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=300))
    told = cross_val_predict(model, x, y, cv=folds, groups=groups)
    return {
        "balanced_accuracy": float(balanced_accuracy_score(y, told)),
        "chance": 1 / len(kept),
        "classes": len(kept),
        "n": int(where.sum()),
    }


def language_probe(embeddings: np.ndarray, language: np.ndarray, speaker: np.ndarray) -> dict[str, Any]:
    """`probe` for the language, of speakers that the probe has not met."""
    return probe(embeddings, language, speaker)


def speaker_probe(embeddings: np.ndarray, speaker: np.ndarray) -> dict[str, Any]:
    """`probe` for the speaker, of utterances that the probe has not met."""
    return probe(embeddings, speaker)
