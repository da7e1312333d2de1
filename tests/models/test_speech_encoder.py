"""Mixing and pooling of frames against float64 loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax.models.layers import normalise
from mser_jax.models.speech_encoder import frame_weights, mix_states, pool_frames


@pytest.mark.parametrize("size", [1, 2, 3, 8, 50])
def test_pooled_frames_are_means_over_valid_ones(size):
    rng = np.random.default_rng(size)
    x = rng.normal(size=(3, 17, 2, 5)).astype(np.float32)
    lengths = (17, 4, 0)
    mask = np.arange(17)[None] < np.array(lengths)[:, None]
    x[~mask] = np.nan  # whatever stands there must not matter
    pooled, pooled_mask = pool_frames(jnp.where(jnp.array(mask)[..., None, None], x, 1e9), jnp.array(mask), size)
    assert pooled.shape[1] == -(-17 // size)
    for row, length in enumerate(lengths):
        frames = -(-length // size)
        assert pooled_mask[row].sum() == frames and pooled_mask[row, :frames].all()
        for frame in range(frames):
            expected = x[row, frame * size : min((frame + 1) * size, length)].astype(np.float64).mean(0)
            np.testing.assert_allclose(pooled[row, frame], expected, atol=1e-6)


def test_pooling_and_mixing_commute():
    """So features may be kept pooled: what is trained from them is the same network."""
    rng = np.random.default_rng(0)
    states = np.asarray(normalise(rng.normal(size=(2, 13, 4, 6)).astype(np.float32)))
    mask, logits = jnp.arange(13)[None] < jnp.array([[13], [6]]), jnp.array([0.3, -1.0, 2.0, 0.0])
    first = pool_frames(mix_states(states, logits), mask, 4)[0]
    last = mix_states(pool_frames(states, mask, 4)[0], logits)
    np.testing.assert_allclose(first, last, atol=1e-6)
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(mix_states(states, logits), np.einsum("btld,l->btd", states, weights), atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_frame_weights_give_the_mean_of_pooled_frames(size):
    rng = np.random.default_rng(size)
    x, lengths = rng.normal(size=(3, 17, 5)).astype(np.float32), (17, 4, 0)
    mask = jnp.arange(17)[None] < jnp.array(lengths)[:, None]
    found = np.einsum("bt,btd->bd", frame_weights(mask, size), x)
    for row, length in enumerate(lengths[:2]):
        chunks = [x[row, a : min(a + size, length)].astype(np.float64).mean(0) for a in range(0, length, size)]
        np.testing.assert_allclose(found[row], np.mean(chunks, 0), atol=1e-6)
    assert not found[2].any(), "no frame: zeros"
