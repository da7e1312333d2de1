"""The probe is the logistic regression it says it is; standardising takes out what is the group's and no label's."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from mser_jax.evaluation import encoder_probe

LABELS = ("sad", "angry", "neutral")


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def test_equals_a_penalised_regression_minimised_by_scipy(rng):
    """Balanced classes, standardised features, C = .001 and a free intercept: probabilities to 1e-4."""
    ids = rng.choice(3, 150, p=(0.6, 0.3, 0.1))
    train, test = rng.normal(size=(150, 5)) * 3 + rng.normal(size=(3, 5))[ids] + 7, rng.normal(size=(40, 5)) + 7
    mean, std = train.mean(0), train.std(0)
    x = (train - mean) / std
    weight = 150 / (3 * np.bincount(ids))[ids]

    def objective(flat):
        w, b = flat[:15].reshape(5, 3), flat[15:]
        errors = log_softmax(x @ w + b, axis=1)[np.arange(150), ids]
        return 0.5 * np.square(w).sum() - 1e-3 * (weight * errors).sum()

    flat = minimize(objective, np.zeros(18), method="BFGS", options={"gtol": 1e-9}).x
    expected = softmax((test - mean) / std @ flat[:15].reshape(5, 3) + flat[15:], axis=1)
    found = encoder_probe.probabilities(train, np.array(LABELS)[ids], test, LABELS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def columns_of(corpus, language, speaker):
    return {"corpus": corpus, "language": language, "speaker": speaker, "emotion": np.full(len(corpus), "sad")}


def test_groups_have_mean_0_and_deviation_1(rng):
    """Of the corpus in one language; of speakers as far as their means are kept (pooling.py)."""
    speaker = np.array(["a"] * 10 + ["b"] * 10 + ["few"] * 2 + ["a"] * 10)
    language = np.array(["de"] * 22 + ["it"] * 10)
    columns = columns_of(np.full(32, "c"), language, speaker)
    x = rng.normal(size=(32, 4)) + 3 + 20.0 * (speaker == "a")[:, None] - 5.0 * (speaker == "few")[:, None]
    answers = np.tile(np.eye(2), (16, 1))
    by_speaker, fallback = encoder_probe.standardised(x, columns, "speaker", answers)
    for name in "ab":
        group = (language == "de") & (speaker == name)
        np.testing.assert_allclose(by_speaker[group], (x[group] - x[group].mean(0)) / x[group].std(0), atol=0.2)
    assert fallback[22:].all(), "a speaker alone is the corpus"
    by_corpus, none = encoder_probe.standardised(x, columns, "corpus")
    for group in (language == "de", language == "it"):
        np.testing.assert_allclose(by_corpus[group], (x[group] - x[group].mean(0)) / x[group].std(0), atol=1e-9)
    np.testing.assert_allclose(by_speaker[22:], by_corpus[22:], atol=1e-9)
    assert not none.any()
    np.testing.assert_array_equal(encoder_probe.standardised(x, columns, "none")[0], x)


def test_a_feature_that_never_varies_stays_finite(rng):
    x = np.concatenate([rng.normal(size=(12, 2)), np.full((12, 1), 4.0)], 1)
    for speakers in (np.full(12, "s"), np.tile(["s", "t"], 6)):
        columns = columns_of(np.full(12, "c"), np.full(12, "de"), speakers)
        found, _ = encoder_probe.standardised(x, columns, "speaker", np.full((12, 4), 0.25))
        np.testing.assert_allclose(found[:, 2], 0, atol=1e-9)


def test_labels_must_have_been_heard(rng):
    emotions = np.array(["sad", "angry"] * 5)
    with pytest.raises(ValueError, match=r"probe of \['angry', 'neutral', 'sad'\] has \['angry', 'sad'\] to learn"):
        encoder_probe.probabilities(rng.normal(size=(10, 3)), emotions, rng.normal(size=(2, 3)), LABELS)
