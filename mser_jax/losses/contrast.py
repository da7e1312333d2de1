"""Symmetric contrast over the global batch: one name, several implementations of the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mser_jax.losses.pairs import Facts, Grid, Relation, Totals, by_row, count, similarities, summarise, total
from mser_jax.losses.ring import ring
from mser_jax.parallel.sharding import replicate

# (rows [n, d], columns [n, d], scale, facts {name: [n]}, relation) -> Totals
Implementation = Callable[[jax.Array, jax.Array, jax.Array, Facts, Relation], Totals]


def _indexed(facts: Facts) -> Facts:
    return {"index": jnp.arange(next(iter(facts.values())).shape[0]), **facts}


def _dense(rows: jax.Array, columns: jax.Array, scale: jax.Array, facts: Facts, relation: Relation) -> Totals:
    """Both sides and the whole n × n matrix on every device: the reference, and the fastest for small n."""
    facts = {name: replicate(fact) for name, fact in _indexed(facts).items()}
    pairs = relation(Grid(facts, facts))
    logits = similarities(replicate(rows), replicate(columns), scale)
    return total(summarise(logits, pairs), summarise(logits, pairs, axis=0), count(pairs))


def _gathered(rows: jax.Array, columns: jax.Array, scale: jax.Array, facts: Facts, relation: Relation) -> Totals:
    """Each device's rows against all columns, once in each direction: two n/P × n matrices a device."""
    facts = _indexed(facts)
    pairs = relation(Grid(*({name: layout(fact) for name, fact in facts.items()} for layout in (by_row, replicate))))
    there = summarise(similarities(by_row(rows), replicate(columns), scale), pairs)
    if rows is columns:
        return total(there, there, count(pairs))
    back = summarise(similarities(by_row(columns), replicate(rows), scale), pairs)
    return total(there, back, count(pairs))


IMPLEMENTATIONS: dict[str, Implementation] = {"dense": _dense, "gathered": _gathered, "ring": ring}
AUTO = "auto"
CHOICES = (AUTO, *IMPLEMENTATIONS)

# From this global batch on, "auto" is the ring. Its hops cost time, so small batches gather. A gathered matrix takes
# 4n²/P bytes a device, and several of them are alive at once: on 16 v5e chips the compiler reports 65 MiB of
# temporaries for speech_text and its gradients at 8,192 rows, 385 MiB at 16,384 and 1,154 MiB at 32,768 (width 1,024),
# where the ring takes 26 MiB.
RING_FROM = 16_384


def contrast(
    rows: jax.Array,
    columns: jax.Array,
    scale: jax.Array | float,
    facts: Facts,
    relation: Relation,
    implementation: str = AUTO,
) -> Totals:
    """What `relation` makes of the logits scale · rows · columnsᵀ, by rows and by columns.

    Args:
      rows, columns: [n, d] embeddings, any float dtype, global batch; the same array twice where rows meet each other.
      scale: scalar.
      facts: {name: [n]}, integers (−1 unknown) or booleans.
      relation: (grid with these facts and `index`) -> Pairs, symmetric.
      implementation: one of CHOICES.

    Raises:
      ValueError: unknown `implementation`.
    """
    if implementation not in CHOICES:
        raise ValueError(f"implementation={implementation!r}, expected one of {CHOICES}")
    if implementation == AUTO:
        implementation = "ring" if rows.shape[0] >= RING_FROM else "gathered"
    return IMPLEMENTATIONS[implementation](rows, columns, jnp.asarray(scale, jnp.float32), facts, relation)
