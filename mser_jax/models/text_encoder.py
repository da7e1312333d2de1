"""BERT/XLM-R-shaped text encoder (Devlin et al. 2019; Conneau et al. 2020); pooling is the caller's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mser_jax.models.attention import stack_blocks
from mser_jax.models.layers import Embedding, LayerNorm, dropout
from mser_jax.models.stack import run_layers


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes. The default reads bytes (ByT5's vocabulary).

    `position_offset` is the row of the position table of the first token: 0 in BERT, padding id + 1 = 2 in
    XLM-R, whose table is as much longer than the longest text.
    """

    family: ClassVar[str] = "bert"

    num_layers: int = 2
    width: int = 128
    num_heads: int = 4
    mlp_width: int = 512
    vocab_size: int = 384
    max_positions: int = 512  # rows of the table
    position_offset: int = 0
    token_types: int = 1  # rows of the table, of which row 0 is used (2 in BERT)
    norm_eps: float = 1e-12
    dropout: float = 0.0
    remat: str = "none"  # a key of stack.REMAT_POLICIES


class TextEncoder(nnx.Module):
    """Token, position and type embeddings, norm, post-norm blocks."""

    def __init__(self, cfg: TextEncoderConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.cfg = cfg
        self.tokens = Embedding(cfg.vocab_size, cfg.width, dtype=dtype, rngs=rngs)
        self.positions = Embedding(cfg.max_positions, cfg.width, dtype=dtype, rngs=rngs)
        self.token_types = Embedding(cfg.token_types, cfg.width, dtype=dtype, rngs=rngs)
        self.embedding_norm = LayerNorm(cfg.width, eps=cfg.norm_eps, dtype=dtype)
        self.layers = stack_blocks(cfg, rngs, norm_first=False, norm_eps=cfg.norm_eps, dtype=dtype)

    def __call__(self, tokens: jax.Array, token_mask: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Tokens int [B, L], token_mask bool [B, L] (True = text) -> [B, L, width]; ignore masked rows.

        Positions count unmasked tokens, so padding may stand on either side.

        Raises:
            ValueError: L exceeds what the position table holds.
        """
        cfg = self.cfg
        room = cfg.max_positions - cfg.position_offset
        if tokens.shape[1] > room:
            raise ValueError(
                f"TextEncoder: {tokens.shape[1]} tokens, but the position table ends at {room}. "
                "Cut the text or raise max_positions."
            )
        positions = jnp.maximum(jnp.cumsum(token_mask, axis=1) - 1, 0) + cfg.position_offset
        x = self.tokens(tokens) + self.positions(positions) + self.token_types(jnp.zeros_like(tokens))
        embed_rng, layers_rng = (None, None) if rng is None else jax.random.split(rng)
        x = dropout(self.embedding_norm(x), cfg.dropout, embed_rng)
        return run_layers(self.layers, x, token_mask, remat=cfg.remat, rng=layers_rng).last
