"""Rotary frequencies and rotations against transformers, for every kind that is implemented."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from mser_jax.models.rope import Rope, rotate

KINDS = {
    "default": (Rope(theta=5e5), {}),
    "linear": (Rope(theta=1e4, kind="linear", factor=8.0), {"factor": 8.0}),
    "llama3": (
        Rope(theta=5e5, kind="llama3", factor=32.0, original_positions=8192),
        {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "llama3, short": (
        Rope(kind="llama3", factor=4.0, low_freq_factor=0.5, high_freq_factor=8.0, original_positions=64),
        {"factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 8.0, "original_max_position_embeddings": 64},
    ),
    "yarn": (
        Rope(theta=1e6, kind="yarn", factor=4.0, original_positions=32768, attention_factor=0.1 * np.log(4.0) + 1),
        {"factor": 4.0, "original_max_position_embeddings": 32768},
    ),
    "yarn, untruncated": (
        Rope(
            kind="yarn",
            factor=4.0,
            original_positions=128,
            beta_fast=16.0,
            beta_slow=2.0,
            truncate=False,
            attention_factor=0.7,
        ),
        {
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
            "attention_factor": 0.7,
        },
    ),
}


@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize("name", KINDS)
def test_equals_transformers(name, head_dim):
    """Frequencies 3e-7 relative (f32 has 1.2e-7), rotations 1e-5 absolute to position 60, 1e-3 to 4000."""
    ours, scaling = KINDS[name]
    kind = ours.kind
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=65536,
        rope_parameters={"rope_type": kind, "rope_theta": ours.theta, **scaling},
    )
    theirs = LlamaRotaryEmbedding(config)
    frequencies = ours.frequencies(head_dim)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, theirs.inv_freq.numpy(), rtol=3e-7, atol=0)
    assert theirs.attention_scaling == pytest.approx(ours.attention_factor, rel=1e-12)
    if kind != "default":  # the stretching does something at these sizes
        assert not np.allclose(frequencies, Rope(theta=ours.theta).frequencies(head_dim), rtol=1e-2)

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 3, head_dim)).astype(np.float32)
    for highest, tolerance in ((60, 1e-5), (4000, 1e-3)):
        positions = rng.integers(0, highest, (2, 7))
        cos, sin = theirs(torch.zeros(1), torch.from_numpy(positions))
        reference, _ = apply_rotary_pos_emb(torch.from_numpy(x), torch.from_numpy(x), cos, sin, unsqueeze_dim=2)
        out = rotate(jnp.asarray(x), jnp.asarray(positions), jnp.asarray(frequencies), ours.attention_factor)
        np.testing.assert_allclose(out, reference.numpy(), atol=tolerance, rtol=0)


def test_half_precision_rotates_in_f32():
    x = np.random.default_rng(0).standard_normal((1, 4, 2, 16)).astype(np.float32)
    positions = jnp.arange(1000, 1004)[None]
    frequencies = jnp.asarray(Rope().frequencies(16))
    half = jnp.asarray(x, jnp.bfloat16)
    out = rotate(half, positions, frequencies, 1.0)
    assert out.dtype == jnp.bfloat16
    exact = rotate(half.astype(jnp.float32), positions, frequencies, 1.0)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='longrope', expected one of"):
        Rope(kind="longrope")
