"""What stands before the transformer of the wav2vec2 family: waveform → frames → frames that know their place."""

from __future__ import annotations

import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.models.layers import Conv1d, Embedding, LayerNorm, convolve, fan_in_normal, gelu
from mser_jax.models.stack import REMAT_POLICIES
from mser_jax.parallel import sharding


class FeatureSizes(Protocol):
    """What of `wav2vec2.Wav2Vec2Config` matters here."""

    width: int
    conv_dims: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_norm: str
    conv_bias: bool
    position_kernel: int
    position_groups: int
    remat: str


def normalise_waveform(waveform: jax.Array, mask: jax.Array) -> jax.Array:
    """f32 [B, S], valid samples bool [B, S] -> zero mean, unit variance over the valid samples; the others 0.

    As `transformers.Wav2Vec2FeatureExtractor(do_normalize=True)`.
    """
    count = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = jnp.where(mask, waveform, 0.0).sum(-1, keepdims=True) / count
    centred = jnp.where(mask, waveform - mean, 0.0)
    return centred * lax.rsqrt(jnp.square(centred).sum(-1, keepdims=True) / count + 1e-7)


def conv_lengths(lengths: jax.Array, kernels: tuple[int, ...], strides: tuple[int, ...]) -> list[jax.Array]:
    """Frames after each unpadded convolution; for ints and for int arrays."""
    out = []
    for size, stride in zip(kernels, strides, strict=True):
        lengths = (lengths - size) // stride + 1
        out.append(lengths)
    return out


class TimeNorm(nnx.Module):
    """Each channel normalised over the valid frames of its utterance, in f32: GroupNorm with a group a channel.

    (Wu & He 2018.) torch's takes padded frames into its statistics, this one does not.
    """

    def __init__(self, width: int, *, eps: float = 1e-5, dtype: DTypeLike = jnp.float32):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, T, width], mask bool [B, T] -> [B, T, width]; masked frames are finite and mean nothing."""
        x, valid = x.astype(jnp.float32), mask[..., None]
        count = jnp.maximum(valid.sum(1, keepdims=True), 1)
        x = x - jnp.where(valid, x, 0.0).sum(1, keepdims=True) / count
        variance = jnp.where(valid, jnp.square(x), 0.0).sum(1, keepdims=True) / count
        scale, bias = sharding.gather_weight(self.scale[...]), sharding.gather_weight(self.bias[...])
        return (x * lax.rsqrt(variance + self.eps) * scale + bias).astype(self.dtype)


class ConvLayer(nnx.Module):
    """Convolution without padding, norm over channels ("layer"), over time ("time") or none (""), exact GELU."""

    def __init__(self, sizes: tuple[int, int, int, int], norm: str, *, bias: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        in_features, out_features, size, stride = sizes
        options = {"stride": stride, "padded": False, "use_bias": bias, "dtype": dtype, "rngs": rngs}
        self.conv = Conv1d(in_features, out_features, size, **options)
        self.layer_norm = LayerNorm(out_features, dtype=dtype) if norm == "layer" else None
        self.time_norm = TimeNorm(out_features, dtype=dtype) if norm == "time" else None

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B, T, in], mask bool [B, frames] of the output -> [B, frames, out]."""
        x = self.conv(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        elif self.time_norm is not None:
            x = self.time_norm(x, mask)
        return gelu(x)


class FeatureExtractor(nnx.Module):
    """The convolutions of wav2vec 2.0 (Baevski et al. 2020, §2): 400 samples every 320 in the published models.

    `conv_norm="layer"` normalises the channels in each layer (large models, XLS-R); "group" normalises the first
    layer over time (base models). In the latter, transformers lets padding into the statistics, as base models
    are fed without attention mask; here statistics are of valid frames only. So a padded utterance gets what
    transformers gives it alone.
    """

    def __init__(self, cfg: FeatureSizes, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernels, self.strides, self.remat = cfg.conv_kernels, cfg.conv_strides, cfg.remat
        sizes = zip((1, *cfg.conv_dims), cfg.conv_dims, cfg.conv_kernels, cfg.conv_strides, strict=False)
        norms = ["layer" if cfg.conv_norm == "layer" else "" if i else "time" for i in range(len(cfg.conv_dims))]
        options = {"bias": cfg.conv_bias, "dtype": dtype, "rngs": rngs}
        self.layers = nnx.List(ConvLayer(size, norm, **options) for size, norm in zip(sizes, norms, strict=True))

    def __call__(self, waveform: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Waveform [B, S], 0 after int [B] valid samples -> frames [B, T, conv_dims[-1]], mask bool [B, T].

        The samples that a valid frame sees are all valid.
        """
        x = waveform[..., None]
        for layer, frames in zip(self.layers, conv_lengths(lengths, self.kernels, self.strides), strict=True):
            graphdef, params = nnx.split(layer)
            num_frames = (x.shape[1] - layer.conv.kernel.shape[0]) // layer.conv.stride + 1
            mask = jnp.arange(num_frames)[None] < frames[:, None]

            def run(params: nnx.State, x: jax.Array, mask: jax.Array, graphdef: nnx.GraphDef = graphdef) -> jax.Array:
                return nnx.merge(graphdef, params)(x, mask)

            # Ten seconds are 32,000 frames × 512 channels after the first layer: worth computing again.
            if self.remat != "none":
                run = jax.checkpoint(run, policy=REMAT_POLICIES[self.remat])
            x = run(params, x, mask)
        return x, mask


class PositionalConv(nnx.Module):
    """x + GELU(convolution of x): position from what is near (Baevski et al. 2020, §2), grouped, with zeros around.

    The kernel is weight-normalised (Salimans & Kingma 2016) tap by tap: gain [size, 1, 1] times `direction`
    [size, width / groups, width] over its norm of each tap.
    """

    def __init__(self, width: int, size: int, groups: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if width % groups:
            raise ValueError(f"positional convolution: width {width} is not a multiple of its {groups} groups")
        self.groups, self.dtype = groups, dtype
        shape = (size, width // groups, width)
        direction = fan_in_normal(rngs.params(), shape, size * width // groups)
        self.direction = nnx.Param(direction)
        self.gain = nnx.Param(jnp.sqrt(jnp.square(direction).sum((1, 2), keepdims=True)))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, width], 0 where masked -> [B, T, width]."""
        direction, gain = self.direction[...], sharding.gather_weight(self.gain[...])
        # Normalised before it is gathered: the norms are few bytes, the kernel then travels in `dtype`.
        kernel = direction * (gain * lax.rsqrt(jnp.square(direction).sum((1, 2), keepdims=True)))
        kernel = sharding.gather_weight(kernel.astype(self.dtype))
        size = kernel.shape[0]  # even ones see a frame more of the past
        y = convolve(x, kernel, pad=(size // 2, (size - 1) // 2), groups=self.groups)
        return x + gelu(y + sharding.gather_weight(self.bias[...].astype(self.dtype)))


def position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket int32 [2 length - 1] of each relative position key - query = 1 - length … length - 1 (T5, WavLM).

    Half of the buckets are for keys that come later; in each half, half are single distances, the others grow
    geometrically up to `max_distance`.
    """
    relative = np.arange(1 - length, length)
    half, distance = num_buckets // 2, np.abs(relative)
    exact = half // 2
    # f32 as in torch: the boundaries of the buckets depend on its roundings.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = growth / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum((np.float32(exact) + growth).astype(np.int32), half - 1)
    return (np.where(relative > 0, half, 0) + np.where(distance < exact, distance, far)).astype(np.int32)


class RelativePositions(nnx.Module):
    """WavLM's relative position bias: one table [buckets, heads], read once, shared by all layers."""

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.embedding = Embedding(num_buckets, num_heads, rngs=rngs)

    def __call__(self, length: int) -> jax.Array:
        """-> f32 [heads, length, length] for query × key."""
        rows = self.embedding(jnp.asarray(position_buckets(length, self.num_buckets, self.max_distance)))
        # Row i of the result is the window of `rows` that starts at length - 1 - i. Rows of 2 · length elements,
        # read as rows of one less, are shifted by one each: no gather of length² indices, no scatter backwards.
        rows = jnp.pad(rows.T, ((0, 0), (0, 1)))
        shifted = jnp.tile(rows, (1, length))[:, : length * (2 * length - 1)]
        return shifted.reshape(-1, length, 2 * length - 1)[:, :, length - 1 :]
