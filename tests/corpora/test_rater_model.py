import numpy as np
import pytest

from mser_jax.corpora.rater_model import dawid_skene


def votes(table):
    """{rater: labels of items 0, 1, …; None where he was not asked} -> the three columns."""
    rows = [(i, r, label) for r, labels in enumerate(table) for i, label in enumerate(labels) if label is not None]
    return tuple(np.array(rows).T)


def test_a_careless_rater_does_not_tip_a_tie():
    """Two say what is true; one says 0 whatever it is. Where only a good one and he were asked, votes are even."""
    truth = [0, 1, 2] * 12
    good = list(truth)
    other = [None if number >= 30 else label for number, label in enumerate(truth)]
    found = dawid_skene(*votes([good, other, [0] * 36]))
    np.testing.assert_array_equal(found.argmax(axis=1), truth)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[31, 1] > 0.9 and found[32, 2] > 0.9


def test_who_always_says_the_opposite_is_as_good_as_who_is_right():
    truth = np.arange(40) % 2
    found = dawid_skene(*votes([truth, truth, 1 - truth, np.where(np.arange(40) < 36, 1 - truth, None)]))
    assert (found[np.arange(40), truth] > 0.99).all() or (found[np.arange(40), truth] < 0.01).all()
    # An item more that only the contrary ones were asked about.
    table = [[*truth, None], [*truth, None], [*truth, None], [*(1 - truth), 1], [*(1 - truth), 1]]
    assert dawid_skene(*votes(table))[40, 0] > 0.99


def test_agreed_by_all_is_certain_and_one_vote_is_what_the_rater_is_worth():
    """Nine of ten times rater 1 says what the others say: alone he is believed about so much."""
    truth = np.arange(60) % 2
    wrong = np.arange(60) % 20 < 2
    table = [[*truth, None], [*truth, None], [*np.where(wrong, 1 - truth, truth), 1]]
    found = dawid_skene(*votes(table))
    assert found[:60].max(axis=1) == pytest.approx(1, abs=1e-3)
    assert found[60, 1] == pytest.approx(0.9, abs=0.02)


def test_who_says_the_same_of_everything_tells_nothing():
    """What only he was asked about is what things are like in general: three of four are 1."""
    truth = (np.arange(60) % 4 > 0).astype(int)
    found = dawid_skene(*votes([[*truth, None], [*truth, None], [0] * 61]))
    assert found[60, 1] == pytest.approx(0.75, abs=0.02)
