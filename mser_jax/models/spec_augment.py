"""SpecAugment on log-mel features: bands of time and of frequency replaced by the utterance's mean."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
    """How many bands, and how wide at most. No bands of a kind, or width 0: off."""

    time_masks: int = 0
    time_width: int = 40  # frames of 10 ms
    max_time_share: float = 0.2  # of the valid frames, a band (p in the paper)
    freq_masks: int = 0
    freq_width: int = 20  # mel bins


def _bands(rng: jax.Array, num: int, max_width: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Union of `num` random bands within [0, length): max_width and length int [B] -> bool [B, size].

    Widths are uniform on 0 … max_width and starts uniform on 0 … length - width, as in the paper.
    """
    draws = jax.random.uniform(rng, (2, length.shape[0], num))
    width = jnp.floor(draws[0] * (max_width[:, None] + 1))
    start = jnp.floor(draws[1] * (length[:, None] - width + 1))
    position = jnp.arange(size)[None, :, None]
    return ((position >= start[:, None]) & (position < (start + width)[:, None])).any(-1)


def spec_augment(features: jax.Array, mask: jax.Array, rng: jax.Array, cfg: SpecAugmentConfig) -> jax.Array:
    """Time and frequency masking (Park et al. 2019, §2; no time warping).

    Args:
        features: f32 [B, T, mels].
        mask: bool [B, T], the valid frames: a run from the first one. Bands lie within them.
        rng: the key of this batch.
        cfg: numbers and widths.

    Returns:
        Features with the masked cells set to the utterance's mean over valid cells: what 0 is in the paper,
        whose features have mean zero as Whisper's have not. Invalid frames come back untouched. With no bands at
        all, features of any rank (a waveform) come back as they are.
    """
    if not (cfg.time_masks and cfg.time_width) and not (cfg.freq_masks and cfg.freq_width):
        return features
    time_rng, freq_rng = jax.random.split(rng)
    num_valid = mask.sum(-1)
    mels = features.shape[-1]
    hidden = jnp.zeros_like(features, bool)
    if cfg.time_masks and cfg.time_width:
        widest = jnp.minimum(cfg.time_width, jnp.floor(cfg.max_time_share * num_valid))
        hidden |= _bands(time_rng, cfg.time_masks, widest, num_valid, features.shape[1])[:, :, None]
    if cfg.freq_masks and cfg.freq_width:
        # Zeros of num_valid's sharding, so that rows are drawn as they are laid out.
        widest = jnp.zeros_like(num_valid) + min(cfg.freq_width, mels)
        hidden |= _bands(freq_rng, cfg.freq_masks, widest, jnp.zeros_like(num_valid) + mels, mels)[:, None, :]
    valid = mask[:, :, None]
    mean = jnp.where(valid, features, 0.0).sum((1, 2), keepdims=True) / jnp.maximum(num_valid[:, None, None] * mels, 1)
    return jnp.where(hidden & valid, mean, features)
