"""Adversarial heads: what they learn to tell, the encoder learns to hide (Ganin & Lempitsky 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mser_jax.models.layers import Linear


@jax.custom_vjp
def reverse_gradient(x: jax.Array, scale: float | jax.Array) -> jax.Array:
    """The identity, whose gradient with respect to x is multiplied by -scale."""
    del scale
    return x


def _forward(x: jax.Array, scale: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, jnp.asarray(scale, jnp.float32)


def _backward(scale: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (-scale * g).astype(g.dtype), jnp.zeros_like(scale)


reverse_gradient.defvjp(_forward, _backward)


class Classifier(nnx.Module):
    """Linear, GELU, linear, in f32."""

    def __init__(self, width: int, hidden: int, classes: int, *, rngs: nnx.Rngs):
        self.hidden = Linear(width, hidden, rngs=rngs)
        self.logits = Linear(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, width] -> logits f32 [B, classes]."""
        return self.logits(jax.nn.gelu(self.hidden(x), approximate=False))


class AdversaryHeads(nnx.Module):
    """A classifier a nuisance (language, speaker, domain), each behind the reversed gradient."""

    def __init__(self, width: int, heads: Sequence[tuple[str, int]], *, hidden: int = 128, rngs: nnx.Rngs):
        self.heads = nnx.Dict({name: Classifier(width, hidden, classes, rngs=rngs) for name, classes in heads})

    def __call__(self, x: jax.Array, scale: float | jax.Array) -> dict[str, jax.Array]:
        """[B, width] -> logits f32 [B, classes] by name; `scale` is λ: -λ times the gradient flows into x."""
        reversed_x = reverse_gradient(x.astype(jnp.float32), scale)
        return {name: head(reversed_x) for name, head in self.heads.items()}
