"""Whisper's log-mel front end on the device, aware of padding.

400-sample Hann windows every 160 samples of 16 kHz audio, power spectrum, slaney mel filters, log10, floor 8
below the utterance's maximum, (x + 4) / 4 (Radford et al. 2022; `transformers.WhisperFeatureExtractor`).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import librosa
import numpy as np
from jax import lax

SAMPLING_RATE = 16_000
WINDOW = 400
HOP = 160
MAX_SAMPLES = 30 * SAMPLING_RATE
_FLOOR = 1e-10


@functools.lru_cache
def mel_filters(num_mels: int) -> np.ndarray:
    """Slaney-normalised mel filterbank f32 [201, num_mels] for 0 … 8 kHz."""
    return librosa.filters.mel(sr=SAMPLING_RATE, n_fft=WINDOW, n_mels=num_mels, norm="slaney").T.copy()


def flops(num_samples: int, num_mels: int) -> float:
    """Forward operations for one utterance: 2.5 n log2 n for a real FFT of n samples, and the mel product."""
    return -(-num_samples // HOP) * (2.5 * WINDOW * math.log2(WINDOW) + 2 * (WINDOW // 2 + 1) * num_mels)


def _frames(waveform: jax.Array) -> jax.Array:
    """f32 [B, S] -> windows centred on every 160th sample, [B, ceil(S / 160), 400]."""
    num_frames = -(-waveform.shape[1] // HOP)
    # As torch.stft(center=True) on audio zero-padded to 30 s: mirrored at 0 and 30 s, zeros between.
    end = (num_frames - 1) * HOP + WINDOW // 2
    zeros_to = max(min(end, MAX_SAMPLES), WINDOW // 2 + 1)
    x = jnp.pad(waveform, ((0, 0), (0, zeros_to - waveform.shape[1])))
    x = jnp.pad(x, ((0, 0), (WINDOW // 2, max(0, end - zeros_to))), mode="reflect")
    # A window is five blocks of 80 samples, a hop two: strided slices instead of a gather.
    block = HOP // 2
    blocks = x[:, : (num_frames * 2 + 3) * block].reshape(x.shape[0], -1, block)
    return jnp.concatenate([blocks[:, i : i + 2 * num_frames - 1 : 2] for i in range(WINDOW // block)], axis=-1)


def log_mel(waveform: jax.Array, num_samples: jax.Array, num_mels: int = 80) -> tuple[jax.Array, jax.Array]:
    """Features of padded utterances; what an utterance gets does not depend on how much padding follows it.

    Args:
        waveform: [B, S] at 16 kHz, int16, or float in [-1, 1]; what follows `num_samples` is ignored.
        num_samples: int [B], 0 ≤ num_samples ≤ S.
        num_mels: 80, or 128 (Whisper large-v3).

    Returns:
        Features f32 [B, T, num_mels] with T = ceil(S / 160), 0 in invalid frames, and the mask bool [B, T] of
        valid frames: the first ceil(num_samples / 160).

    Raises:
        ValueError: S is longer than 30 s.
    """
    if waveform.shape[1] > MAX_SAMPLES:
        raise ValueError(
            f"log_mel: waveform has {waveform.shape[1]} samples ({waveform.shape[1] / SAMPLING_RATE:.1f} s), "
            "but Whisper's front end ends at 30 s (480000 samples at 16 kHz). Cut the audio first."
        )
    x = waveform.astype(jnp.float32)
    if jnp.issubdtype(waveform.dtype, jnp.integer):
        x = x / 32768.0
    x = jnp.where(jnp.arange(x.shape[1])[None] < num_samples[:, None], x, 0.0)

    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(_frames(x) * window)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # bf16 passes, a TPU's default for f32 products, would be visible 80 dB below the maximum.
    mel = jnp.matmul(power, mel_filters(num_mels), precision=lax.Precision.HIGHEST)

    mask = jnp.arange(mel.shape[1])[None] * HOP < num_samples[:, None]
    log = jnp.log10(jnp.maximum(mel, _FLOOR))
    # The maximum over valid frames only: the frame after the last one still hears its end.
    loudest = jnp.max(jnp.where(mask[..., None], log, np.log10(_FLOOR)), axis=(1, 2), keepdims=True)
    features = (jnp.maximum(log, loudest - 8.0) + 4.0) / 4.0
    return jnp.where(mask[..., None], features, 0.0), mask
