"""Named extractors against answers as models give them; the ratio against a recursion by definition."""

import functools

import numpy as np
import pytest

from mser_jax.evaluation.extractors import EXTRACTORS, THRESHOLD, levenshtein_ratio, plain

WORDS = {
    "angry": ["anger", "colère", "Wut"],
    "happy": ["happiness", "joie", "高兴"],
    "sad": ["sadness", "tristesse", "悲伤"],
    "neutral": ["neutral", "Neutral"],
}


def by_definition(a, b):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        replace = distance(i - 1, j - 1) + (0 if a[i - 1] == b[j - 1] else 2)
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replace)

    return 1 - distance(len(a), len(b)) / (len(a) + len(b))


def test_ratio_equals_its_definition():
    rng = np.random.default_rng()
    for _ in range(200):
        a, b = ("".join(rng.choice(list("abcd"), rng.integers(0, 12))) for _ in range(2))
        expected = by_definition(a, b) if a or b else 1.0
        assert levenshtein_ratio(a, b) == pytest.approx(expected), (a, b)
    # As printed by python-Levenshtein's documentation.
    assert levenshtein_ratio("Hello world!", "Holly grail!") == pytest.approx(0.583333, abs=1e-6)
    assert levenshtein_ratio("Brian", "Jesus") == 0.0


@pytest.mark.parametrize(
    ("answer", "exact", "near"),
    [
        ("Anger.", "angry", "angry"),
        (" COLERE !\n", "angry", "angry"),
        ("高兴。", "happy", "happy"),
        ("sad", None, "sad"),  # ratio .6 to "sadness"
        ("happyness", None, "happy"),
        ("I do not know", None, None),
        ("", None, None),
        ("…", None, None),
        ("neutral", "neutral", "neutral"),  # one label's two equal words are no tie
    ],
)
def test_answers(answer, exact, near):
    assert EXTRACTORS["exact"](answer, WORDS) == exact
    assert EXTRACTORS["levenshtein"](answer, WORDS) == near


def test_threshold_and_ties():
    words = {"a": ["abcdefg"], "b": ["abcdefh"]}
    assert EXTRACTORS["levenshtein"]("abcdef", words) is None
    assert EXTRACTORS["levenshtein"]("abcdefg", words) == "a"
    assert EXTRACTORS["exact"]("gioia", {"happy": ["gioia"], "joy": ["Gioia"]}) is None
    assert 2 * 4 / (4 + 10) > THRESHOLD > 2 * 4 / (4 + 11)
    assert EXTRACTORS["levenshtein"]("abcd", {"x": ["abcdefghij"]}) == "x"
    assert EXTRACTORS["levenshtein"]("abcd", {"x": ["abcdefghijk"]}) is None


def test_plain():
    assert plain("  «Überraschung»!! ") == "uberraschung"
    assert plain("pleasant-surprise") == plain("Pleasant_Surprise") == "pleasant surprise"
