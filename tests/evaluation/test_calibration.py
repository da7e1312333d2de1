"""Temperature against a dense search and against a known truth; reliability against loops; the diagram is drawn."""

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.special import log_softmax, softmax

from mser_jax.evaluation import calibration, metrics, plots


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def drawn(rng, n=4000, classes=5, sharpness=2.0):
    """Logits, and references drawn from their softmax: calibrated at temperature 1."""
    logits = rng.normal(size=(n, classes)) * sharpness
    return logits, (softmax(logits, -1).cumsum(-1) < rng.random((n, 1))).sum(-1).clip(0, classes - 1)


@pytest.mark.parametrize("wrong", [0.4, 1.0, 3.0])
def test_fitting_undoes_a_wrong_temperature(rng, wrong):
    logits, y = drawn(rng)
    p = softmax(logits / wrong, -1).astype(np.float32)
    found = calibration.fit_temperature(p, y)
    assert found == pytest.approx(1 / wrong, rel=0.12)
    grid = np.geomspace(0.05, 20, 4000)
    losses = [-log_softmax(np.log(p.astype(float)) / t, -1)[np.arange(len(y)), y].mean() for t in grid[::40]]
    assert calibration.negative_log_likelihood(p, y, found) <= min(losses) + 1e-9
    after = calibration.tempered(p, found)
    np.testing.assert_array_equal(after.argmax(-1), p.argmax(-1))
    np.testing.assert_allclose(after.sum(-1), 1, atol=1e-12)
    if wrong != 1:
        assert metrics.expected_calibration_error(after, y) < metrics.expected_calibration_error(p, y)


def test_certain_answers_stay_finite(rng):
    p = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 50)]
    assert calibration.fit_temperature(p, p.argmax(-1)) >= calibration.TEMPERATURES[0] * 0.99
    assert np.isfinite(calibration.negative_log_likelihood(p, (p.argmax(-1) + 1) % 3, 0.05))
    assert calibration.fit_temperature(p, (p.argmax(-1) + 1) % 3) > 19
    np.testing.assert_allclose(calibration.tempered(p, 1.0), p, atol=1e-30)
    with pytest.raises(ValueError, match="no utterance"):
        calibration.fit_temperature(p[:0], np.zeros(0, int))


def test_reliability_equals_a_loop(rng):
    logits, y = drawn(rng, n=300)
    p = softmax(logits, -1)
    found = metrics.reliability(p, y, bins=10)
    for b in range(10):
        inside = [i for i in range(300) if b / 10 < p[i].max() <= (b + 1) / 10]
        assert found["count"][b] == len(inside)
        if inside:
            assert found["accuracy"][b] == pytest.approx(np.mean([p[i].argmax() == y[i] for i in inside]))
            assert found["confidence"][b] == pytest.approx(np.mean([p[i].max() for i in inside]))
        else:
            assert np.isnan(found["accuracy"][b])


def test_reliability_diagram(rng, tmp_path):
    logits, y = drawn(rng, n=200)
    diagrams = {
        name: metrics.reliability(softmax(logits / t, -1), y) for name, t in (("as it is", 1.0), ("fitted", 2.0))
    }
    image = imread(plots.save_reliability(diagrams, tmp_path / "a" / "reliability.png"))
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.05
