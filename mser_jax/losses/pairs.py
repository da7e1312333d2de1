"""What every contrastive term is made of: which pairs attract and repel, and what a row learns of its columns.

All terms are the mean over positives p of −log softmax_p, per row, summed over rows (Khosla et al. 2020,
arXiv 2004.11362, eq. 2, "L_out"); they differ only in which columns are positives and which stand in the
denominator: a `Relation`. What is summed over columns is a `Summary`, and summaries of parts of the columns merge, so
one definition serves a whole matrix and a matrix of which only a tile at a time exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mser_jax.parallel.sharding import BATCH_AXES, constrain

# Far below any logit and still finite: a row without a candidate keeps finite values and zero gradients.
_NEVER = -1e30

# Arrays [n] by name: integers (−1 = unknown) or booleans.
Facts = Mapping[str, jax.Array]


def by_row(x: jax.Array) -> jax.Array:
    """`x` [n, ...] with its rows over the batch axes of the mesh; the identity without a mesh."""
    return constrain(x, P(BATCH_AXES, *(None,) * (x.ndim - 1)))


class Grid:
    """Row × column facts of a batch or of a tile of it. Every method returns bool [rows, columns].

    Both sides hold the same facts, among them `index`, the row's number in the global batch.
    """

    def __init__(self, rows: Facts, columns: Facts):
        self._rows = {name: fact[:, None] for name, fact in rows.items()}
        self._columns = {name: fact[None, :] for name, fact in columns.items()}

    def own(self) -> jax.Array:
        """The diagonal."""
        return self._rows["index"] == self._columns["index"]

    def both(self, name: str) -> jax.Array:
        """The boolean fact holds for the row and for the column."""
        return (self._rows[name] != 0) & (self._columns[name] != 0)

    def known(self, name: str) -> jax.Array:
        """The integer fact is known (not negative) of both."""
        return (self._rows[name] >= 0) & (self._columns[name] >= 0)

    def same(self, name: str) -> jax.Array:
        """Known of both, and equal."""
        return self.known(name) & (self._rows[name] == self._columns[name])

    def differ(self, name: str) -> jax.Array:
        """Known of both, and unequal."""
        return self.known(name) & (self._rows[name] != self._columns[name])


class Pairs(NamedTuple):
    """What the pairs of a grid are to each other; arrays [rows, columns], alike in both directions.

    positives: float32 or bool weights w ≥ 0, positive only where `candidates`.
    candidates: bool, the columns of a row's denominator.
    wanted: bool; a row whose best column is one of these and not another candidate is a hit.
    counted: {name: bool}, what is to be counted.
    """

    positives: jax.Array
    candidates: jax.Array
    wanted: jax.Array
    counted: Mapping[str, jax.Array]


# Must be symmetric: relation(Grid(x, y)) is the transpose of relation(Grid(y, x)).
Relation = Callable[[Grid], Pairs]


class Summary(NamedTuple):
    """What a row's columns say, float32 [n] each.

    lse: log Σ exp of the candidates' logits (about −1e30 without any).
    attraction: Σ w · logit.
    weight: Σ w.
    best_wanted, best_other: the largest logit of a wanted column and of another candidate; −inf without any.
    """

    lse: jax.Array
    attraction: jax.Array
    weight: jax.Array
    best_wanted: jax.Array
    best_other: jax.Array

    def merge(self, other: Summary) -> Summary:
        """The summary of both sets of columns."""
        return Summary(
            jnp.logaddexp(self.lse, other.lse),
            self.attraction + other.attraction,
            self.weight + other.weight,
            jnp.maximum(self.best_wanted, other.best_wanted),
            jnp.maximum(self.best_other, other.best_other),
        )

    def has_positive(self) -> jax.Array:
        """Bool [n]: the rows that count."""
        return self.weight > 0

    def losses(self) -> jax.Array:
        """−Σ_p w_ip log softmax_p / Σ_p w_ip, float32 [n]; 0 where a row has no positive."""
        mean = self.attraction / jnp.where(self.has_positive(), self.weight, 1.0)
        return jnp.where(self.has_positive(), self.lse - mean, 0.0)

    def hits(self) -> jax.Array:
        """Bool [n]. A tie is a miss, or a collapsed encoder would score 1."""
        return self.has_positive() & (self.best_wanted > self.best_other)


def nothing(rows: int) -> Summary:
    """The summary of no column: merging it changes nothing."""
    never, zero, lowest = (jnp.full(rows, value, jnp.float32) for value in (_NEVER, 0.0, -jnp.inf))
    return Summary(never, zero, zero, lowest, lowest)


def summarise(logits: jax.Array, pairs: Pairs, axis: int = -1) -> Summary:
    """The summary over `axis` of float32 logits [rows, columns]: −1 is of the rows, 0 of the columns."""
    weights = pairs.positives.astype(jnp.float32)
    return Summary(
        lse=jax.nn.logsumexp(jnp.where(pairs.candidates, logits, _NEVER), axis=axis),
        attraction=(weights * logits).sum(axis),
        weight=weights.sum(axis),
        best_wanted=jnp.where(pairs.wanted, logits, -jnp.inf).max(axis),
        best_other=jnp.where(pairs.candidates & ~pairs.wanted, logits, -jnp.inf).max(axis),
    )


def count(pairs: Pairs) -> dict[str, jax.Array]:
    """How many of each row's pairs are what is counted: {name: float32 [rows]}, exact below 2²⁴ columns."""
    return {name: mask.sum(-1, dtype=jnp.float32) for name, mask in pairs.counted.items()}


def product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """einsum in float32.

    Full float32 products, because accelerators multiply float32 in bfloat16 by default and a scale of 100
    turns that rounding into ±0.4 of a logit.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(subscripts, x, y, precision=jax.lax.Precision.HIGHEST)


def similarities(rows: jax.Array, columns: jax.Array, scale: jax.Array | float) -> jax.Array:
    """scale · rows · columnsᵀ in float32: [n, d], [m, d] -> [n, m], rows sharded like `rows`."""
    return product("nd,md->nm", rows, columns) * jnp.asarray(scale, jnp.float32)


class Totals(NamedTuple):
    """A term over the global batch; float32 scalars.

    loss: Σ over rows of the mean of the two directions' losses.
    rows: number of rows that have a positive.
    hits, hits_back: rows whose best column is wanted, and columns whose best row is.
    counts: {name of what is counted: number of pairs}.
    """

    loss: jax.Array
    rows: jax.Array
    hits: jax.Array
    hits_back: jax.Array
    counts: Mapping[str, jax.Array]


def total(there: Summary, back: Summary, counts: Mapping[str, jax.Array]) -> Totals:
    """Sums over the rows of summaries in the two directions, and of `count`."""
    return Totals(
        loss=0.5 * (there.losses() + back.losses()).sum(),
        rows=there.has_positive().sum(dtype=jnp.float32),
        hits=there.hits().sum(dtype=jnp.float32),
        hits_back=back.hits().sum(dtype=jnp.float32),
        counts={name: rows.sum() for name, rows in counts.items()},
    )
