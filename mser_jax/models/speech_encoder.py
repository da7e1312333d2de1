"""What every speech encoder takes and returns, whatever its family (whisper.py, wav2vec2.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mser_jax.models.layers import normalise
from mser_jax.models.stack import run_layers, weighted_mean

SAMPLING_RATE = 16_000


# Mask bool [B, T] of an encoder's frames -> weights f32 [B, K, T] of K means over time.
MeansOver = Callable[[jax.Array], jax.Array]


class EncoderOutput(NamedTuple):
    """What an encoder returns; D = width, T = frames, L = layers.

    `last` [B, T, D] is the last hidden state; `mask` bool [B, T] of valid frames; `mixed` f32 [B, T, D] where
    mix_logits were given; `hidden_states` [L + 1, B, T, D] and `means` f32 [L + 1, B, K, D] where asked for.
    """

    last: jax.Array
    mask: jax.Array
    mixed: jax.Array | None
    hidden_states: jax.Array | None
    means: jax.Array | None


class SpeechEncoder(Protocol):
    """Waveform → features → hidden states of all layers. Padding changes nothing in either part."""

    def front_end(self, waveform: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Waveform int16 or f32 [B, S] at 16 kHz, num_samples int [B] -> the encoder's own features and their mask.

        Nothing is learned here: Whisper's log-mel [B, F, mels], wav2vec2's normalised waveform [B, S].
        """

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
        """Features and mask of `front_end` -> EncoderOutput.

        Hidden states are counted as transformers does: 0 is the input of the first layer, L what comes out at the
        end. `mix_logits` f32 [L + 1] asks for Σ softmax(mix_logits)_l · normalise(state_l); `collect` for all
        states; `means_over` for K means of each normalised state over time. `rng` draws dropout.
        """


class SpeechEncoderConfig(Protocol):
    """Sizes of an encoder of some family."""

    family: ClassVar[str]

    @property
    def num_layers(self) -> int:
        """Blocks; hidden states are one more."""

    @property
    def width(self) -> int:
        """Of the hidden states."""

    def make(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> SpeechEncoder:
        """The encoder, freshly initialised."""

    def num_frames(self, num_samples: int) -> int:
        """Frames T of `num_samples` samples at 16 kHz."""

    def flops(self, num_samples: int) -> float:
        """Forward floating-point operations, a multiply-add counted as 2, front end included."""


def through_layers(
    layers: nnx.Module,
    x: jax.Array,
    mask: jax.Array,
    *args: Any,
    final_norm: Callable[[jax.Array], jax.Array] | None,
    remat: str,
    rng: jax.Array | None,
    mix_logits: jax.Array | None,
    collect: bool,
    means_over: MeansOver | None,
) -> EncoderOutput:
    """x [B, T, D], mask bool [B, T] through an encoder's stack, to what `SpeechEncoder.__call__` returns.

    `final_norm` (pre-norm models; None elsewhere): the last hidden state is what comes out of it. `args` go to the
    layers after the mask.
    """
    weights = None if mix_logits is None else jax.nn.softmax(mix_logits.astype(jnp.float32))
    of_layers = None if weights is None else weights[1:]
    if weights is not None and final_norm:
        of_layers = of_layers.at[-1].set(0.0)  # the last layer counts after the norm, below
    shares = means_over(mask) if means_over else None
    out = run_layers(
        layers, x, mask, *args, remat=remat, rng=rng, mix_weights=of_layers, mean_weights=shares, collect=collect
    )
    last = final_norm(out.last) if final_norm else out.last
    mixed, states, means = None, None, None
    if weights is not None:
        mixed = weights[0] * normalise(x) + out.mixed
        mixed = mixed + weights[-1] * normalise(last) if final_norm else mixed
    if collect:
        states = jnp.concatenate([x[None], out.collected[:-1], last[None]])
    if shares is not None:
        ends = [weighted_mean(state, shares)[None] for state in (x, last)]
        means = jnp.concatenate([ends[0], out.means[:-1], ends[1]])
    return EncoderOutput(last, mask, mixed, states, means)


def frame_weights(mask: jax.Array, size: int) -> jax.Array:
    """Mask bool [B, T] -> f32 [B, T]: Σ_t weight_t · x_t is the mean of `pool_frames(x, mask, size)`, or 0."""
    chunks = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % size))).reshape(mask.shape[0], -1, size)
    count = chunks.sum(-1)
    share = jnp.repeat(1.0 / jnp.maximum(count, 1), size, axis=1)[:, : mask.shape[1]]
    return jnp.where(mask, share, 0.0) / jnp.maximum((count > 0).sum(-1), 1)[:, None]


def mix_states(states: jax.Array, logits: jax.Array) -> jax.Array:
    """Normalised hidden states [B, T, L + 1, D], logits f32 [L + 1] -> Σ softmax(logits)_l · state_l, f32 [B, T, D].

    What an encoder does with `mix_logits`, for states that were computed before.
    """
    weights = jax.nn.softmax(logits.astype(jnp.float32))
    return jnp.einsum("btld,l->btd", states, weights.astype(states.dtype), preferred_element_type=jnp.float32)


def pool_frames(x: jax.Array, mask: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Means over the valid frames of every `size` neighbours.

    Args:
        x: [B, T, …].
        mask: bool [B, T] of valid frames.
        size: frames that become one; 1 changes nothing.

    Returns:
        f32 [B, ceil(T / size), …], and the mask bool [B, ceil(T / size)]: where any frame was valid.
    """
    if size == 1:
        return x, mask
    room = -x.shape[1] % size
    x = jnp.where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x.astype(jnp.float32), 0.0)
    x = jnp.pad(x, ((0, 0), (0, room)) + ((0, 0),) * (x.ndim - 2))
    count = jnp.pad(mask, ((0, 0), (0, room))).reshape(mask.shape[0], -1, size).sum(-1)
    total = x.reshape(x.shape[0], -1, size, *x.shape[2:]).sum(2)
    return total / jnp.maximum(count, 1).reshape(*count.shape, *(1,) * (x.ndim - 2)), count > 0


def block_flops(length: int, width: int, mlp: int, memory: int = 0, memory_width: int = 0) -> float:
    """One transformer block on one sequence: projections, attention, MLP; cross-attention to `memory` frames if any."""
    own = 8 * length * width**2 + 4 * length**2 * width + 4 * length * width * mlp
    cross = 4 * length * width**2 + 4 * memory * memory_width * width + 4 * length * memory * width
    return own + (cross if memory else 0)
