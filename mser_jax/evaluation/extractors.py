"""From what a model wrote to the label it meant: named rules, so that a score says how it was read."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence

from mser_jax.corpora.emotions import normalize

THRESHOLD = 0.57  # of the Levenshtein ratio
# Label -> the words that stand for it, in any language.
Words = Mapping[str, Sequence[str]]


def plain(text: str) -> str:
    """Case folded, without accents, punctuation and surplus blanks: the form in which answers are compared."""
    kept = "".join(" " if unicodedata.category(c)[0] in "PSC" else c for c in text)
    return normalize(kept)


def levenshtein_ratio(a: str, b: str) -> float:
    """1 - distance / (len(a) + len(b)), where a replaced letter costs 2; in [0, 1], 1 for equal or empty texts.

    It is python-Levenshtein's and rapidfuzz's `ratio`: 2 × the longest common subsequence over both lengths.
    """
    if not a and not b:
        return 1.0
    row = [0] * (len(b) + 1)  # row[j]: longest common subsequence of what was read of a, and b[:j]
    for letter in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if letter == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b))


def exact(answer: str, words: Words) -> str | None:
    """The label one of whose words the answer is, but for case, accents and punctuation."""
    return _only({label for label, those in words.items() if plain(answer) in map(plain, those)})


def levenshtein(answer: str, words: Words) -> str | None:
    """The label of the word nearest to the answer, where their ratio is at least THRESHOLD and no other is as near."""
    text = plain(answer)
    if not text:
        return None
    ratios = {label: max(levenshtein_ratio(text, plain(word)) for word in those) for label, those in words.items()}
    best = max(ratios.values())
    return _only({label for label, ratio in ratios.items() if ratio == best}) if best >= THRESHOLD else None


def _only(labels: set[str]) -> str | None:
    return labels.pop() if len(labels) == 1 else None


# An extractor takes (answer, words) and returns a label, or None for an answer that names none, or two of them.
EXTRACTORS: dict[str, Callable[[str, Words], str | None]] = {"exact": exact, "levenshtein": levenshtein}
