"""Speech–text InfoNCE over the global batch: one name, several implementations of the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mser_jax.losses.contrast import Grid, by_row, row_losses, similarities
from mser_jax.parallel.sharding import replicate

POSITIVES = ("masked", "multi_positive")

# (loss sum, hits speech→text, hits text→speech, false negatives), all float32 scalars.
Sums = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
# (speech [n, d], text [n, d], logit_scale, facts {name: [n]}, positives) -> Sums
Implementation = Callable[[jax.Array, jax.Array, jax.Array, Mapping[str, jax.Array], str], Sums]


def _direction(logits: jax.Array, grid: Grid, positives: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows looking for their columns: (loss sum, hits, number of false negatives)."""
    valid = grid.both("valid")
    own = grid.own() & valid
    alike = (own | grid.same("caption_id") | grid.same("emotion")) & valid
    false_negatives = alike & ~own
    if positives == "masked":
        losses, _ = row_losses(logits, own, valid & ~false_negatives)
    else:
        losses, _ = row_losses(logits, alike, valid)
    # A tie is a miss, or a collapsed encoder would score 1.
    best = jnp.where(alike, logits, -jnp.inf).max(-1)
    hits = own.any(-1) & (best > jnp.where(valid & ~alike, logits, -jnp.inf).max(-1))
    return losses.sum(), hits.sum(dtype=jnp.float32), false_negatives.sum(dtype=jnp.float32)


def _dense(
    speech: jax.Array, text: jax.Array, scale: jax.Array, facts: Mapping[str, jax.Array], positives: str
) -> Sums:
    """Both sides and the whole n × n matrix on every device: the reference, and the fastest for small n."""
    grid = Grid(replicate, **facts)
    logits = similarities(replicate(speech), replicate(text), scale)
    to_text, hits_text, false_negatives = _direction(logits, grid, positives)
    to_speech, hits_speech, _ = _direction(logits.T, grid, positives)
    return 0.5 * (to_text + to_speech), hits_text, hits_speech, false_negatives


def _gathered(
    speech: jax.Array, text: jax.Array, scale: jax.Array, facts: Mapping[str, jax.Array], positives: str
) -> Sums:
    """Each device's rows against all columns, once in each direction: two n/P × n matrices a device."""
    grid = Grid(by_row, **facts)
    to_text, hits_text, false_negatives = _direction(
        similarities(by_row(speech), replicate(text), scale), grid, positives
    )
    to_speech, hits_speech, _ = _direction(similarities(by_row(text), replicate(speech), scale), grid, positives)
    return 0.5 * (to_text + to_speech), hits_text, hits_speech, false_negatives


IMPLEMENTATIONS: dict[str, Implementation] = {"dense": _dense, "gathered": _gathered}


def speech_text(
    speech: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array | float,
    *,
    caption_id: jax.Array,
    emotion: jax.Array,
    valid: jax.Array,
    positives: str = "masked",
    implementation: str = "gathered",
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
      implementation: a key of IMPLEMENTATIONS.

    Returns:
      (sum over valid rows, number of valid rows, metrics); both float32, the mean loss is their quotient.
      Metrics: recall_speech_to_text, recall_text_to_speech (share of valid rows whose best column is alike),
      false_negatives (alike pairs i ≠ j kept out of the negatives), logit_scale.

    Raises:
      ValueError: unknown `positives` or `implementation`.
    """
    for name, value, known in (
        ("positives", positives, POSITIVES),
        ("implementation", implementation, tuple(IMPLEMENTATIONS)),
    ):
        if value not in known:
            raise ValueError(f"speech_text: {name}={value!r}, expected one of {known}")
    scale = jnp.asarray(logit_scale, jnp.float32)
    facts = {"caption_id": caption_id, "emotion": emotion, "valid": valid}
    loss, hits_text, hits_speech, false_negatives = IMPLEMENTATIONS[implementation](
        speech, text, scale, facts, positives
    )
    weight = valid.sum(dtype=jnp.float32)
    rows = jnp.maximum(weight, 1.0)
    metrics = {
        "recall_speech_to_text": hits_text / rows,
        "recall_text_to_speech": hits_speech / rows,
        "false_negatives": false_negatives,
        "logit_scale": scale,
    }
    return loss, weight, jax.lax.stop_gradient(metrics)
