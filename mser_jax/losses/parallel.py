"""Speech–speech InfoNCE between renderings of the same words and emotion in two languages."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mser_jax.losses.contrast import Grid, by_row, row_losses, similarities
from mser_jax.parallel.sharding import replicate


def parallel(
    z: jax.Array,
    *,
    parallel_id: jax.Array,
    emotion: jax.Array,
    language: jax.Array,
    valid: jax.Array,
    logit_scale: jax.Array | float,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """InfoNCE whose positives share `parallel_id` and emotion and differ in language.

    With s_ij = logit_scale · z_i · z_j and P_i the positives of row i (SupCon's L_out over them):
      ℓ_i = −1/|P_i| Σ_{p ∈ P_i} log( exp s_ip / Σ_{k ∈ P_i ∪ N_i} exp s_ik ).
    N_i are the other valid rows, less those of the same `parallel_id` whose emotion is the same or unknown
    (the same content in the same language, say by another speaker: neither pulled nor pushed). The same words
    in another emotion stay negatives, the hardest there are.

    Args:
      z: [n, d] unit-norm embeddings, any float dtype, global batch.
      parallel_id, emotion, language: int [n], −1 unknown.
      valid: bool [n].
      logit_scale: inverse temperature, scalar.

    Returns:
      (sum over rows that have a positive, number of those rows, metrics); float32. Metrics: positives (mean
      number of positives of those rows), recall (share of those rows whose best candidate is a positive).
    """
    grid = Grid(by_row, parallel_id=parallel_id, emotion=emotion, language=language, valid=valid)
    others = grid.both("valid") & ~grid.own()
    maybe_alike = others & grid.same("parallel_id") & ~grid.differ("emotion")
    positives = maybe_alike & grid.same("emotion") & grid.differ("language")
    negatives = others & ~maybe_alike
    logits = similarities(by_row(z), replicate(z), logit_scale)
    losses, has_positive = row_losses(logits, positives, positives | negatives)
    weight = has_positive.sum(dtype=jnp.float32)
    best = jnp.where(positives, logits, -jnp.inf).max(-1)
    hits = has_positive & (best > jnp.where(negatives, logits, -jnp.inf).max(-1))
    metrics = {
        "positives": positives.sum(dtype=jnp.float32) / jnp.maximum(weight, 1.0),
        "recall": hits.sum(dtype=jnp.float32) / jnp.maximum(weight, 1.0),
    }
    return losses.sum(), weight, jax.lax.stop_gradient(metrics)
