"""What the contrastive terms share: who meets whom on which device, and one stable row-wise log-softmax loss.

All terms are the mean over positives p of −log softmax_p, per row, summed over rows (Khosla et al. 2020,
arXiv 2004.11362, eq. 2, "L_out"); they differ only in which columns are positives and which stand in the
denominator.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mser_jax.parallel.sharding import BATCH_AXES, constrain, replicate

# Far below any logit and still finite: a row without a candidate keeps finite values and zero gradients.
_NEVER = -1e30


def by_row(x: jax.Array) -> jax.Array:
    """`x` [n, ...] with its rows over the batch axes of the mesh; the identity without a mesh."""
    return constrain(x, P(BATCH_AXES, *(None,) * (x.ndim - 1)))


class Grid:
    """Row × column facts of a batch: rows laid out by `layout`, columns whole on every device.

    `facts` are arrays [n]: integers (−1 = unknown) or booleans. Every method returns bool [n, n].
    """

    def __init__(self, layout: Callable[[jax.Array], jax.Array], **facts: jax.Array):
        n = next(iter(facts.values())).shape[0]
        facts = {"index": jnp.arange(n), **facts}
        self._rows = {name: layout(fact)[:, None] for name, fact in facts.items()}
        self._columns = {name: replicate(fact)[None, :] for name, fact in facts.items()}

    def own(self) -> jax.Array:
        """The diagonal."""
        return self._rows["index"] == self._columns["index"]

    def both(self, name: str) -> jax.Array:
        """The boolean fact holds for the row and for the column."""
        return self._rows[name] & self._columns[name]

    def known(self, name: str) -> jax.Array:
        """The integer fact is known (not negative) of both."""
        return (self._rows[name] >= 0) & (self._columns[name] >= 0)

    def same(self, name: str) -> jax.Array:
        """Known of both, and equal."""
        return self.known(name) & (self._rows[name] == self._columns[name])

    def differ(self, name: str) -> jax.Array:
        """Known of both, and unequal."""
        return self.known(name) & (self._rows[name] != self._columns[name])


def similarities(rows: jax.Array, columns: jax.Array, scale: jax.Array | float) -> jax.Array:
    """scale · rows · columnsᵀ in float32: [n, d], [m, d] -> [n, m], rows sharded like `rows`.

    Full float32 products, because accelerators multiply float32 in bfloat16 by default and a scale of 100
    turns that rounding into ±0.4 of a logit.
    """
    products = jnp.einsum(
        "nd,md->nm",
        rows.astype(jnp.float32),
        columns.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return products * jnp.asarray(scale, jnp.float32)


def row_losses(logits: jax.Array, positives: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """−Σ_p w_ip log softmax_p / Σ_p w_ip for every row i, with the softmax over the row's candidates.

    Args:
      logits: float32 [n, m].
      positives: weights w ≥ 0 (float or bool) [n, m]; positive only where `candidates`.
      candidates: bool [n, m], the columns of the denominator.

    Returns:
      losses: float32 [n], 0 where a row has no positive.
      has_positive: bool [n].
    """
    weights = positives.astype(jnp.float32)
    total = weights.sum(-1)
    has_positive = total > 0
    lse = jax.nn.logsumexp(jnp.where(candidates, logits, _NEVER), axis=-1)
    attraction = (weights * logits).sum(-1) / jnp.where(has_positive, total, 1.0)
    return jnp.where(has_positive, lse - attraction, 0.0), has_positive
