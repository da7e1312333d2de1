"""Rotary position embeddings (Su et al. 2021) and the ways in which their frequencies are stretched.

Frequencies are computed on the host in f32, operation by operation as transformers does: at position 2000
one unit in the last place of a frequency near 1 is a phase 1e-4 off.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("default", "linear", "llama3", "yarn")


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions become angles. Fields after `kind` count only for the kinds named beside them.

    Kinds: "default"; "linear" (Chen et al. 2023: all frequencies divided by `factor`); "llama3" (Llama 3.1: low
    frequencies divided, those between `low_freq_factor` and `high_freq_factor` turns within
    `original_positions` blended); "yarn" (Peng et al. 2023: a ramp between `beta_slow` and `beta_fast` turns,
    sines and cosines times `attention_factor`).

    Raises:
        ValueError: unknown kind.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0  # linear, llama3, yarn
    original_positions: int = 8192  # llama3, yarn: the longest sequence before stretching
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: ramp from and to whole dimensions
    attention_factor: float = 1.0  # yarn

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Rope: kind={self.kind!r}, expected one of {KINDS}")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position, f32 [head_dim / 2], highest first."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        # f64 inside: torch's f32 power is the exact one rounded, numpy's is not.
        wavelengths = (self.theta ** exponents.astype(np.float64)).astype(np.float32)  # in positions, over 2π
        plain = np.float32(1) / wavelengths
        if self.kind == "linear":
            return plain / np.float32(self.factor)
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            share = self._yarn_interpolated(head_dim)
            return share / (np.float32(self.factor) * wavelengths) + (1 - share) * plain
        return plain

    def _llama3(self, plain: np.ndarray) -> np.ndarray:
        """Divided by the factor below low_freq_factor turns, as they are above high_freq_factor, blended between."""
        turns = np.float32(self.original_positions) / (np.float32(2 * math.pi) / plain)
        blend = (turns - np.float32(self.low_freq_factor)) / np.float32(self.high_freq_factor - self.low_freq_factor)
        blend = np.clip(blend, 0, 1)
        return (1 - blend) * plain / np.float32(self.factor) + blend * plain

    def _yarn_interpolated(self, head_dim: int) -> np.ndarray:
        """How far each frequency is divided by the factor: 0 not, 1 wholly."""

        def dimension(turns: float) -> float:
            """The dimension that turns so often within the original length."""
            return head_dim * math.log(self.original_positions / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001
        return np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / np.float32(high - low), 0, 1)


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array, attention_factor: jax.Array) -> jax.Array:
    """x [B, T, heads, head_dim] turned by positions int [B, T] × frequencies f32 [head_dim / 2]; x's dtype.

    Dimension i forms a pair with i + head_dim / 2 (the layout of the Hugging Face weights). f32 inside.
    """
    phase = (positions.astype(jnp.float32)[..., None] * frequencies)[:, :, None]
    cos, sin = jnp.cos(phase) * attention_factor, jnp.sin(phase) * attention_factor
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
