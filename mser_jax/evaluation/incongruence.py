"""Does a model listen, or read? Utterances whose words say one emotion and whose voice another.

A model that recognises words and scores them does well where both agree, as they mostly do in recordings. Here they
do not: what its answers follow, voice or words, is told apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mser_jax.corpora.emotions import EMOTIONS
from mser_jax.evaluation.rows import primary

_ANY = "|".join(EMOTIONS)
# language-voice-sentence-content-emotion, of M5SER-mini; a language may hold a hyphen too.
_ID = re.compile(rf".+-.+-.+-({_ANY})-({_ANY})")
# Emotional words against the voice; matter-of-fact words in an emotional voice.
KINDS = ("conflicting_words", "neutral_words")


def content_emotion(record_id: str) -> str:
    """Emotion of the *words* of an M5SER-mini record ("neutral" for a matter of fact); "" of any other record."""
    match = _ID.fullmatch(record_id)
    return match[1] if match else ""


def incongruence(
    predictions: np.ndarray, voice: Sequence[str], words: Sequence[str], language: Sequence[str], labels: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """How often answers follow the voice, and how often the words, where the two differ.

    Args:
      predictions: int [n], index in `labels`; anything else is an answer that names none.
      voice, words: canonical emotion of either, str [n]; "" unknown.
      language: BCP-47, str [n].
      labels: the label space; utterances with an emotion outside it, or without a conflict, are left out.

    Returns:
      {kind of KINDS: {primary language: figures, …, "all": figures}}; what has no utterances is left out.
      Figures: `n`, and `by_voice` and `by_words`, the recall of each emotion of the voice (of
      the words), averaged over the emotions; in "all" they are means over languages.
    """
    voice, words = np.asarray(voice, str), np.asarray(words, str)
    languages = np.array([primary(tag) or "unknown" for tag in language])
    names = np.array([*labels, ""])
    answer = names[np.where((predictions >= 0) & (predictions < len(labels)), predictions, len(labels))]
    clash = (voice != words) & np.isin(voice, labels) & np.isin(words, labels)
    groups = {"conflicting_words": clash & (words != "neutral"), "neutral_words": clash & (words == "neutral")}
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, where in groups.items():
        rows = {
            name: {
                "n": int(here.sum()),
                "by_voice": _recall(answer, voice, here),
                "by_words": _recall(answer, words, here),
            }
            for name in np.unique(languages[where]).tolist()
            if (here := where & (languages == name)).any()
        }
        if rows:
            mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in ("by_voice", "by_words")}
            out[kind] = {**rows, "all": {"n": int(where.sum()), **mean}}
    return out


def _recall(answer: np.ndarray, reference: np.ndarray, where: np.ndarray) -> float:
    """Mean over the emotions in reference[where] of the share that is answered with them."""
    hit = answer == reference
    return float(np.mean([hit[where & (reference == name)].mean() for name in np.unique(reference[where])]))


def format_table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The figures as text for the terminal; "" where there are none."""
    lines = []
    for kind, rows in found.items():
        lines.append(f"{kind.replace('_', ' ')} (n): accuracy by voice, by words")
        lines += [
            f"  {name:<4}({row['n']})  {row['by_voice']:.3f}  {row['by_words']:.3f}" for name, row in rows.items()
        ]
    return "\n".join(lines)
