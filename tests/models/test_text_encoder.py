"""Padding on either side, length limit. Parity with transformers: tests/pretrained/test_bert_weights.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mser_jax.models.text_encoder import TextEncoder, TextEncoderConfig

OURS = {"num_layers": 3, "width": 32, "num_heads": 4, "mlp_width": 64, "vocab_size": 50, "max_positions": 40}


@pytest.mark.parametrize("offset", [0, 2])
def test_padding_on_either_side_changes_nothing(offset):
    encoder = TextEncoder(TextEncoderConfig(**OURS, position_offset=offset), rngs=nnx.Rngs(0))
    text = np.random.default_rng(0).integers(2, 50, (1, 7))
    alone = encoder(jnp.asarray(text), jnp.ones((1, 7), bool))
    for left in (0, 5, 12):
        tokens = np.full((1, 19), 49)
        tokens[:, left : left + 7] = text
        mask = np.zeros((1, 19), bool)
        mask[:, left : left + 7] = True
        padded = encoder(jnp.asarray(tokens), jnp.asarray(mask))
        np.testing.assert_allclose(padded[:, left : left + 7], alone, atol=1e-5, rtol=0)


def test_too_long_is_refused():
    cfg = TextEncoderConfig(**OURS, position_offset=2)
    with pytest.raises(ValueError, match="39 tokens, but the position table ends at 38"):
        TextEncoder(cfg, rngs=nnx.Rngs(0))(jnp.zeros((1, 39), int), jnp.ones((1, 39), bool))
