"""Supervised contrast between utterances of the same emotion, with more weight on pairs across languages."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mser_jax.losses.contrast import AUTO, contrast
from mser_jax.losses.pairs import Grid, Pairs


def _relation(grid: Grid, cross_language_weight: float) -> Pairs:
    others = grid.both("valid") & ~grid.own() & grid.known("emotion")
    positives = others & grid.same("emotion")
    across = positives & grid.differ("language")
    weights = jnp.where(across, jnp.float32(cross_language_weight), positives.astype(jnp.float32))
    return Pairs(weights, others, wanted=positives, counted={"positives": positives, "across": across})


def supcon(
    z: jax.Array,
    *,
    emotion: jax.Array,
    language: jax.Array,
    valid: jax.Array,
    temperature: jax.Array | float,
    cross_language_weight: float = 1.0,
    implementation: str = AUTO,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Supervised contrastive loss L_out (Khosla et al. 2020, arXiv 2004.11362, eq. 2), weighted by language.

    With s_ij = z_i · z_j / temperature, K_i the other valid rows whose emotion is known, and P_i those of K_i
    with i's emotion:
      ℓ_i = −Σ_{p ∈ P_i} w_ip log( exp s_ip / Σ_{k ∈ K_i} exp s_ik ) / Σ_{p ∈ P_i} w_ip,
    where w_ip is `cross_language_weight` when the languages are known and differ, else 1. Weight 1 is SupCon
    itself; weight 0 pulls within a language only. A row of unknown emotion is no negative either: it may be
    of the same emotion.

    Args:
      z: [n, d] unit-norm embeddings, any float dtype, global batch.
      emotion, language: int [n], −1 unknown.
      valid: bool [n].
      temperature: scalar > 0.
      cross_language_weight: ≥ 0.
      implementation: one of contrast.CHOICES.

    Returns:
      (sum over rows that have a positive, number of those rows, metrics); float32. Metrics: positives (mean
      number of positives of those rows), cross_language (the share of them in another language).
    """
    facts = {"emotion": emotion, "language": language, "valid": valid}
    relation = functools.partial(_relation, cross_language_weight=cross_language_weight)
    found = contrast(z, z, 1.0 / jnp.asarray(temperature, jnp.float32), facts, relation, implementation)
    pairs = found.counts["positives"]
    metrics = {
        "positives": pairs / jnp.maximum(found.rows, 1.0),
        "cross_language": found.counts["across"] / jnp.maximum(pairs, 1.0),
    }
    return found.loss, found.rows, jax.lax.stop_gradient(metrics)
