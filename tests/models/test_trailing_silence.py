"""Silence after an utterance: one frame after those of the speech, whatever the padding and the family."""

import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax.models import trailing_silence
from mser_jax.models.wav2vec2 import Wav2Vec2Config
from mser_jax.models.whisper import WhisperConfig

SPEECH = {
    "whisper": WhisperConfig(num_layers=1, width=16, num_heads=2, mlp_width=16),
    "whisper_25hz": WhisperConfig(num_layers=1, width=16, num_heads=2, mlp_width=16, conv_strides=(2, 2)),
    "wav2vec2": Wav2Vec2Config(num_layers=1, width=16, num_heads=2, mlp_width=16, conv_dims=(16,) * 7),
}


@pytest.mark.parametrize("family", SPEECH)
def test_silence_adds_the_same_frames_to_every_length(family):
    speech, seconds = SPEECH[family], 0.5
    room = trailing_silence.num_samples(seconds)
    assert 8000 <= room < 8640
    added = {speech.num_frames(n + room) - speech.num_frames(n) for n in range(700, 3000, 37)}
    assert added == {trailing_silence.num_frames(speech, seconds)} and added != {0}


def test_what_follows_an_utterance_is_silence():
    rng = np.random.default_rng(0)
    waveform = rng.integers(-900, 900, (2, 1000)).astype(np.int16)
    heard, lengths = trailing_silence.append(jnp.asarray(waveform), jnp.array([1000, 300]), 0.04)
    assert heard.shape == (2, 1640) and heard.dtype == jnp.int16 and lengths.tolist() == [1640, 940]
    np.testing.assert_array_equal(heard[1, :300], waveform[1, :300])
    assert not np.asarray(heard[1, 300:]).any() and not np.asarray(heard[0, 1000:]).any()
    same, lengths = trailing_silence.append(jnp.asarray(waveform), jnp.array([1000, 300]), 0.0)
    np.testing.assert_array_equal(same, waveform)
    assert lengths.tolist() == [1000, 300]


@pytest.mark.parametrize("size", [1, 4])
def test_pool_weights_and_means_are_those_of_a_loop(size):
    """Against float64 numpy, row by row: a full row, a short one, and one without speech."""
    after, rows = 5, [11, 6, 0]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 11 + after, 2, 3)).astype(np.float32)
    mask = np.arange(11 + after) < np.array(rows)[:, None] + after
    pooled, valid = trailing_silence.pool(jnp.asarray(x), jnp.asarray(mask), size, after)
    assert pooled.shape == (3, -(-11 // size) + 1, 2, 3)
    weights = np.asarray(trailing_silence.weights(jnp.asarray(mask), size, after))
    means = trailing_silence.means(pooled, valid.sum(-1), after=True)
    for i, count in enumerate(rows):
        speech = [x[i, j : min(j + size, count)].mean(0, dtype=np.float64) for j in range(0, count, size)]
        silence = x[i, count : count + after].mean(0, dtype=np.float64)
        assert valid[i].tolist() == [place <= len(speech) for place in range(pooled.shape[1])]
        np.testing.assert_allclose(pooled[i, : len(speech) + 1], [*speech, silence], atol=1e-6)
        expected = [np.mean(speech, 0) if speech else np.zeros((2, 3)), silence]
        np.testing.assert_allclose(means[i], expected, atol=1e-6)
        np.testing.assert_allclose(np.einsum("kt,tld->kld", weights[i], x[i]), expected, atol=1e-6)
