"""Emotion Q-Former: learned queries read the frames of an utterance (after BLIP-2, Li et al. 2023)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mser_jax.models.attention import stack_blocks
from mser_jax.models.layers import LayerNorm, Linear, dropout
from mser_jax.models.stack import run_layers
from mser_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes."""

    num_layers: int = 2
    num_queries: int = 4
    width: int = 144
    num_heads: int = 4
    mlp_width: int = 576
    dropout: float = 0.0
    remat: str = "none"  # a key of stack.REMAT_POLICIES


class EmotionQFormer(nnx.Module):
    """Pre-norm blocks of self-attention over the queries, cross-attention to the frames, MLP; final norm."""

    def __init__(self, cfg: QFormerConfig, memory_width: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.cfg, self.dtype = cfg, dtype
        # Unit variance, as the residual stream they start: queries that begin alike stay alike for long.
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (cfg.num_queries, cfg.width), jnp.float32))
        self.memory_norm = LayerNorm(memory_width, dtype=dtype)
        self.layers = stack_blocks(cfg, rngs, memory_width=memory_width, dtype=dtype)
        self.final_norm = LayerNorm(cfg.width, dtype=dtype)

    def __call__(self, frames: jax.Array, mask: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Frames [B, T, memory_width], mask bool [B, T] of valid frames -> queries [B, N, width]."""
        memory = self.memory_norm(frames)
        # Zeros taken from the memory give the queries the batch dimension together with its sharding.
        batch = jnp.zeros_like(memory[:, :1, :1])
        x = sharding.gather_weight(self.queries[...]).astype(self.dtype)[None] + batch
        query_rng, layers_rng = (None, None) if rng is None else jax.random.split(rng)
        x = dropout(x, self.cfg.dropout, query_rng)
        x = run_layers(self.layers, x, None, memory, mask, remat=self.cfg.remat, rng=layers_rng).last
        return self.final_norm(x)


class AttentionPool(nnx.Module):
    """Mean of the queries weighted by a softmax over one learned score each."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        # A bias would shift all scores alike.
        self.score = Linear(width, 1, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, width] -> f32 [B, width]."""
        weights = jax.nn.softmax(self.score(x), axis=1)
        return (weights * x).sum(1)
