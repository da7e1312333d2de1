"""The wav2vec2 family of speech encoders: wav2vec 2.0, XLS-R, HuBERT and WavLM, base and large layouts.

Baevski et al. 2020; Babu et al. 2021; Hsu et al. 2021; Chen et al. 2022.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mser_jax.models.attention import stack_blocks
from mser_jax.models.layers import LayerNorm, Linear, dropout
from mser_jax.models.speech_encoder import SAMPLING_RATE, EncoderOutput, MeansOver, block_flops, through_layers
from mser_jax.models.wav2vec2_features import (
    FeatureExtractor,
    PositionalConv,
    RelativePositions,
    conv_lengths,
    normalise_waveform,
)

# Nothing in the family ends here, but attention is quadratic: 3000 frames.
MAX_SAMPLES = 60 * SAMPLING_RATE


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes and switches; a frame every 320 samples (50 Hz) with the default convolutions.

    Base layout: `conv_norm="group", conv_bias=False, norm_first=False`. Large layout (XLS-R, HuBERT-large):
    `conv_norm="layer", conv_bias=True, norm_first=True` (transformers' do_stable_layer_norm); wav2vec2-large and
    WavLM-large mix them. `relative_buckets` > 0 is WavLM's gated relative position bias.

    Raises:
        ValueError: conv_norm is neither "group" nor "layer", or the convolutions' tuples differ in length.
    """

    family: ClassVar[str] = "wav2vec2"

    num_layers: int = 4
    width: int = 144
    num_heads: int = 4
    mlp_width: int = 576
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_norm: str = "group"
    conv_bias: bool = False
    projection_norm: bool = True  # before the projection to `width` (HuBERT's feat_proj_layer_norm)
    position_kernel: int = 128
    position_groups: int = 16
    norm_first: bool = False
    norm_eps: float = 1e-5
    relative_buckets: int = 0
    relative_max_distance: int = 800
    normalise: bool = True  # the waveform, in `front_end` (preprocessor_config.json's do_normalize)
    model_type: str = "wav2vec2"  # or "hubert", "wavlm": what an exported config.json says
    dropout: float = 0.0
    remat: str = "none"  # a key of stack.REMAT_POLICIES

    def __post_init__(self) -> None:
        if self.conv_norm not in ("group", "layer"):
            raise ValueError(f"Wav2Vec2Config: conv_norm={self.conv_norm!r}: expected 'group' or 'layer'")
        lengths = [len(sizes) for sizes in (self.conv_dims, self.conv_kernels, self.conv_strides)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ValueError(
                f"Wav2Vec2Config: conv_dims, conv_kernels, conv_strides have {lengths} entries: make equal"
            )

    def make(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> Wav2Vec2Encoder:
        """The encoder, freshly initialised."""
        return Wav2Vec2Encoder(self, dtype=dtype, rngs=rngs)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees; 400 with the default convolutions."""
        samples = 1
        for size, stride in zip(self.conv_kernels[::-1], self.conv_strides[::-1], strict=True):
            samples = (samples - 1) * stride + size
        return samples

    def num_frames(self, num_samples: int) -> int:
        """Frames after the convolutions. Anything shorter than the receptive field counts as padded to it: 1."""
        return self._frames(num_samples)[-1]

    def flops(self, num_samples: int) -> float:
        """Forward operations: all products: convolutions, projection, positional convolution, blocks."""
        per_layer = self._frames(num_samples)
        sizes = zip(per_layer, (1, *self.conv_dims), self.conv_dims, self.conv_kernels, strict=False)
        convs = sum(2.0 * frames * inputs * outputs * size for frames, inputs, outputs, size in sizes)
        frames = per_layer[-1]
        projection = 2 * frames * self.conv_dims[-1] * self.width
        positions = 2 * frames * self.position_kernel * self.width**2 / self.position_groups
        block = block_flops(frames, self.width, self.mlp_width)
        if self.relative_buckets:
            block += 16 * frames * self.width  # gates
        return convs + projection + positions + self.num_layers * block

    def _frames(self, num_samples: int) -> list[int]:
        """Frames after each convolution."""
        return conv_lengths(max(num_samples, self.receptive_field), self.conv_kernels, self.conv_strides)


class Wav2Vec2Encoder(nnx.Module):
    """Convolutions on the waveform, projection, positional convolution, transformer.

    Padding changes nothing: an utterance in a padded batch gets what it gets alone. In transformers that is so
    with an attention mask and `conv_norm="layer"` only; for "group" see FeatureExtractor. Neither LayerDrop nor
    the masking of pretraining (masked_spec_embed) is done here.
    """

    def __init__(self, cfg: Wav2Vec2Config, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.cfg, self.dtype = cfg, dtype
        features = cfg.conv_dims[-1]
        self.feature_extractor = FeatureExtractor(cfg, dtype=dtype, rngs=rngs)
        self.projection_norm = LayerNorm(features, eps=cfg.norm_eps, dtype=dtype) if cfg.projection_norm else None
        self.projection = Linear(features, cfg.width, dtype=dtype, rngs=rngs)
        self.positions = PositionalConv(cfg.width, cfg.position_kernel, cfg.position_groups, dtype=dtype, rngs=rngs)
        # Shared by all layers, though files have it in the first: so it stands outside the stack.
        buckets = cfg.relative_buckets, cfg.relative_max_distance
        self.relative = RelativePositions(*buckets, cfg.num_heads, rngs=rngs) if cfg.relative_buckets else None
        options = {"norm_first": cfg.norm_first, "norm_eps": cfg.norm_eps, "gated_bias": bool(cfg.relative_buckets)}
        self.layers = stack_blocks(cfg, rngs, **options, dtype=dtype)
        # Before the layers of post-norm models, after those of pre-norm models.
        self.encoder_norm = LayerNorm(cfg.width, eps=cfg.norm_eps, dtype=dtype)

    def front_end(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Waveform int16 or f32 [B, S], num_samples int [B] -> f32 [B, S], 0 where invalid, and its mask bool [B, S].

        Each utterance has zero mean and unit variance if `cfg.normalise`.
        """
        x = waveform.astype(jnp.float32)
        if jnp.issubdtype(waveform.dtype, jnp.integer):
            x = x / 32768.0
        mask = jnp.arange(x.shape[1])[None] < num_samples[:, None]
        return normalise_waveform(x, mask) if self.cfg.normalise else jnp.where(mask, x, 0.0), mask

    def __call__(
        self,
        features: jax.Array,
        mask: jax.Array,
        *,
        mix_logits: jax.Array | None = None,
        rng: jax.Array | None = None,
        collect: bool = False,
        means_over: MeansOver | None = None,
    ) -> EncoderOutput:
        """Waveform [B, S] of `front_end`, mask bool [B, S] of its valid samples (a prefix) -> EncoderOutput.

        Hidden states are counted as transformers does: 0 the input of the first layer (post-norm: after
        `encoder_norm`), 1 … L the outputs of layers (pre-norm: the last one after `encoder_norm`). `mix_logits`
        f32 [L + 1] asks for Σ softmax(mix_logits)_l · normalise(state_l). An utterance that is shorter than the
        receptive field is taken as followed by zeros up to it: one frame. One of 0 samples has no valid frame.

        Raises:
            ValueError: more than 60 s.
        """
        if features.shape[1] > MAX_SAMPLES:
            raise ValueError(
                f"Wav2Vec2Encoder: {features.shape[1]} samples, but the limit is 60 s = {MAX_SAMPLES}. "
                "Cut the audio first."
            )
        cfg = self.cfg
        x, mask = self._embed(features, mask)
        x = dropout(x, cfg.dropout, None if rng is None else jax.random.fold_in(rng, 0))
        return through_layers(
            self.layers,
            x,
            mask,
            *(() if self.relative is None else (None, None, self.relative(x.shape[1]))),
            final_norm=self.encoder_norm if cfg.norm_first else None,
            remat=cfg.remat,
            rng=None if rng is None else jax.random.fold_in(rng, 1),
            mix_logits=mix_logits,
            collect=collect,
            means_over=means_over,
        )

    def _embed(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the first layer gets: [B, S], [B, S] -> [B, T, width], [B, T]."""
        shortest = self.cfg.receptive_field
        x = jnp.where(mask, features, 0.0).astype(self.dtype)
        x = jnp.pad(x, ((0, 0), (0, max(0, shortest - x.shape[1]))))
        num_samples = mask.sum(-1)
        lengths = jnp.where(num_samples > 0, jnp.maximum(num_samples, shortest), 0)
        x, mask = self.feature_extractor(x, lengths)
        x = self.projection(x if self.projection_norm is None else self.projection_norm(x))
        # Masked frames are set to the zeros that the positional convolution sees beyond an unpadded utterance.
        x = self.positions(jnp.where(mask[..., None], x, 0.0))
        return x if self.cfg.norm_first else self.encoder_norm(x), mask
