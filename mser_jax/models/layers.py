"""The small parts of every network: parameters in f32, arithmetic in `dtype`, normalisation in f32.

Each layer gathers its own parameters where it uses them (`sharding.gather_weight`), so under FSDP only the
weights of the layer at work are whole, also inside a scan over layers. Weights are cast to `dtype` *before*
they are gathered: in bf16 that is half the traffic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.parallel import sharding

if TYPE_CHECKING:
    from mser_jax.models.lora import LoRA


def fan_in_normal(key: jax.Array, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> jax.Array:
    """f32 normal values truncated at two standard deviations, standard deviation `scale / sqrt(fan_in)`."""
    # .8796: what truncation at ±2 leaves of the standard deviation of a unit normal.
    std = scale / math.sqrt(fan_in) / 0.87962566103423978
    return std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """`x` with a share `rate` set to 0 and the rest divided by 1 - rate; `x` itself if rng is None."""
    if rng is None or rate == 0.0:
        return x
    # Drawn with the sharding of x: each device makes the random bits of its own rows only.
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def normalise(x: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Layer normalisation without parameters over the last axis: zero mean, unit variance, f32 out."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def gelu(x: jax.Array) -> jax.Array:
    """x · Φ(x), exact (Hendrycks & Gimpel 2016), in x's dtype.

    In f32 as PyTorch writes it, by erf: jax.nn.gelu's erfc keeps the tail of short dtypes exact, and on CPU takes three
    times as long.
    """
    if x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1.0 + lax.erf(x * math.sqrt(0.5)))


class Linear(nnx.Module):
    """[..., in] -> [..., out]: x @ kernel [in, out] (+ bias [out]).

    `scale` multiplies the fan-in initialisation (for the last layer of a residual branch). `lora.attach` puts an
    adapter beside the kernel, whose output is added.
    """

    lora: LoRA | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(fan_in_normal(rngs.params(), (in_features, out_features), in_features, scale))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None
        self.lora = None

    def __call__(self, x: jax.Array, split: str | None = None) -> jax.Array:
        """[..., in] -> [..., out] in `dtype`; `split` "out" or "in": what stays over `tensor` (sharding.matmul)."""
        x = x.astype(self.dtype)
        y = sharding.matmul(x, self.kernel[...].astype(self.dtype), split)
        if self.lora is not None:
            y = y + self.lora(x, split)
        return y if self.bias is None else y + sharding.gather_bias(self.bias[...].astype(self.dtype), split)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in f32 (Ba et al. 2016); returns `dtype`."""

    def __init__(self, width: int, *, eps: float = 1e-5, dtype: DTypeLike = jnp.float32):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., width]."""
        scale, bias = sharding.gather_weight(self.scale[...]), sharding.gather_weight(self.bias[...])
        return (normalise(x, self.eps) * scale + bias).astype(self.dtype)


class Embedding(nnx.Module):
    """Rows of a table [num, width]; integer ids [...] -> [..., width] in `dtype`. Initialised N(0, .02²)."""

    def __init__(self, num: int, width: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dtype = dtype
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (num, width), jnp.float32))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Ids must lie in [0, num): others are clamped or become NaN, as jax indexing has it."""
        # The table is not gathered: rows travel, not a vocabulary.
        return sharding.lookup(self.table[...], ids).astype(self.dtype)


def convolve(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, pad: tuple[int, int] = (0, 0), groups: int = 1
) -> jax.Array:
    """x [batch, time, in] with a kernel [size, in / groups, out]; so many zeros before and after it."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,),
        [pad],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


class Conv1d(nnx.Module):
    """Convolution over time with kernel [size, in, out] and a stride.

    Zeros stand around the input, size // 2 at each end, or none with `padded=False`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        size: int,
        *,
        stride: int = 1,
        padded: bool = True,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stride, self.dtype = stride, dtype
        self.pad = (size // 2,) * 2 if padded else (0, 0)
        self.kernel = nnx.Param(fan_in_normal(rngs.params(), (size, in_features, out_features), size * in_features))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, time, in] -> [batch, frames, out].

        Frames are ceil(time / stride) for odd sizes if padded, else (time - size) // stride + 1.
        """
        kernel = sharding.gather_weight(self.kernel[...].astype(self.dtype))
        y = convolve(x.astype(self.dtype), kernel, stride=self.stride, pad=self.pad)
        return y if self.bias is None else y + sharding.gather_weight(self.bias[...].astype(self.dtype))
