"""Padding, positions, length limit, layer mix. Parity with transformers: tests/pretrained/test_whisper_weights.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mser_jax.models.whisper import WhisperConfig, WhisperEncoder, sinusoids

TINY = WhisperConfig(num_layers=3, width=32, num_heads=4, mlp_width=64, num_mels=80)


@pytest.mark.parametrize("width", [64, 512, 1280])
def test_positions_equal_whispers(width):
    from transformers.models.whisper.modeling_whisper import sinusoids as theirs

    # One unit in the last place of torch's f32 exp, times 1500 frames.
    np.testing.assert_allclose(sinusoids(1500, width), theirs(1500, width).numpy(), atol=4e-5)


@pytest.mark.parametrize("strides", [(1, 2), (2, 2)])
@pytest.mark.parametrize("frames", [1, 2, 37, 64])
def test_padding_changes_nothing(strides, frames):
    cfg = WhisperConfig(num_layers=2, width=32, num_heads=4, mlp_width=64, conv_strides=strides)
    encoder = WhisperEncoder(cfg, rngs=nnx.Rngs(0))
    encoder.conv1.bias[...] = jnp.ones(32)  # what would leak from padded frames
    x = np.random.default_rng(1).standard_normal((1, frames, 80)).astype(np.float32)
    alone = encoder(x, jnp.ones((1, frames), bool), mix_logits=jnp.arange(3.0))
    padded = np.concatenate([x, np.full((1, 29, 80), 9.0, np.float32)], 1)
    batch = encoder(padded, (jnp.arange(frames + 29) < frames)[None], mix_logits=jnp.arange(3.0))
    n = cfg.num_frames(160 * frames)
    assert alone.last.shape[1] == n == alone.mask.sum() == batch.mask.sum() and batch.mask[0, :n].all()
    np.testing.assert_allclose(batch.last[:, :n], alone.last, atol=1e-5)
    np.testing.assert_allclose(batch.mixed[:, :n], alone.mixed, atol=1e-5)


def test_mix_is_the_weighted_sum_of_normalised_hidden_states():
    encoder = WhisperEncoder(TINY, rngs=nnx.Rngs(3))
    x = np.random.default_rng(2).standard_normal((2, 40, 80)).astype(np.float32)
    logits = jnp.array([0.3, -1.0, 2.0, 0.7])
    out = encoder(x, jnp.ones((2, 40), bool), mix_logits=logits, collect=True)
    states = np.asarray(out.hidden_states, np.float64)
    normal = (states - states.mean(-1, keepdims=True)) / np.sqrt(states.var(-1, keepdims=True) + 1e-5)
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(out.mixed, np.einsum("l,lbtd->btd", weights, normal), atol=1e-5)


def test_longer_than_30_s_is_refused():
    encoder = WhisperEncoder(TINY, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="30 s"):
        encoder(jnp.zeros((1, 3001, 80)), jnp.ones((1, 3001), bool))
