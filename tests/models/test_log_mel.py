"""log_mel against transformers' WhisperFeatureExtractor and librosa; independence of padding."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from jax.sharding import NamedSharding
from transformers import WhisperFeatureExtractor

from mser_jax.models import log_mel as lib
from mser_jax.parallel import sharding

log_mel = jax.jit(lib.log_mel, static_argnums=2)


def speech_like(samples: int, seed: int) -> np.ndarray:
    """int16 noise, decaying and amplitude modulated, with a tone: wide dynamic range, as speech has."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    envelope = np.exp(-2 * (t % 0.7)) * (0.2 + np.abs(np.sin(9 * t)))
    wave = envelope * (rng.standard_normal(samples) * 0.1 + 0.3 * np.sin(2 * np.pi * (150 + 20 * t) * t))
    return (np.clip(wave, -1, 1) * 32767).astype(np.int16)


def test_filters_equal_librosa_and_transformers():
    for mels in (80, 128):
        reference = librosa.filters.mel(sr=16000, n_fft=400, n_mels=mels, norm="slaney").T
        np.testing.assert_array_equal(lib.mel_filters(mels), reference)
        theirs = WhisperFeatureExtractor(feature_size=mels).mel_filters
        np.testing.assert_allclose(lib.mel_filters(mels), theirs, atol=1e-7)


# 30 s and just below: where the end is mirrored. 161: one sample in the second frame.
@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", [161, 1600, 16000 * 3 + 77, 479_990, 480_000])
def test_equals_whisper_feature_extractor(samples, mels):
    """Tolerance 3e-5 on values within ±2 (1.1e-5 was seen): f32 STFTs of two libraries."""
    wave = speech_like(samples, samples)
    extractor = WhisperFeatureExtractor(feature_size=mels)
    theirs = extractor(wave / np.float32(32768), sampling_rate=16000, return_tensors="np").input_features[0].T
    ours, mask = log_mel(wave[None], np.array([samples]), mels)
    frames = -(-samples // 160)
    assert ours.shape == (1, frames, mels) and mask.all()
    np.testing.assert_allclose(ours[0], theirs[:frames], atol=3e-5)
    # float32 in, same thing out.
    np.testing.assert_array_equal(log_mel(wave[None] / np.float32(32768), np.array([samples]), mels)[0], ours)


def test_padding_changes_nothing():
    """Whatever follows the end, and however long: the same features; padded frames are 0 and masked."""
    lengths = [1, 150, 160, 161, 8000, 12345]
    waves = [speech_like(n, n) for n in lengths]
    for total in (12345, 16000, 20001):
        batch = np.random.default_rng(0).integers(-32768, 32767, (len(waves), total)).astype(np.int16)
        for row, wave in zip(batch, waves, strict=True):
            row[: len(wave)] = wave
        features, mask = log_mel(batch, np.array(lengths), 80)
        for i, wave in enumerate(waves):
            frames = -(-len(wave) // 160)
            alone, _ = log_mel(wave[None], np.array([len(wave)]), 80)
            np.testing.assert_allclose(features[i, :frames], alone[0], atol=1e-5)
            assert mask[i].sum() == frames and mask[i, :frames].all()
            assert not np.any(features[i, frames:])


def test_end_near_30_s_does_not_depend_on_padding():
    wave = speech_like(479_990, 3)
    padded = np.pad(wave, (0, 10))
    n = np.array([479_990])
    np.testing.assert_array_equal(log_mel(wave[None], n, 80)[0], log_mel(padded[None], n, 80)[0])


def test_silence_and_nothing_are_finite():
    features, mask = log_mel(np.zeros((2, 1600), np.int16), np.array([1600, 0]), 80)
    # log10(1e-10) = -10 -> (-10 + 4) / 4.
    np.testing.assert_allclose(features[0], -1.5)
    assert not np.any(features[1]) and not np.any(mask[1])


def test_too_long_is_refused():
    with pytest.raises(ValueError, match="30 s"):
        lib.log_mel(jnp.zeros((1, 480_001), jnp.int16), jnp.array([480_001]))


def test_explicit_mesh(mesh8):
    wave = np.stack([speech_like(3200, i) for i in range(8)])
    lengths = np.arange(8) * 400 + 100
    put = lambda x: jax.device_put(x, NamedSharding(mesh8, sharding.BATCH))  # noqa: E731
    features, mask = log_mel(put(wave), put(lengths), 80)
    assert features.sharding.spec[0] == ("data", "fsdp") and mask.sharding.spec[0] == ("data", "fsdp")
    for i in range(8):
        with jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()[:1]), "x")):
            alone, _ = log_mel(wave[i : i + 1], lengths[i : i + 1], 80)
        np.testing.assert_allclose(np.asarray(features)[i], np.asarray(alone)[0], atol=1e-5)
