"""Whisper-shaped speech encoder for any length up to 30 s (Radford et al. 2022, §2.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.models import log_mel as log_mel_lib
from mser_jax.models.attention import stack_blocks
from mser_jax.models.layers import Conv1d, LayerNorm, dropout, gelu
from mser_jax.models.speech_encoder import EncoderOutput, MeansOver, block_flops, through_layers
from mser_jax.parallel import sharding

MAX_MEL_FRAMES = 3000


@dataclasses.dataclass(frozen=True)
class WhisperConfig:
    """Sizes. Whisper-base: 6 layers, width 512, 8 heads, MLP 2048, 80 mels, strides (1, 2).

    `conv_strides=(2, 2)` halves the frame rate to 25 Hz: half the cost of the layers. `stored_positions` makes the
    fixed positions a parameter that no gradient reaches, so that a pretrained model has its own: Whisper puts much
    weight on a few frames, and positions in half precision (an error of 3e-4) move some last states by .7.
    """

    family: ClassVar[str] = "whisper"

    num_layers: int = 4
    width: int = 144
    num_heads: int = 4
    mlp_width: int = 576
    num_mels: int = 80
    conv_strides: tuple[int, int] = (1, 2)
    stored_positions: bool = False
    dropout: float = 0.0
    remat: str = "none"  # a key of stack.REMAT_POLICIES

    def make(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> WhisperEncoder:
        """The encoder, freshly initialised."""
        return WhisperEncoder(self, dtype=dtype, rngs=rngs)

    def num_frames(self, num_samples: int) -> int:
        """Frames after both convolutions."""
        return self._frames(num_samples)[-1]

    def flops(self, num_samples: int) -> float:
        """Forward operations: log-mel, convolutions, blocks."""
        after_first, frames = self._frames(num_samples)
        convs = 6 * self.width * (after_first * self.num_mels + frames * self.width)
        mel = log_mel_lib.flops(num_samples, self.num_mels)
        return mel + convs + self.num_layers * block_flops(frames, self.width, self.mlp_width)

    def _frames(self, num_samples: int) -> tuple[int, int]:
        """Frames after each convolution."""
        mel_frames = -(-num_samples // log_mel_lib.HOP)
        after_first = -(-mel_frames // self.conv_strides[0])
        return after_first, -(-after_first // self.conv_strides[1])


def sinusoids(length: int, width: int) -> np.ndarray:
    """Whisper's fixed positions f32 [length, width]: sines, then cosines, of geometric time scales 1 … 10000.

    Its f32 roundings are kept (in the exponents and in the phases): without them late positions are 1e-4 off.
    """
    half = width // 2
    exponents = np.float32(-math.log(10000) / (half - 1)) * np.arange(half, dtype=np.float32)
    scales = np.exp(exponents.astype(np.float64)).astype(np.float32)
    phases = (np.arange(length, dtype=np.float32)[:, None] * scales).astype(np.float64)
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=1).astype(np.float32)


class WhisperEncoder(nnx.Module):
    """Two convolutions with GELU, fixed positions, pre-norm blocks, final norm.

    Padded frames neither attend nor reach a valid frame through a convolution, so padding changes nothing.
    """

    def __init__(self, cfg: WhisperConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.cfg, self.dtype = cfg, dtype
        first, second = cfg.conv_strides
        self.conv1 = Conv1d(cfg.num_mels, cfg.width, 3, stride=first, dtype=dtype, rngs=rngs)
        self.conv2 = Conv1d(cfg.width, cfg.width, 3, stride=second, dtype=dtype, rngs=rngs)
        frames = MAX_MEL_FRAMES // (first * second)
        self.positions = nnx.Param(jnp.asarray(sinusoids(frames, cfg.width))) if cfg.stored_positions else None
        self.layers = stack_blocks(cfg, rngs, key_bias=False, dtype=dtype)
        self.final_norm = LayerNorm(cfg.width, dtype=dtype)

    def front_end(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Waveform [B, S], num_samples int [B] -> log-mel f32 [B, F, mels] and mask bool [B, F] (log_mel.py)."""
        return log_mel_lib.log_mel(waveform, num_samples, self.cfg.num_mels)

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
        """Log-mel features [B, F, mels] (100 frames a second), mask bool [B, F] -> EncoderOutput.

        Hidden states are counted as transformers does: 0 the input of the first layer, 1 … L-1 the outputs of
        layers, L the output of the final norm. `mix_logits` f32 [L + 1] asks for
        Σ softmax(mix_logits)_l · normalise(state_l).

        Raises:
            ValueError: more than 3000 mel frames.
        """
        if features.shape[1] > MAX_MEL_FRAMES:
            raise ValueError(
                f"WhisperEncoder: {features.shape[1]} mel frames, but the limit is 30 s = {MAX_MEL_FRAMES}. "
                "Cut the audio first."
            )
        x, mask = self._embed(features, mask)
        x = dropout(x, self.cfg.dropout, None if rng is None else jax.random.fold_in(rng, 0))
        return through_layers(
            self.layers,
            x,
            mask,
            final_norm=self.final_norm,
            remat=self.cfg.remat,
            rng=None if rng is None else jax.random.fold_in(rng, 1),
            mix_logits=mix_logits,
            collect=collect,
            means_over=means_over,
        )

    def _embed(self, features: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The convolutions and positions: [B, F, mels], [B, F] -> [B, T, width], [B, T]."""
        x = features.astype(self.dtype)
        for conv, stride in zip((self.conv1, self.conv2), self.cfg.conv_strides, strict=True):
            # Invalid frames are set to the zeros a convolution sees beyond the end of an unpadded utterance.
            x = gelu(conv(jnp.where(mask[..., None], x, 0.0)))
            mask = mask[:, ::stride]
        if self.positions is None:
            positions = sinusoids(x.shape[1], self.cfg.width)
        else:
            positions = lax.stop_gradient(sharding.gather_weight(self.positions[...]))[: x.shape[1]]
        return x + positions.astype(self.dtype), mask
