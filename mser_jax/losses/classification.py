"""Cross-entropy with unknown labels: the loss of the adversary's heads (language, speaker, domain)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """−log softmax of the label, summed over the valid rows whose label is known.

    Args:
      logits: [n, classes], any float dtype; computed in float32.
      labels: int [n] in [0, classes), −1 = ignore.
      valid: bool [n].

    Returns:
      (sum, number of counted rows, metrics {"accuracy"}); float32.
    """
    logits = logits.astype(jnp.float32)
    counted = valid & (labels >= 0)
    # One-hot, because indexing a row by its label is not expressible on sharded rows of an explicit mesh; the
    # one-hot of −1 is all zero.
    losses = optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32))
    weight = counted.sum(dtype=jnp.float32)
    hits = (counted & (logits.argmax(-1) == labels)).sum(dtype=jnp.float32)
    metrics = {"accuracy": hits / jnp.maximum(weight, 1.0)}
    return jnp.where(counted, losses, 0.0).sum(), weight, jax.lax.stop_gradient(metrics)
