import dataclasses

import numpy as np
import pytest

from mser_jax.corpora.emotions import LABEL_SPACES
from mser_jax.m5ser.prosody import JITTER, TARGETS, draw_prosody

CONTINUOUS = ("pitch_st", "range_oct", "rate_oct", "volume_db", "tilt_db")


def test_targets_are_the_six_emotions_and_neutral_is_zero():
    assert set(TARGETS) == set(LABEL_SPACES[6])
    assert not any(dataclasses.astuple(TARGETS["neutral"]))


@pytest.mark.parametrize("emotion", sorted(TARGETS))
def test_intensity_scales_the_target_and_leaves_the_jitter(emotion):
    for seed in range(3):
        calm, half, full = (draw_prosody(emotion, i, np.random.default_rng(seed)) for i in (0, 0.5, 1))
        for name in CONTINUOUS:
            target = getattr(TARGETS[emotion], name)
            assert getattr(half, name) - getattr(calm, name) == pytest.approx(target / 2)
            assert getattr(full, name) - getattr(calm, name) == pytest.approx(target)


def test_moments_over_many_draws():
    rng = np.random.default_rng(0)
    draws = [draw_prosody("surprise", 0.9, rng) for _ in range(4000)]
    for name in CONTINUOUS:
        values = np.array([getattr(d, name) for d in draws])
        sigma = getattr(JITTER, name)
        assert values.mean() == pytest.approx(0.9 * getattr(TARGETS["surprise"], name), abs=4 * sigma / 4000**0.5)
        assert values.std() == pytest.approx(sigma, rel=0.06)
    rises = [d.rise for d in draws]
    assert set(rises) == {0.0, 1.0}
    assert np.mean(rises) == pytest.approx(0.9 * TARGETS["surprise"].rise, abs=0.03)


@pytest.mark.parametrize("emotion, intensity", [("bored", 1.0), ("sad", -0.1), ("sad", np.nan), ("sad", np.inf)])
def test_refuses(emotion, intensity):
    with pytest.raises(ValueError, match=r"bored|intensity"):
        draw_prosody(emotion, intensity, np.random.default_rng(0))
