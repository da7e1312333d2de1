"""A batch in parts, one after the other; every device keeps the rows it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split(rows: Any, number: int) -> Any:
    """[B, …] -> [number, B / number, …], every leaf.

    Part i has the rows i, i + number, i + 2 · number, …: so many of each device's, and none has to travel, as long as
    `number` times the devices of the batch divides B.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, number, *x.shape[1:]), 1, 0), rows)


def join(parts: Any) -> Any:
    """The inverse of `split`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), parts)


def encode(function: Callable[[Any, jax.Array], Any], rows: Any, rng: jax.Array, number: int) -> Any:
    """`function(rows, rng)` of a whole batch with the activations of one of its parts.

    As in GradCache (Gao et al. 2021, arXiv 2101.06983): the parts' results are put together, and the backward pass
    computes each part once more, so that values and gradients are those of the whole batch, and a loss over pairs of
    rows sees all of them. The price is one more forward pass, of what is frozen too.

    Each part draws from a key of its own, split from `rng`: dropout is another sample, of the same distribution, for
    another `number`.

    Args:
      function: (rows, rng) -> arrays [B, …]; row i of a result depends on row i only.
      rows: arrays [B, …]; `number` times the devices of the batch divides B.
      rng: a key.
      number: 1 is `function` itself.
    """
    if number == 1:
        return function(rows, rng)
    # prevent_cse is for code outside loops.
    function = jax.checkpoint(function, prevent_cse=False)
    parts = split(rows, number), jax.random.split(rng, number)
    return join(jax.lax.scan(lambda _, part: (None, function(*part)), None, parts)[1])
