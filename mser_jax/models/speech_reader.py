"""What both stages do with speech: encoder, learned mix of its layers, Emotion Q-Former."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mser_jax.models.emotion_qformer import EmotionQFormer, QFormerConfig
from mser_jax.models.layers import normalise
from mser_jax.models.spec_augment import SpecAugmentConfig, spec_augment
from mser_jax.models.speech_encoder import SpeechEncoderConfig, frame_weights, mix_states, pool_frames
from mser_jax.parallel import sharding


class SpeechReaderConfig(Protocol):
    """The part of a network's config that says how speech is read."""

    speech: SpeechEncoderConfig
    qformer: QFormerConfig
    spec_augment: SpecAugmentConfig
    frame_pool: int
    layer_mix_init: tuple[float, ...]
    dtype: DTypeLike


class Reading(NamedTuple):
    """`queries` [B, N, qformer.width]; `means` f32 [B, L + 1, D] on demand: each normalised state's mean over time."""

    queries: jax.Array
    means: jax.Array | None


class SpeechReader(nnx.Module):
    """Base of the networks of both stages, whose parameters `speech_encoder/…`, `layer_mix` and `qformer/…` are alike.

    Every method takes utterances as waveforms, or as the normalised hidden states that are known of a frozen encoder,
    and makes the same of both. `rng` draws SpecAugment and dropout; None is deterministic.
    """

    def __init__(self, cfg: SpeechReaderConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.speech_encoder = cfg.speech.make(dtype=cfg.dtype, rngs=rngs)
        # Outside the encoder: it learns also where the encoder is frozen.
        self.layer_mix = nnx.Param(jnp.array(cfg.layer_mix_init or (0.0,) * (cfg.speech.num_layers + 1), jnp.float32))
        self.qformer = EmotionQFormer(cfg.qformer, cfg.speech.width, dtype=cfg.dtype, rngs=rngs)

    def read(
        self, waveform: jax.Array, num_samples: jax.Array, *, rng: jax.Array | None = None, means: bool = False
    ) -> Reading:
        """Waveform int16 or f32 [B, S] at 16 kHz (S ≤ 30 s), num_samples int [B] -> Reading."""
        augment_rng, encoder_rng, qformer_rng = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        features, mask = self.speech_encoder.front_end(waveform, num_samples)
        if augment_rng is not None:
            features = spec_augment(features, mask, augment_rng, self.cfg.spec_augment)
        mix = sharding.gather_weight(self.layer_mix[...])
        mean_of = self.cfg.frame_pool if means else 0
        encoded = self.speech_encoder(features, mask, mix_logits=mix, rng=encoder_rng, mean_of=mean_of)
        frames = pool_frames(encoded.mixed, encoded.mask, self.cfg.frame_pool)
        return Reading(self.qformer(*frames, rng=qformer_rng), encoded.means.transpose(1, 0, 2) if means else None)

    def read_states(
        self, states: jax.Array, num_frames: jax.Array, *, rng: jax.Array | None = None, means: bool = False
    ) -> Reading:
        """What `read` makes of an utterance whose normalised hidden states are known already.

        Args:
            states: [B, T, L + 1, D], any float dtype: `normalise` of every hidden state of the frozen encoder, pooled
                over `frame_pool` frames.
            num_frames: int [B], valid frames.
            rng: draws the Q-Former's dropout.
            means: asks for `Reading.means`.
        """
        # The same key as in `read`: a run with a cache draws what one without it draws.
        qformer_rng = None if rng is None else jax.random.split(rng, 3)[2]
        mask = jnp.arange(states.shape[1])[None] < num_frames[:, None]
        mixed = mix_states(states, sharding.gather_weight(self.layer_mix[...]))
        over_time = jnp.einsum("bt,btld->bld", frame_weights(mask, 1), states.astype(jnp.float32)) if means else None
        return Reading(self.qformer(mixed, mask, rng=qformer_rng), over_time)

    def hidden_states(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Waveform [B, S], num_samples [B] -> the states that `read_states` takes, f32, and their num_frames."""
        features, mask = self.speech_encoder.front_end(waveform, num_samples)
        encoded = self.speech_encoder(features, mask, collect=True)
        states = normalise(encoded.hidden_states).transpose(1, 2, 0, 3)
        states, mask = pool_frames(states, encoded.mask, self.cfg.frame_pool)
        return states, mask.sum(-1)
