"""What both stages do with speech: encoder, learned mix of its layers, Emotion Q-Former, and an embedding of it all."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.models import trailing_silence
from mser_jax.models.emotion_qformer import AttentionPool, EmotionQFormer, QFormerConfig
from mser_jax.models.layers import Linear, dropout, normalise
from mser_jax.models.spec_augment import SpecAugmentConfig, spec_augment
from mser_jax.models.speech_encoder import SpeechEncoderConfig, mix_states
from mser_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class MeanHeadConfig:
    """Hidden units (0: no such head) and their dropout."""

    width: int = 0
    dropout: float = 0.0


class SpeechReaderConfig(Protocol):
    """The part of a network's config that says how speech is read.

    The Q-Former reads the means of `frame_pool` neighbouring frames of the encoder (1: every frame), and one frame more
    where `trailing_silence` seconds of silence follow an utterance (trailing_silence.py). The layers' mix starts from
    the logits `layer_mix_init`, one for each of layers + 1 hidden states (none: all alike). What `mean_head` makes of
    the layers' time-means is added to what the Q-Former says.
    """

    speech: SpeechEncoderConfig
    qformer: QFormerConfig
    spec_augment: SpecAugmentConfig
    frame_pool: int
    trailing_silence: float
    layer_mix_init: tuple[float, ...]
    mean_head: MeanHeadConfig
    embed_dim: int
    dtype: DTypeLike


class Reading(NamedTuple):
    """`embedding` f32 [B, E], unit norm; `pooled` f32 [B, D], the queries' part of it; `queries` [B, N, D]."""

    embedding: jax.Array
    pooled: jax.Array
    queries: jax.Array


def unit_norm(x: jax.Array) -> jax.Array:
    """[..., E] -> f32 [..., E] of Euclidean norm 1; zeros (and their gradient) stay finite."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def num_frames(speech: SpeechEncoderConfig, frame_pool: int, silence: float, num_samples: int) -> int:
    """Frames that the Q-Former reads of `num_samples` samples, after which `silence` seconds follow."""
    return -(-speech.num_frames(num_samples) // frame_pool) + bool(silence)


class MeanHead(nnx.Module):
    """The time-means of all layers through one hidden layer.

    What a linear probe reads, and with little speech to learn from as good as anything that looks at frames. Each
    layer's mean is weighted as in the mix (all alike: by 1).
    """

    def __init__(self, in_features: int, cfg: MeanHeadConfig, out_features: int, *, rngs: nnx.Rngs):
        self.dropout = cfg.dropout
        self.hidden = Linear(in_features, cfg.width, rngs=rngs)
        self.out = Linear(cfg.width, out_features, rngs=rngs)

    def __call__(self, means: jax.Array, mix_logits: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Means f32 [B, K, L + 1, D], mix_logits f32 [L + 1] -> f32 [B, out_features]; `rng` draws dropout."""
        weights = jax.nn.softmax(mix_logits) * mix_logits.size
        x = jax.nn.gelu(self.hidden((means * weights[:, None]).reshape(means.shape[0], -1)))
        return self.out(dropout(x, self.dropout, rng))


class SpeechReader(nnx.Module):
    """Base of the networks of both stages, in which the parameters of PARTS have the same paths.

    Every method takes utterances as waveforms, or as the normalised hidden states that are known of a frozen encoder,
    and makes the same of both. `rng` draws SpecAugment and dropout; None is deterministic.
    """

    # First elements of the paths of all that is made here.
    PARTS = ("speech_encoder", "layer_mix", "qformer", "pool", "speech_projection", "mean_head")

    def __init__(self, cfg: SpeechReaderConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.speech_encoder = cfg.speech.make(dtype=cfg.dtype, rngs=rngs)
        # Outside the encoder: it learns also where the encoder is frozen.
        self.layer_mix = nnx.Param(jnp.array(cfg.layer_mix_init or (0.0,) * (cfg.speech.num_layers + 1), jnp.float32))
        self.qformer = EmotionQFormer(cfg.qformer, cfg.speech.width, dtype=cfg.dtype, rngs=rngs)
        self.pool = AttentionPool(cfg.qformer.width, rngs=rngs)
        self.speech_projection = Linear(cfg.qformer.width, cfg.embed_dim, rngs=rngs)
        self.silence = trailing_silence.num_frames(cfg.speech, cfg.trailing_silence)
        states = (cfg.speech.num_layers + 1) * cfg.speech.width * (2 if self.silence else 1)
        self.mean_head = MeanHead(states, cfg.mean_head, cfg.embed_dim, rngs=rngs) if cfg.mean_head.width else None

    def _features(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The encoder's features and mask of utterances, silence after them included."""
        waveform, num_samples = trailing_silence.append(waveform, num_samples, self.cfg.trailing_silence)
        return self.speech_encoder.front_end(waveform, num_samples)

    def encode_speech(self, waveform: jax.Array, num_samples: jax.Array, *, rng: jax.Array | None = None) -> Reading:
        """Waveform int16 or f32 [B, S] at 16 kHz (S ≤ 30 s, silence included), num_samples int [B] -> Reading."""
        augment_rng, encoder_rng, _ = _keys(rng)
        features, mask = self._features(waveform, num_samples)
        if augment_rng is not None:
            features = spec_augment(features, mask, augment_rng, self.cfg.spec_augment)
        mix, pool = sharding.gather_weight(self.layer_mix[...]), self.cfg.frame_pool
        means_over = functools.partial(trailing_silence.weights, size=pool, after=self.silence)
        encoded = self.speech_encoder(
            features, mask, mix_logits=mix, rng=encoder_rng, means_over=means_over if self.mean_head else None
        )
        mixed, mask = trailing_silence.pool(encoded.mixed, encoded.mask, pool, self.silence)
        means = encoded.means.transpose(1, 2, 0, 3) if self.mean_head else None
        return self._reading(mixed, mask, means, rng)

    def encode_states(self, states: jax.Array, num_frames: jax.Array, *, rng: jax.Array | None = None) -> Reading:
        """What `encode_speech` makes of an utterance whose normalised hidden states are known already.

        Args:
            states: [B, T, L + 1, D], any float dtype: `normalise` of every hidden state of the frozen encoder, pooled
                over `frame_pool` frames; a row's last frame is that of the silence after it, if there is one.
            num_frames: int [B], valid frames.
            rng: draws the dropout of what reads them.
        """
        mask = jnp.arange(states.shape[1])[None] < num_frames[:, None]
        mixed = mix_states(states, sharding.gather_weight(self.layer_mix[...]))
        return self._reading(mixed, mask, self.layer_means(states, num_frames) if self.mean_head else None, rng)

    def layer_means(self, states: jax.Array, num_frames: jax.Array) -> jax.Array:
        """States and num_frames as of `encode_states` -> their means over time, f32 [B, K, L + 1, D].

        K = 2, of the speech and of the silence after it; 1 where there is none.
        """
        return trailing_silence.means(states, num_frames, after=bool(self.silence))

    def _reading(self, mixed: jax.Array, mask: jax.Array, means: jax.Array | None, rng: jax.Array | None) -> Reading:
        queries = self.qformer(mixed, mask, rng=_keys(rng)[2])
        pooled = self.pool(queries)
        out = self.speech_projection(pooled)
        if means is not None:
            mix = sharding.gather_weight(self.layer_mix[...])
            out = out + self.mean_head(means, mix, rng=None if rng is None else jax.random.fold_in(rng, 3))
        return Reading(unit_norm(out), pooled, queries)

    def hidden_states(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Waveform [B, S], num_samples [B] -> the states that `encode_states` takes, f32, and their num_frames."""
        features, mask = self._features(waveform, num_samples)
        encoded = self.speech_encoder(features, mask, collect=True)
        states = normalise(encoded.hidden_states).transpose(1, 2, 0, 3)
        states, mask = trailing_silence.pool(states, encoded.mask, self.cfg.frame_pool, self.silence)
        return states, mask.sum(-1)


def _keys(rng: jax.Array | None) -> tuple[jax.Array | None, ...]:
    """Keys of SpecAugment, encoder and Q-Former: a run on kept states draws for the latter what one without draws."""
    return (None,) * 3 if rng is None else tuple(jax.random.split(rng, 3))
