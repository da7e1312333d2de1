"""Fixtures over corpora in memory."""

import pytest
from fake_corpora import make_corpus

from mser_jax.data import sources


@pytest.fixture
def two_corpora():
    """Uneven in size, length, language and emotion; labelled."""
    lengths = (0.15, 0.25, 0.35, 0.55, 0.7)
    a = [("en", e, lengths[i % 5]) for i in range(40) for e in ("angry", "happy", "sad")]
    a += [("de", e, lengths[i % 5]) for i in range(13) for e in ("angry", "happy")]
    b = [("en-GB", "neutral", lengths[i % 4]) for i in range(37)]
    b += [("zh", e, lengths[i % 3]) for i in range(11) for e in ("angry", "surprise")]
    return sources.join([(make_corpus("a", a, parallel=True), 1.0), (make_corpus("b", b), 2.0)])
