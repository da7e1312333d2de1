"""Speech–speech InfoNCE between renderings of the same words and emotion in two languages."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mser_jax.losses.contrast import AUTO, contrast
from mser_jax.losses.pairs import Grid, Pairs


def _relation(grid: Grid) -> Pairs:
    others = grid.both("valid") & ~grid.own()
    same_words = others & grid.same("parallel_id") & ~grid.differ("emotion")
    positives = same_words & grid.same("emotion") & grid.differ("language")
    # Speech of one emotion is one place, whatever is said: speech_text pulls there what a negative would push away.
    negatives = others & ~same_words & ~grid.same("emotion")
    return Pairs(positives, positives | negatives, wanted=positives, counted={"positives": positives})


def parallel(
    z: jax.Array,
    *,
    parallel_id: jax.Array,
    emotion: jax.Array,
    language: jax.Array,
    valid: jax.Array,
    logit_scale: jax.Array | float,
    implementation: str = AUTO,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """InfoNCE whose positives share `parallel_id` and emotion and differ in language.

    With s_ij = logit_scale · z_i · z_j and P_i the positives of row i (SupCon's L_out over them):
      ℓ_i = −1/|P_i| Σ_{p ∈ P_i} log( exp s_ip / Σ_{k ∈ P_i ∪ N_i} exp s_ik ).
    N_i are the other valid rows, less those of the same known emotion, and of the same `parallel_id` where an emotion
    is unknown: neither pulled nor pushed, whoever says what. The same words in another emotion stay negatives, the
    hardest there are.

    Args:
      z: [n, d] unit-norm embeddings, any float dtype, global batch.
      parallel_id, emotion, language: int [n], −1 unknown.
      valid: bool [n].
      logit_scale: inverse temperature, scalar.
      implementation: one of contrast.CHOICES.

    Returns:
      (sum over rows that have a positive, number of those rows, metrics); float32. Metrics: positives (mean
      number of positives of those rows), recall (share of those rows whose best candidate is a positive).
    """
    facts = {"parallel_id": parallel_id, "emotion": emotion, "language": language, "valid": valid}
    found = contrast(z, z, logit_scale, facts, _relation, implementation)
    rows = jnp.maximum(found.rows, 1.0)
    metrics = {"positives": found.counts["positives"] / rows, "recall": found.hits / rows}
    return found.loss, found.rows, jax.lax.stop_gradient(metrics)
