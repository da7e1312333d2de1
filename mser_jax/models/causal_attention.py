"""What decoder LLMs are built from: RMS norm, and causal attention with grouped heads, RoPE, windows and a cache."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mser_jax.models.attention import attend
from mser_jax.models.layers import Linear
from mser_jax.models.rope import rotate
from mser_jax.parallel import sharding


class RMSNorm(nnx.Module):
    """x / root mean square over the last axis (Zhang & Sennrich 2019), computed in f32, times `scale`; `dtype` out.

    `cast_first`: rounded to `dtype` before it is scaled (Llama, Qwen), not after (Gemma).
    """

    def __init__(self, width: int, *, eps: float = 1e-6, cast_first: bool = True, dtype: DTypeLike = jnp.float32):
        self.eps, self.cast_first, self.dtype = eps, cast_first, dtype
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., width]."""
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        between = self.dtype if self.cast_first else jnp.float32
        return (x.astype(between) * sharding.gather_weight(self.scale[...].astype(between))).astype(self.dtype)


class KVCache(NamedTuple):
    """Keys and values of what was read so far, in S slots that all rows fill together.

    Slots that hold padding, or nothing yet, are masked. Positions are a row's own, so prompts of different
    lengths share the slots. A cache of one row is read by many after `repeat`.
    """

    keys: jax.Array  # [L, B, S, kv_heads, head_dim], rotated
    values: jax.Array  # [L, B, S, kv_heads, head_dim]
    positions: jax.Array  # int32 [B, S]
    mask: jax.Array  # bool [B, S]
    index: jax.Array  # int32 []: the next free slot

    @property
    def size(self) -> int:
        """Slots S."""
        return self.mask.shape[1]

    def next_positions(self, mask: jax.Array) -> jax.Array:
        """Positions int32 [B, T] of further tokens with this mask [B, T]: counted on, padding not counted."""
        return count_positions(mask, self.mask.sum(axis=1, dtype=jnp.int32))

    def repeat(self, rows: int) -> KVCache:
        """A cache of one row as one of `rows` equal rows."""
        keys, values = (jnp.broadcast_to(x, (x.shape[0], rows, *x.shape[2:])) for x in (self.keys, self.values))
        positions, mask = (jnp.broadcast_to(x, (rows, x.shape[1])) for x in (self.positions, self.mask))
        return KVCache(keys, values, positions, mask, self.index)

    def placed_like(self, x: jax.Array) -> KVCache:
        """With rows sharded as those of x [B, ...] are (Explicit meshes; elsewhere the compiler sees to it)."""
        axes = jax.typeof(x).sharding.spec[0]
        if axes is None:
            return self
        heads = "tensor" if sharding.split_by(self.keys.shape[3], "out") else None
        keys, values = (sharding.constrain(y, P(None, axes, None, heads, None)) for y in (self.keys, self.values))
        positions, mask = (sharding.constrain(y, P(axes, None)) for y in (self.positions, self.mask))
        return KVCache(keys, values, positions, mask, self.index)

    def marked(self, positions: jax.Array, mask: jax.Array) -> KVCache:
        """With positions and mask [B, T] of the tokens that come next in their slots; index and keys as before."""
        return self._replace(
            positions=lax.dynamic_update_slice_in_dim(self.positions, positions, self.index, axis=1),
            mask=lax.dynamic_update_slice_in_dim(self.mask, mask, self.index, axis=1),
        )

    def filled(self, keys: jax.Array, values: jax.Array) -> KVCache:
        """With new keys and values [L, B, T, kv_heads, head_dim] of all layers; the index moves on by T."""
        return self._replace(
            keys=lax.dynamic_update_slice_in_dim(self.keys, keys, self.index, axis=2),
            values=lax.dynamic_update_slice_in_dim(self.values, values, self.index, axis=2),
            index=self.index + keys.shape[2],
        )


def count_positions(mask: jax.Array, start: jax.Array | int = 0) -> jax.Array:
    """Mask bool [B, T], start int [B] -> positions int32 [B, T] that count unmasked tokens from `start`."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0) + jnp.asarray(start, jnp.int32)[..., None]


class OfLayer(NamedTuple):
    """What tells one layer of a stack from another: with a leading axis L outside, without it inside the scan."""

    frequencies: jax.Array  # f32 [head_dim / 2], of RoPE
    attention_factor: jax.Array  # f32 []: RoPE's, for sines and cosines
    window: jax.Array  # int32 []: keys that a query sees, itself included
    keys: jax.Array | None = None  # [B, S, kv_heads, head_dim]: the layer's cache
    values: jax.Array | None = None


class Readable(NamedTuple):
    """The keys that there are, for all layers: T new ones, or the S slots of a cache."""

    positions: jax.Array  # int32 [B, S]
    mask: jax.Array  # bool [B, S]
    index: jax.Array | None = None  # int32 []: the slot of the first new key
    allowed: jax.Array | None = None  # bool [T, S]: what else decides, for all rows alike; None = nothing


def visible(positions: jax.Array, readable: Readable, window: jax.Array) -> jax.Array:
    """bool [B, T, S]: the keys that each query at positions [B, T] sees.

    Those at its own position and the `window - 1` before it. Positions count, not slots: holes in a row,
    where prompts were padded, change nothing. Where tokens form a tree, `readable.allowed` parts its branches.
    """
    distance = positions[:, :, None] - readable.positions[:, None, :]
    seen = readable.mask[:, None, :] & (distance >= 0) & (distance < window)
    return seen if readable.allowed is None else seen & readable.allowed


class CausalAttention(nnx.Module):
    """Grouped-query attention (Ainslie et al. 2023) to the past, with RoPE and, where asked for, q/k norms."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        scale: float,
        softcap: float | None,
        qkv_bias: bool,
        out_bias: bool,
        norm: dict | None,
        out_scale: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """`scale` multiplies the logits; `norm`: options of RMSNorm for queries and keys, None for no such norms."""
        self.num_kv_heads, self.head_dim, self.scale, self.softcap = num_kv_heads, head_dim, scale, softcap
        common = {"dtype": dtype, "rngs": rngs}
        self.query = Linear(width, num_heads * head_dim, use_bias=qkv_bias, **common)
        self.key = Linear(width, num_kv_heads * head_dim, use_bias=qkv_bias, **common)
        self.value = Linear(width, num_kv_heads * head_dim, use_bias=qkv_bias, **common)
        self.out = Linear(num_heads * head_dim, width, use_bias=out_bias, scale=out_scale, **common)
        self.query_norm = None if norm is None else RMSNorm(head_dim, **norm)
        self.key_norm = None if norm is None else RMSNorm(head_dim, **norm)

    def __call__(
        self, x: jax.Array, own: OfLayer, positions: jax.Array, readable: Readable
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x [B, T, width] at positions int [B, T] -> [B, T, width], and the new keys and values [B, T, kv_heads, …]."""

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], -1, self.head_dim)

        # Query heads read the key heads of their own device only: both must be cut alike, or neither is.
        out, back = (sharding.split_by(self.num_kv_heads, how) for how in ("out", "in"))
        q, k, v = heads(self.query(x, out)), heads(self.key(x, out)), heads(self.value(x, out))
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = (rotate(y, positions, own.frequencies, own.attention_factor) for y in (q, k))
        new = k, v
        if own.keys is not None:
            k = lax.dynamic_update_slice_in_dim(own.keys, k, readable.index, axis=1)
            v = lax.dynamic_update_slice_in_dim(own.values, v, readable.index, axis=1)
        mask = visible(positions, readable, own.window)
        y = attend(q, k, v, mask=mask, scale=self.scale, softcap=self.softcap)
        return self.out(y.reshape(*x.shape[:2], -1), back), new
