"""Speech–text InfoNCE over the global batch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from mser_jax.losses.contrast import AUTO, contrast
from mser_jax.losses.pairs import Grid, Pairs

POSITIVES = ("masked", "multi_positive")


def _relation(grid: Grid, positives: str) -> Pairs:
    valid = grid.both("valid")
    own = grid.own() & valid
    alike = (own | grid.same("caption_id") | grid.same("emotion")) & valid
    false_negatives = alike & ~own
    if positives == "masked":
        positive, candidates = own, valid & ~false_negatives
    else:
        positive, candidates = alike, valid
    return Pairs(positive, candidates, wanted=alike, counted={"false_negatives": false_negatives})


def speech_text(
    speech: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    *,
    caption_id: jax.Array,
    emotion: jax.Array,
    valid: jax.Array,
    positives: str = "masked",
    implementation: str = AUTO,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Symmetric InfoNCE (van den Oord et al. 2018; both directions as in CLIP, Radford et al. 2021).

    Two rows are alike when they share the caption or the known canonical emotion: they are no negatives of
    each other. With s_ij = logit_scale · speech_i · text_j, V the valid rows of the global batch and A_i the
    valid rows alike to i (i too):

      masked:          ℓ_i = −log  exp s_ii / Σ_{j ∈ V, j = i or j ∉ A_i} exp s_ij
      multi_positive:  ℓ_i = −1/|A_i| Σ_{p ∈ A_i} log  exp s_ip / Σ_{j ∈ V} exp s_ij   (SupCon's L_out)

    and likewise by columns; the loss of a row is the mean of the two directions.

    Args:
      speech, text: [n, d] unit-norm embeddings, any float dtype, global batch.
      logit_scale: what the cosine is multiplied with (already exponentiated and clamped), scalar.
      caption_id: int [n], equal = same caption, −1 unknown.
      emotion: int [n], −1 unknown.
      valid: bool [n]; other rows are neither rows nor columns.
      positives: one of POSITIVES.
      implementation: one of contrast.CHOICES.

    Returns:
      (sum over valid rows, number of valid rows, metrics); both float32, the mean loss is their quotient.
      Metrics: recall_speech_to_text, recall_text_to_speech (share of valid rows whose best column is alike),
      false_negatives (alike pairs i ≠ j kept out of the negatives), logit_scale.

    Raises:
      ValueError: unknown `positives` or `implementation`.
    """
    if positives not in POSITIVES:
        raise ValueError(f"speech_text: positives={positives!r}, expected one of {POSITIVES}")
    facts = {"caption_id": caption_id, "emotion": emotion, "valid": valid}
    relation = functools.partial(_relation, positives=positives)
    found = contrast(speech, text, logit_scale, facts, relation, implementation)
    # A valid row is its own positive.
    rows = jnp.maximum(found.rows, 1.0)
    metrics = {
        "recall_speech_to_text": found.hits / rows,
        "recall_text_to_speech": found.hits_back / rows,
        "false_negatives": found.counts["false_negatives"],
        "logit_scale": jnp.asarray(logit_scale, jnp.float32),
    }
    return found.loss, found.rows, jax.lax.stop_gradient(metrics)
