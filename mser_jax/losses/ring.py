"""Contrast over a sharded batch of which no device ever holds a whole row of logits: columns travel around a ring.

As ring attention (Liu et al. 2023, arXiv 2310.01889) and Inf-CL (Cheng et al. 2024, arXiv 2410.17243) do for a softmax
over keys, but in both directions at once. Each device keeps its rows. A block of columns, the summary of what these
columns saw so far and, in the backward pass, their gradient go from device to device by `ppermute`; after as many hops
as there are devices all are home again. A block of logits is made once in each pass and serves its rows and its
columns. What is kept between the passes is the embeddings and a few numbers a row; nothing is ever gathered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mser_jax.losses.pairs import (
    Facts,
    Grid,
    Pairs,
    Relation,
    Summary,
    Totals,
    by_row,
    count,
    nothing,
    product,
    similarities,
    summarise,
    total,
)
from mser_jax.parallel.sharding import BATCH, BATCH_AXES

# Rows and columns of the largest tile of logits: 4 MiB of float32, and large enough to keep a matrix unit busy.
MAX_TILE = 1024

# (facts of rows int32 [r, F], facts of columns int32 [c, F]) -> Pairs [r, c]
_PairsOf = Callable[[jax.Array, jax.Array], Pairs]


class _Ring(NamedTuple):
    """The devices along `axes` of the mesh, in order; one without axes."""

    axes: tuple[str, ...]

    def size(self) -> int:
        return jax.lax.axis_size(self.axes) if self.axes else 1

    def send(self, tree: Any) -> Any:
        """Every device's arrays to the next device."""
        size = self.size()
        if size == 1:
            return tree
        hops = [(device, (device + 1) % size) for device in range(size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, hops), tree)

    def send_summary(self, summary: Summary) -> Summary:
        """As one array: a hop costs its latency, whatever it carries."""
        return Summary(*self.send(jnp.stack(summary)))

    def sum(self, tree: Any) -> Any:
        """Over the devices."""
        return jax.lax.psum(tree, self.axes) if self.axes else tree

    def start(self, tree: Any) -> Any:
        """Constants as values that may differ between devices, as what a loop makes of them does."""
        return jax.tree.map(lambda x: jax.lax.pcast(x, self.axes, to="varying"), tree) if self.axes else tree


class _Side(NamedTuple):
    """Rows or columns: embeddings [n, d], facts int32 [n, F], and in the backward pass their `_Pull`."""

    x: jax.Array
    facts: jax.Array
    pull: _Pull | None = None


class _Pull(NamedTuple):
    """What the gradient of a row's (or column's) loss needs, float32 [n]; nothing pulls without a positive.

    lse: of the candidates; +inf without a positive.
    share: 1 / Σ w; 0 without a positive.
    """

    lse: jax.Array
    share: jax.Array


def _pull(summary: Summary) -> _Pull:
    has = summary.has_positive()
    return _Pull(jnp.where(has, summary.lse, jnp.inf), jnp.where(has, 1.0 / jnp.where(has, summary.weight, 1.0), 0.0))


def tile_size(rows: int) -> int:
    """Into tiles of how many rows a block of `rows` is cut: the largest divisor up to MAX_TILE.

    Where that is tiny (a large prime factor) the tiles are larger than MAX_TILE, rather than very many.
    """
    divisors = [size for size in range(1, rows + 1) if rows % size == 0]
    best = max(size for size in divisors if size <= MAX_TILE)
    return best if best == rows or best >= MAX_TILE // 8 else min(size for size in divisors if size > MAX_TILE)


def _tiled(tree: Any, tile: int) -> Any:
    """[n, ...] -> [n / tile, tile, ...], every leaf."""
    return jax.tree.map(lambda x: x.reshape(-1, tile, *x.shape[1:]), tree)


def _flat(tree: Any) -> Any:
    """The inverse of `_tiled`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _add(x: Any, y: Any) -> Any:
    return jax.tree.map(jnp.add, x, y)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


class _Seen(NamedTuple):
    """What rows have seen of the columns so far."""

    summary: Summary
    counts: dict[str, jax.Array]


def _look(
    pairs_of: _PairsOf, ring: _Ring, rows: _Side, columns: _Side, scale: jax.Array, seen: _Seen
) -> tuple[_Seen, Summary]:
    """(what the rows have seen, now with these columns too; what the columns see of these rows)."""
    tile = tile_size(rows.x.shape[0])

    def at_columns(seen: _Seen, column: _Side) -> tuple[_Seen, Summary]:
        def at_rows(of_column: Summary, row_and_seen: tuple[_Side, _Seen]) -> tuple[Summary, _Seen]:
            row, seen = row_and_seen
            logits = similarities(row.x, column.x, scale)
            pairs = pairs_of(row.facts, column.facts)
            seen = _Seen(seen.summary.merge(summarise(logits, pairs)), _add(seen.counts, count(pairs)))
            return of_column.merge(summarise(logits, pairs, axis=0)), seen

        of_column, seen = jax.lax.scan(at_rows, ring.start(nothing(tile)), (_tiled(rows, tile), seen))
        return seen, of_column

    seen, of_columns = jax.lax.scan(at_columns, _tiled(seen, tile), _tiled(columns, tile))
    return _flat(seen), _flat(of_columns)


def _tug(
    pairs_of: _PairsOf, ring: _Ring, rows: _Side, columns: _Side, scale: jax.Array, moved: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients by rows and by columns of 2 · loss / scale: (`moved` [n, d] and what these columns add, theirs)."""
    tile = tile_size(rows.x.shape[0])

    def at_columns(moved: jax.Array, column: _Side) -> tuple[jax.Array, jax.Array]:
        def at_rows(of_column: jax.Array, row_and_moved: tuple[_Side, jax.Array]) -> tuple[jax.Array, jax.Array]:
            row, moved = row_and_moved
            logits = similarities(row.x, column.x, scale)
            pairs = pairs_of(row.facts, column.facts)
            softmaxes = jnp.exp(logits - row.pull.lse[:, None]) + jnp.exp(logits - column.pull.lse[None, :])
            positives = pairs.positives.astype(jnp.float32) * (row.pull.share[:, None] + column.pull.share[None, :])
            of_logits = jnp.where(pairs.candidates, softmaxes, 0.0) - positives
            moved = moved + product("nm,md->nd", of_logits, column.x)
            return of_column + product("nm,nd->md", of_logits, row.x), moved

        start = ring.start(jnp.zeros(column.x.shape, jnp.float32))
        of_column, moved = jax.lax.scan(at_rows, start, (_tiled(rows, tile), moved))
        return moved, of_column

    moved, of_columns = jax.lax.scan(at_columns, _tiled(moved, tile), _tiled(columns, tile))
    return _flat(moved), _flat(of_columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _contrast(
    pairs_of: _PairsOf, ring: _Ring, rows: jax.Array, columns: jax.Array, scale: jax.Array, facts: jax.Array
) -> Totals:
    """One device's part: its rows and columns [n, d] and their facts int32 [n, F] -> totals of all devices."""
    return _forward(pairs_of, ring, rows, columns, scale, facts)[0]


def _forward(
    pairs_of: _PairsOf, ring: _Ring, rows: jax.Array, columns: jax.Array, scale: jax.Array, facts: jax.Array
) -> tuple[Totals, tuple]:
    mine = _Side(rows, facts)
    counts = jax.eval_shape(lambda facts: count(pairs_of(facts, facts)), facts)
    start = ring.start((_Seen(nothing(len(rows)), _zeros(counts)), nothing(len(rows))))

    def hop(carry: tuple, _: None) -> tuple[tuple, None]:
        columns, seen, of_columns = carry
        seen, new = _look(pairs_of, ring, mine, columns, scale, seen)
        # What travels is sent off before what is computed here is there: a hop and a block overlap.
        return (ring.send(columns), seen, ring.send_summary(of_columns).merge(new)), None

    (_, seen, of_columns), _ = jax.lax.scan(hop, (_Side(columns, facts), *start), length=ring.size())
    of_columns = ring.send_summary(of_columns)
    totals = ring.sum(total(seen.summary, of_columns, seen.counts))
    return totals, (rows, columns, scale, facts, _pull(seen.summary), _pull(of_columns))


def _backward(pairs_of: _PairsOf, ring: _Ring, kept: tuple, cotangents: Totals) -> tuple:
    rows, columns, scale, facts, pull, pull_back = kept
    mine = _Side(rows, facts, pull)
    start = ring.start((jnp.zeros(rows.shape, jnp.float32), jnp.zeros(columns.shape, jnp.float32)))

    def hop(carry: tuple, _: None) -> tuple[tuple, None]:
        columns, moved, of_columns = carry
        moved, new = _tug(pairs_of, ring, mine, columns, scale, moved)
        return (ring.send(columns), moved, ring.send(of_columns) + new), None

    (_, moved, of_columns), _ = jax.lax.scan(hop, (_Side(columns, facts, pull_back), *start), length=ring.size())
    factor = 0.5 * cotangents.loss
    # Σ ∂loss/∂logit · product of the embeddings, which the rows' gradient holds already.
    of_scale = factor * ring.sum((moved * rows.astype(jnp.float32)).sum())
    of_rows, of_columns = factor * scale * moved, factor * scale * ring.send(of_columns)
    return of_rows.astype(rows.dtype), of_columns.astype(columns.dtype), of_scale, None


_contrast.defvjp(_forward, _backward)


def ring(rows: jax.Array, columns: jax.Array, scale: jax.Array, facts: Facts, relation: Relation) -> Totals:
    """`contrast.contrast` in tiles: a device never holds more of the matrix than MAX_TILE² logits.

    Gradients are those of the loss by rows, columns and scale. Without a mesh in context all is on one device.

    Args:
      rows, columns: [n, d], global batch.
      scale: float32 scalar.
      facts: {name: [n]}, integers or booleans; `index` is added.
      relation: what pairs are to each other. It is traced twice, and must be symmetric.

    Raises:
      ValueError: the batch axes of the mesh do not divide n.
    """
    facts = {"index": jnp.arange(rows.shape[0]), **facts}
    packed = by_row(jnp.stack([by_row(fact.astype(jnp.int32)) for fact in facts.values()], axis=-1))

    def pairs_of(rows: jax.Array, columns: jax.Array) -> Pairs:
        return relation(Grid(*(dict(zip(facts, side.T, strict=True)) for side in (rows, columns))))

    if jax.sharding.get_abstract_mesh().empty:
        return _contrast(pairs_of, _Ring(()), rows, columns, scale, packed)
    shard = functools.partial(_contrast, pairs_of, _Ring(BATCH_AXES))
    shard = jax.shard_map(shard, in_specs=(BATCH, BATCH, P(), BATCH), out_specs=P())
    return shard(by_row(rows), by_row(columns), scale, packed)
