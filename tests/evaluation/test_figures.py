"""Figures against scikit-learn and plain loops; intervals against their promised coverage."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mser_jax.evaluation import metrics


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("absent", [None, 2])
def test_figures_equal_scikit_learn(rng, absent):
    classes = 5
    y = rng.integers(0, classes, 400)
    p = np.where(rng.random(400) < 0.5, y, rng.integers(0, classes, 400))
    if absent is not None:
        y[y == absent] = 0
        assert (p == absent).any()
    matrix = metrics.confusion(y, p, classes)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(y, p, labels=range(classes)))
    ours = metrics.figures(matrix)
    expected = {
        "ua": sk.recall_score(y, p, labels=np.unique(y), average="macro"),
        "wa": sk.accuracy_score(y, p),
        "macro_f1": sk.f1_score(y, p, average="macro"),
        "weighted_f1": sk.f1_score(y, p, average="weighted", zero_division=0),
    }
    assert set(ours) == set(metrics.FIGURES) == set(expected)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name
    recall = metrics.recall(matrix)
    for c in range(classes):
        if c == absent:
            assert np.isnan(recall[c])
        else:
            assert recall[c] == pytest.approx((p[y == c] == c).mean())


def test_figures_of_a_stack_are_those_of_each(rng):
    stack = rng.integers(0, 9, (7, 4, 4))
    together = metrics.figures(stack)
    for i, matrix in enumerate(stack):
        for name, value in metrics.figures(matrix).items():
            assert together[name][i] == pytest.approx(value)


def test_an_empty_matrix_has_no_figures():
    assert all(np.isnan(value) for value in metrics.figures(np.zeros((3, 3), int)).values())


def test_calibration_error_equals_a_loop(rng):
    n, classes, bins = 500, 4, 15
    logits = rng.normal(size=(n, classes)) * 2
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = rng.integers(0, classes, n)
    expected = 0.0
    for b in range(bins):
        inside = [i for i in range(n) if b / bins < p[i].max() <= (b + 1) / bins]
        if inside:
            accuracy = np.mean([p[i].argmax() == y[i] for i in inside])
            expected += len(inside) / n * abs(accuracy - np.mean([p[i].max() for i in inside]))
    assert metrics.expected_calibration_error(p, y) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_certain_answers():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert metrics.expected_calibration_error(sure, np.array([0, 1, 2, 0])) == 0
    assert metrics.expected_calibration_error(sure, np.array([1, 2, 0, 1])) == 1


def test_bootstrap_equals_resampled_utterances(rng):
    speakers, classes = 6, 3
    y = [rng.integers(0, classes, 20) for _ in range(speakers)]
    p = [rng.integers(0, classes, 20) for _ in range(speakers)]
    matrices = np.stack([metrics.confusion(a, b, classes) for a, b in zip(y, p, strict=True)])
    ours = metrics.bootstrap(matrices, resamples=3, seed=7)
    times = np.random.default_rng(7).multinomial(speakers, [1 / speakers] * speakers, size=3)
    assert (times.sum(1) == speakers).all()
    for draw in range(3):
        chosen = [s for s in range(speakers) for _ in range(times[draw, s])]
        yy, pp = np.concatenate([y[s] for s in chosen]), np.concatenate([p[s] for s in chosen])
        assert ours["ua"][draw] == pytest.approx(sk.balanced_accuracy_score(yy, pp))
        assert ours["macro_f1"][draw] == pytest.approx(sk.f1_score(yy, pp, average="macro"))


def test_bootstrap_repeats_itself(rng):
    matrices = rng.integers(0, 9, (300, 7, 7))
    first = metrics.bootstrap(matrices)
    np.testing.assert_array_equal(first["ua"], metrics.bootstrap(matrices)["ua"])
    assert first["ua"].shape == (1000,)
    assert not np.array_equal(first["ua"], metrics.bootstrap(matrices, seed=1)["ua"])


def test_speaker_intervals_cover_the_truth():
    """Speakers differ in how well they are understood: intervals over speakers hold, others do not."""
    rng = np.random.default_rng(0)
    speakers, utterances, trials, truth = 40, 30, 200, 0.6
    covered = {"speakers": 0, "utterances": 0}
    for _ in range(trials):
        skill = rng.beta(6, 4, speakers)  # mean 0.6
        y = rng.integers(0, 2, (speakers, utterances))
        p = np.where(rng.random(y.shape) < skill[:, None], y, 1 - y)
        by_speaker = np.stack([metrics.confusion(a, b, 2) for a, b in zip(y, p, strict=True)])
        by_utterance = np.stack([metrics.confusion([a], [b], 2) for a, b in zip(y.flat, p.flat, strict=True)])
        for name, matrices in (("speakers", by_speaker), ("utterances", by_utterance)):
            low, high = metrics.interval95(metrics.bootstrap(matrices, resamples=300)["ua"])
            covered[name] += low <= truth <= high
    assert 0.89 <= covered["speakers"] / trials <= 0.99
    assert covered["utterances"] / trials < 0.8


def test_answers_that_name_no_class_are_wrong_and_blame_none(rng):
    y, p = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    matrix = metrics.confusion(y, p, 5)[:4]
    ours = metrics.figures(matrix)
    labels = range(4)
    assert ours["ua"] == pytest.approx(sk.recall_score(y, p, labels=labels, average="macro"))
    assert ours["wa"] == pytest.approx(sk.accuracy_score(y, p))
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(y, p, labels=labels, average="macro"))
    assert ours["weighted_f1"] == pytest.approx(sk.f1_score(y, p, labels=labels, average="weighted"))
