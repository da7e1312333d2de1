"""Stage 1's network: speech and text into one space of unit vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mser_jax.models import speech_reader, trailing_silence
from mser_jax.models.adversary import AdversaryHeads
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.layers import Linear
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.speech_encoder import SpeechEncoderConfig, block_flops
from mser_jax.models.speech_reader import MeanHeadConfig, SpeechReader, unit_norm
from mser_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from mser_jax.models.whisper import WhisperConfig
from mser_jax.parallel import sharding


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
    """All sizes of the network; the defaults fit a laptop. How speech is read: see SpeechReaderConfig.

    `heads` are the adversary's: (name, number of classes) pairs. `dtype` is that of the arithmetic inside the towers
    (float32 or bfloat16); parameters, norms, softmax, embeddings and heads are f32 always.
    """

    speech: SpeechEncoderConfig = dataclasses.field(default_factory=WhisperConfig)
    text: TextEncoderConfig = dataclasses.field(default_factory=TextEncoderConfig)
    qformer: QFormerConfig = dataclasses.field(default_factory=QFormerConfig)
    spec_augment: SpecAugmentConfig = dataclasses.field(default_factory=SpecAugmentConfig)
    frame_pool: int = 1
    trailing_silence: float = 0.0
    layer_mix_init: tuple[float, ...] = ()
    mean_head: MeanHeadConfig = dataclasses.field(default_factory=MeanHeadConfig)
    embed_dim: int = 256
    logit_scale_init: float = 1 / 0.07
    logit_scale_max: float = 100.0
    heads: tuple[tuple[str, int], ...] = ()
    dtype: DTypeLike = jnp.float32

    def num_frames(self, num_samples: int) -> int:
        """Frames that the Q-Former reads of `num_samples` samples."""
        return speech_reader.num_frames(self.speech, self.frame_pool, self.trailing_silence, num_samples)


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


class DualEncoder(SpeechReader):
    """Speech tower, text tower, temperature and adversarial heads."""

    def __init__(self, cfg: DualEncoderConfig, rngs: nnx.Rngs):
        super().__init__(cfg, rngs)
        self.text_encoder = TextEncoder(cfg.text, dtype=cfg.dtype, rngs=rngs)
        self.text_projection = Linear(cfg.text.width, cfg.embed_dim, rngs=rngs)
        self.log_logit_scale = nnx.Param(jnp.log(jnp.float32(cfg.logit_scale_init)))
        self.adversary = AdversaryHeads(cfg.embed_dim, cfg.heads, rngs=rngs)

    def encode_text(self, tokens: jax.Array, token_mask: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Tokens int [B, L], token_mask bool [B, L] -> unit embedding f32 [B, E]; `rng` draws dropout."""
        return self.embed_text(self.text_means(tokens, token_mask, rng=rng))

    def text_means(self, tokens: jax.Array, token_mask: jax.Array, *, rng: jax.Array | None = None) -> jax.Array:
        """Tokens int [B, L], token_mask bool [B, L] -> means of the text tower's last states, f32 [B, text.width]."""
        return mean_pool(self.text_encoder(tokens, token_mask, rng=rng), token_mask)

    def embed_text(self, means: jax.Array) -> jax.Array:
        """What `text_means` gave [B, text.width] -> unit embedding f32 [B, E]."""
        return unit_norm(self.text_projection(means))

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
    heard = num_samples + trailing_silence.num_samples(cfg.trailing_silence)
    query_block = block_flops(qformer.num_queries, qformer.width, qformer.mlp_width, *memory)
    return {
        "speech_encoder": speech.flops(heard),
        "qformer": qformer.num_layers * query_block,
        "text_encoder": text.num_layers * block_flops(num_tokens, text.width, text.mlp_width),
        "heads": 2.0 * dim * (qformer.width + text.width)
        + sum(2 * 128 * (dim + n) for _, n in cfg.heads)
        + 2.0 * cfg.mean_head.width * ((1 + bool(cfg.trailing_silence)) * (speech.num_layers + 1) * speech.width + dim),
    }
