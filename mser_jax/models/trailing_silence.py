"""Silence after an utterance: where an encoder that was trained on padded windows writes down what it heard of it all.

Whisper was trained on windows of 30 s, most of them ending in silence, and its frames of silence attend to the speech
like everything else. With nothing of their own to tell they hold what is global, as the background of a picture does in
vision transformers (Darcet et al. 2024, "Vision transformers need registers", arXiv:2309.16588). So an utterance may be
followed by a little silence. It counts as one frame after those of the speech: the mean of its states.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mser_jax.models.speech_encoder import SAMPLING_RATE, SpeechEncoderConfig, frame_weights, pool_frames

# A multiple of every encoder's samples a frame, so that silence adds the same frames to an utterance of any length.
_UNIT = 640


def num_samples(seconds: float) -> int:
    """Samples of so much silence, in whole frames of 40 ms."""
    return -(-round(seconds * SAMPLING_RATE) // _UNIT) * _UNIT


def num_frames(speech: SpeechEncoderConfig, seconds: float) -> int:
    """Frames of the encoder `speech` that so much silence adds."""
    return speech.num_frames(SAMPLING_RATE + num_samples(seconds)) - speech.num_frames(SAMPLING_RATE)


def append(waveform: jax.Array, lengths: jax.Array, seconds: float) -> tuple[jax.Array, jax.Array]:
    """Waveform [B, S], lengths int [B] of its utterances -> [B, S + silence] and the lengths with silence.

    0 seconds change nothing.
    """
    if not seconds:
        return waveform, lengths
    room = num_samples(seconds)
    spoken = jnp.arange(waveform.shape[1])[None] < lengths[:, None]
    waveform = jnp.where(spoken, waveform, jnp.zeros((), waveform.dtype))
    return jnp.pad(waveform, ((0, 0), (0, room))), lengths + room


def _parts(mask: jax.Array, after: int) -> tuple[jax.Array, jax.Array]:
    """Mask bool [B, T], true in the first frames of each row, `after` of them silence -> of speech, of silence."""
    spoken = jnp.arange(mask.shape[1])[None] < mask.sum(-1, keepdims=True) - after
    return mask & spoken, mask & ~spoken


def pool(x: jax.Array, mask: jax.Array, size: int, after: int) -> tuple[jax.Array, jax.Array]:
    """`pool_frames` of the frames of speech, then the mean of the silence as one frame.

    Args:
        x: [B, T + after, …].
        mask: bool [B, T + after] of valid frames, of speech and then of silence.
        size: frames of speech that become one.
        after: frames of silence; 0 is `pool_frames` itself.

    Returns:
        f32 [B, ceil(T / size) + 1, …], and its mask: a row's frame of silence follows its last one of speech.
    """
    if not after:
        return pool_frames(x, mask, size)
    spoken, silent = _parts(mask, after)
    speech, spoken = pool_frames(x[:, :-after].astype(jnp.float32), spoken[:, :-after], size)
    silence = jnp.einsum("bt,bt...->b...", frame_weights(silent, 1), x.astype(jnp.float32))
    speech = jnp.pad(speech, ((0, 0), (0, 1)) + ((0, 0),) * (x.ndim - 2))
    place, count = jnp.arange(speech.shape[1])[None], spoken.sum(-1, keepdims=True)
    here = (place == count).reshape(*speech.shape[:2], *(1,) * (x.ndim - 2))
    return jnp.where(here, silence[:, None], speech), place <= count


def weights(mask: jax.Array, size: int, after: int) -> jax.Array:
    """Mask bool [B, T + after] -> f32 [B, K, T + after] of the means over time of what `pool` gives.

    K = 2, of speech and of silence; 1 where there is none.
    """
    parts = (mask,) if not after else _parts(mask, after)
    return jnp.stack([frame_weights(part, size if i == 0 else 1) for i, part in enumerate(parts)], axis=1)


def means(states: jax.Array, lengths: jax.Array, after: bool) -> jax.Array:
    """States [B, T, L + 1, D] that `pool` gave, valid frames int [B] -> means over time, f32 [B, K, L + 1, D].

    K = 2 where the last valid frame is that of silence (`after`), else 1.
    """
    place, last = jnp.arange(states.shape[1])[None], lengths[:, None] - 1
    parts = (place < last, place == last) if after else (place <= last,)
    values = states.astype(jnp.float32)
    return jnp.stack([jnp.einsum("bt,btld->bld", frame_weights(part, 1), values) for part in parts], axis=1)
