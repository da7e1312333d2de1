"""Cross-entropy of an LLM's answer tokens: the loss of stage 2."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, targets: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """−log softmax of the target, summed over the tokens that count.

    Args:
        logits: [B, A, vocabulary], any float dtype; computed in float32.
        targets: int [B, A].
        mask: bool [B, A], which of them count.

    Returns:
        (sum, number of counted tokens, {"token_accuracy": (hits, number)}); float32.
    """
    logits = logits.astype(jnp.float32)
    # A comparison, because indexing by the target is not expressible on sharded rows of an explicit mesh. On CPU it is
    # not fused with the sum: an array of the logits' size is written (7 % of a step with Gemma's vocabulary).
    is_target = jnp.arange(logits.shape[-1], dtype=targets.dtype) == targets[..., None]
    of_target = jnp.where(is_target, logits, 0.0).sum(-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - of_target
    weight = mask.sum(dtype=jnp.float32)
    # logsumexp needs this maximum too; an argmax would read the logits once more.
    hits = (mask & (of_target >= logits.max(-1))).sum(dtype=jnp.float32)
    return jnp.where(mask, losses, 0.0).sum(), weight, {"token_accuracy": (hits, weight)}
