"""Multi-head attention and the transformer block that all towers are built from."""

from __future__ import annotations

import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.models.layers import LayerNorm, Linear, dropout, gelu
from mser_jax.models.stack import stack_layers
from mser_jax.parallel import sharding


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017), query head n of N reading key head n // (N / K).

    What jax.nn.dot_product_attention does, in two thirds of its time on CPU: heads stand before time in both products.

    Args:
        q: [B, T, N, H].
        k: [B, S, K, H].
        v: like k.
        mask: bool [B, T, S] or [B, 1, S], True = attend; a query that may attend to nothing attends evenly to all.
        bias: f32 [B, N, T, S] or [1, N, T, S], added to the logits.
        scale: of the logits; None = 1 / √H.
        softcap: c replaces a logit by c · tanh(logit / c) (Gemma 2).

    Returns:
        [B, T, N, H] in v's dtype; logits and softmax are f32.
    """
    batch, length, num_heads, head_dim = q.shape
    groups = num_heads // k.shape[2]
    # Of bf16 factors the products, also those of the backward pass, are bf16 ones that are summed in f32.
    precision = lax.DotAlgorithmPreset.BF16_BF16_F32 if q.dtype == jnp.bfloat16 else None
    product = functools.partial(jnp.einsum, precision=precision)
    q = q.reshape(batch, length, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    logits = product("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    logits = logits * (1.0 / math.sqrt(head_dim) if scale is None else scale)
    if bias is not None:
        logits = logits + bias.reshape(bias.shape[0], -1, groups, *bias.shape[2:])
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    y = product("bkgts,bksh->bkgth", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)


class PositionGate(nnx.Module):
    """How much of the relative position bias each query takes, from its own features (WavLM, Chen et al. 2022, §3.2).

    Two gates a head are the sigmoids of sums of four outputs of one projection that all heads share.
    """

    def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.projection = Linear(width // num_heads, 8, dtype=dtype, rngs=rngs)
        self.constant = nnx.Param(jnp.ones((1, num_heads, 1, 1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, width] -> factors f32 [B, heads, T, 1]."""
        y = self.projection(x.reshape(*x.shape[:2], self.num_heads, -1)).astype(jnp.float32)
        gates = jax.nn.sigmoid(y.reshape(*y.shape[:3], 2, 4).sum(-1)).transpose(0, 2, 1, 3)
        constant = sharding.gather_weight(self.constant[...])
        return gates[..., :1] * (gates[..., 1:] * constant - 1.0) + 2.0


class MultiHeadAttention(nnx.Module):
    """Attention with several heads, of x to itself or to a memory of another width.

    `key_bias=False` is Whisper's: that bias shifts all logits of a query alike.
    `gated_bias` is WavLM's: a position bias is added to the logits, scaled by a PositionGate.

    Raises:
        ValueError: `num_heads` does not divide `width`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        memory_width: int | None = None,
        key_bias: bool = True,
        gated_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        out_scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if width % num_heads:
            raise ValueError(f"attention: width {width} is not a multiple of num_heads {num_heads}; change either")
        self.num_heads = num_heads
        memory_width = width if memory_width is None else memory_width
        self.query = Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = Linear(memory_width, width, use_bias=key_bias, dtype=dtype, rngs=rngs)
        self.value = Linear(memory_width, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, scale=out_scale, rngs=rngs)
        self.gate = PositionGate(width, num_heads, dtype=dtype, rngs=rngs) if gated_bias else None

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        key_mask: jax.Array | None = None,
        position_bias: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, T, width], memory [B, S, memory_width] (default x), key_mask bool [B, S] -> [B, T, width].

        `position_bias` f32 [heads, T, S] goes with `gated_bias`.
        True in the mask = attend. With all its keys masked a row attends evenly to all: finite.
        """
        memory = x if memory is None else memory
        out, back = (sharding.split_by(self.num_heads, how) for how in ("out", "in"))

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        q, k, v = heads(self.query(x, out)), heads(self.key(memory, out)), heads(self.value(memory, out))
        mask = None if key_mask is None else key_mask[:, None]
        bias = None if self.gate is None else self.gate(x) * position_bias
        y = attend(q, k, v, mask=mask, bias=bias)
        return self.out(y.reshape(*x.shape[:2], -1), back)


class Block(nnx.Module):
    """Self-attention, cross-attention where `memory_width` is given, MLP with exact GELU; each residual.

    `norm_first=True` normalises the input of each branch (pre-norm: Whisper, Q-Former), False its sum with
    the residual (post-norm: BERT). `depth` is the number of such blocks in the stack: pre-norm branches
    start at 1/sqrt(branches in the stack), so that the residual stream does not grow with it (GPT-2).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        *,
        depth: int,
        memory_width: int | None = None,
        norm_first: bool = True,
        key_bias: bool = True,
        gated_bias: bool = False,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.norm_first, self.dropout = norm_first, dropout
        branches = depth * (2 if memory_width is None else 3)
        common = {"dtype": dtype, "rngs": rngs}
        scale = 1.0 / math.sqrt(branches) if norm_first else 1.0

        self.attention = MultiHeadAttention(
            width, num_heads, key_bias=key_bias, gated_bias=gated_bias, out_scale=scale, **common
        )
        self.attention_norm = LayerNorm(width, eps=norm_eps, dtype=dtype)
        if memory_width is None:
            self.cross_attention = self.cross_attention_norm = None
        else:
            self.cross_attention = MultiHeadAttention(
                width, num_heads, memory_width=memory_width, key_bias=key_bias, out_scale=scale, **common
            )
            self.cross_attention_norm = LayerNorm(width, eps=norm_eps, dtype=dtype)
        self.mlp_in = Linear(width, mlp_width, **common)
        self.mlp_out = Linear(mlp_width, width, scale=scale, **common)
        self.mlp_norm = LayerNorm(width, eps=norm_eps, dtype=dtype)

    def __call__(
        self,
        x: jax.Array,
        key_mask: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        position_bias: jax.Array | None = None,
        *,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, T, width], key_mask bool [B, T], memory [B, S, memory_width], its mask bool [B, S] -> like x.

        `position_bias` f32 [heads, T, T] is self-attention's, where `gated_bias` was asked for.
        `rng` draws the dropout of each branch; None switches it off.
        """
        rngs = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        branches = [(self.attention_norm, lambda y: self.attention(y, None, key_mask, position_bias), rngs[0])]
        if self.cross_attention is not None:
            cross = self.cross_attention
            branches.append((self.cross_attention_norm, lambda y: cross(y, memory, memory_mask), rngs[1]))
        branches.append((self.mlp_norm, self._mlp, rngs[2]))
        for norm, branch, key in branches:
            if self.norm_first:
                x = x + dropout(branch(norm(x)), self.dropout, key)
            else:
                x = norm(x + dropout(branch(x), self.dropout, key))
        return x

    def _mlp(self, y: jax.Array) -> jax.Array:
        out, back = (sharding.split_by(self.mlp_in.kernel.shape[-1], how) for how in ("out", "in"))
        return self.mlp_out(gelu(self.mlp_in(y, out)), back)


class BlockSizes(Protocol):
    """The sizes that every tower's config has."""

    @property
    def num_layers(self) -> int:
        """Blocks in the tower."""

    @property
    def width(self) -> int:
        """Of the residual stream."""

    @property
    def num_heads(self) -> int:
        """Of attention."""

    @property
    def mlp_width(self) -> int:
        """Of the hidden layer of the MLP."""

    @property
    def dropout(self) -> float:
        """Rate, on the output of each branch."""


def stack_blocks(cfg: BlockSizes, rngs: nnx.Rngs, **options: Any) -> Block:
    """`cfg.num_layers` blocks as one with stacked parameters, for `stack.run_layers`; `options` are Block's own."""

    def make(layer_rngs: nnx.Rngs) -> Block:
        sizes = {"depth": cfg.num_layers, "dropout": cfg.dropout}
        return Block(cfg.width, cfg.num_heads, cfg.mlp_width, **sizes, **options, rngs=layer_rngs)

    return stack_layers(make, cfg.num_layers, rngs)
