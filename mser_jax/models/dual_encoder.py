"""Stage 1's network: speech and text into one space of unit vectors."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.models.adversary import AdversaryHeads
from mser_jax.models.emotion_qformer import AttentionPool, QFormerConfig
from mser_jax.models.layers import Linear, dropout
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.speech_encoder import SpeechEncoderConfig, block_flops
from mser_jax.models.speech_reader import Reading, SpeechReader
from mser_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from mser_jax.models.whisper import WhisperConfig
from mser_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class MeanHeadConfig:
    """Hidden units (0: no such head) and their dropout."""

    width: int = 0
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
    """All sizes of the network; the defaults fit a laptop.

    The Q-Former reads the means of `frame_pool` neighbouring frames of the encoder (1: every frame). The layers' mix
    starts from the logits `layer_mix_init`, one for each of layers + 1 hidden states (none: all alike). What
    `mean_head` makes of the layers' time-means is added to what the Q-Former says. `heads` are the adversary's: (name,
    number of classes) pairs. `dtype` is that of the arithmetic inside the towers (float32 or bfloat16); parameters,
    norms, softmax, embeddings and heads are f32 always.
    """

    speech: SpeechEncoderConfig = dataclasses.field(default_factory=WhisperConfig)
    text: TextEncoderConfig = dataclasses.field(default_factory=TextEncoderConfig)
    qformer: QFormerConfig = dataclasses.field(default_factory=QFormerConfig)
    spec_augment: SpecAugmentConfig = dataclasses.field(default_factory=SpecAugmentConfig)
    frame_pool: int = 1
    layer_mix_init: tuple[float, ...] = ()
    mean_head: MeanHeadConfig = dataclasses.field(default_factory=MeanHeadConfig)
    embed_dim: int = 256
    logit_scale_init: float = 1 / 0.07
    logit_scale_max: float = 100.0
    heads: tuple[tuple[str, int], ...] = ()
    dtype: DTypeLike = jnp.float32

    def num_frames(self, num_samples: int) -> int:
        """Frames that the Q-Former reads of `num_samples` samples."""
        return -(-self.speech.num_frames(num_samples) // self.frame_pool)


class SpeechOutput(NamedTuple):
    """`embedding` f32 [B, E], unit norm; `pooled` f32 [B, D], what it is made of; `queries` [B, N, D]."""

    embedding: jax.Array
    pooled: jax.Array
    queries: jax.Array


def unit_norm(x: jax.Array) -> jax.Array:
    """[..., E] -> f32 [..., E] of Euclidean norm 1; zeros (and their gradient) stay finite."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def mean_pool(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of x [B, L, D] over mask bool [B, L] -> f32 [B, D]; zeros where nothing is unmasked."""
    total = jnp.where(mask[..., None], x.astype(jnp.float32), 0.0).sum(1)
    return total / jnp.maximum(mask.sum(1)[:, None], 1)


@jax.custom_vjp
def clamped_exp(x: jax.Array, maximum: float) -> jax.Array:
    """min(exp(x), maximum). At the limit only a gradient that leads back inside passes.

    A plain `minimum` has no gradient there: a temperature that once touched its limit would stay.
    """
    return jnp.minimum(jnp.exp(x), maximum)


def _clamped_exp_forward(x: jax.Array, maximum: float) -> tuple[jax.Array, Any]:
    y = clamped_exp(x, maximum)
    return y, (y, maximum)


def _clamped_exp_backward(residuals: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, maximum = residuals
    return jnp.where((y < maximum) | (g > 0), g * y, 0.0), jnp.zeros_like(maximum)


clamped_exp.defvjp(_clamped_exp_forward, _clamped_exp_backward)


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
        """Means f32 [B, L + 1, D], mix_logits f32 [L + 1] -> f32 [B, out_features]; `rng` draws dropout."""
        weights = jax.nn.softmax(mix_logits) * mix_logits.size
        x = jax.nn.gelu(self.hidden((means * weights[:, None]).reshape(means.shape[0], -1)))
        return self.out(dropout(x, self.dropout, rng))


class DualEncoder(SpeechReader):
    """Speech tower, text tower, temperature and adversarial heads."""

    def __init__(self, cfg: DualEncoderConfig, rngs: nnx.Rngs):
        super().__init__(cfg, rngs)
        self.pool = AttentionPool(cfg.qformer.width, rngs=rngs)
        self.speech_projection = Linear(cfg.qformer.width, cfg.embed_dim, rngs=rngs)
        self.text_encoder = TextEncoder(cfg.text, dtype=cfg.dtype, rngs=rngs)
        self.text_projection = Linear(cfg.text.width, cfg.embed_dim, rngs=rngs)
        self.log_logit_scale = nnx.Param(jnp.log(jnp.float32(cfg.logit_scale_init)))
        self.adversary = AdversaryHeads(cfg.embed_dim, cfg.heads, rngs=rngs)
        states = (cfg.speech.num_layers + 1) * cfg.speech.width
        self.mean_head = MeanHead(states, cfg.mean_head, cfg.embed_dim, rngs=rngs) if cfg.mean_head.width else None

    def encode_speech(
        self, waveform: jax.Array, num_samples: jax.Array, *, rng: jax.Array | None = None
    ) -> SpeechOutput:
        """Waveform int16 or f32 [B, S] at 16 kHz (S ≤ 30 s), num_samples int [B] -> SpeechOutput.

        `rng` draws SpecAugment and dropout; None is deterministic.
        """
        return self._head(self.read(waveform, num_samples, rng=rng, means=self.mean_head is not None), rng)

    def encode_states(self, states: jax.Array, num_frames: jax.Array, *, rng: jax.Array | None = None) -> SpeechOutput:
        """What `encode_speech` makes of an utterance whose `hidden_states` are known already (see `read_states`)."""
        return self._head(self.read_states(states, num_frames, rng=rng, means=self.mean_head is not None), rng)

    def _head(self, reading: Reading, rng: jax.Array | None) -> SpeechOutput:
        pooled = self.pool(reading.queries)
        out = self.speech_projection(pooled)
        if self.mean_head is not None:
            mix = sharding.gather_weight(self.layer_mix[...])
            rng = None if rng is None else jax.random.fold_in(rng, 3)
            out = out + self.mean_head(reading.means, mix, rng=rng)
        return SpeechOutput(unit_norm(out), pooled, reading.queries)

    def encode_text(self, tokens: jax.Array, token_mask: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Tokens int [B, L], token_mask bool [B, L] -> unit embedding f32 [B, E]; `rng` draws dropout."""
        pooled = mean_pool(self.text_encoder(tokens, token_mask, rng=rng), token_mask)
        return unit_norm(self.text_projection(pooled))

    def logit_scale(self) -> jax.Array:
        """Inverse temperature, an f32 scalar ≤ cfg.logit_scale_max (CLIP: 1 / .07 at first, 100 at most)."""
        return clamped_exp(sharding.gather_weight(self.log_logit_scale[...]), self.cfg.logit_scale_max)

    def adversary_logits(self, embedding: jax.Array, scale: float | jax.Array) -> dict[str, jax.Array]:
        """Embedding [B, E] -> logits f32 [B, classes] by head; x gets -`scale` times their gradient."""
        return self.adversary(embedding, scale)


def flops_per_example(cfg: DualEncoderConfig, num_samples: int, num_tokens: int) -> dict[str, float]:
    """Forward floating-point operations for one padded pair, a multiply-add counted as 2.

    Matrix products, convolutions and the FFT; element-wise work, a few percent, is left out. A training step without
    remat costs about 3 times this for what learns, and once for what is frozen.

    Returns:
        By part: "speech_encoder" (with its front end), "qformer", "text_encoder", "heads"; their sum is the total.
    """
    speech, text, qformer = cfg.speech, cfg.text, cfg.qformer
    dim = cfg.embed_dim
    memory = (cfg.num_frames(num_samples), speech.width)
    query_block = block_flops(qformer.num_queries, qformer.width, qformer.mlp_width, *memory)
    return {
        "speech_encoder": speech.flops(num_samples),
        "qformer": qformer.num_layers * query_block,
        "text_encoder": text.num_layers * block_flops(num_tokens, text.width, text.mlp_width),
        "heads": 2.0 * dim * (qformer.width + text.width)
        + sum(2 * 128 * (dim + n) for _, n in cfg.heads)
        + 2.0 * cfg.mean_head.width * ((speech.num_layers + 1) * speech.width + dim),
    }
