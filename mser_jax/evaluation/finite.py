"""NaN is no answer: figures that are not finite are refused, with the utterances that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_SHOWN = 5


class NotFiniteError(FloatingPointError):
    """Scores, probabilities or embeddings that hold NaN or infinity."""


def check(
    values: np.ndarray, what: str, names: Sequence[str] | None = None, params: Mapping[str, Any] | None = None
) -> None:
    """Refuse values that are not finite.

    Args:
        values: [n, …].
        what: names them in the plural.
        names: [n] ids of the utterances; else their places are told.
        params: what the values were computed with, to tell a broken checkpoint from a broken recording.

    Raises:
        NotFiniteError: how many of them, and the first.
    """
    broken = ~np.isfinite(values).all(axis=tuple(range(1, np.ndim(values))))
    if not broken.any():
        return
    where = np.flatnonzero(broken)
    first = [f"row {row}" if names is None else str(names[row]) for row in where[:_SHOWN]]
    raise NotFiniteError(
        f"{len(where)} of {len(values)} {what} are not finite (NaN or infinite), the first: {', '.join(first)}. "
        + (why_broken(params or {}) or "The checkpoint or these recordings are broken: look at the train log for "
           "skipped steps, and listen")
    )  # fmt: skip


def why_broken(params: Mapping[str, Any]) -> str:
    """One sentence on those of {path: jax.Array} that are not finite; '' where all are."""
    import jax  # Reports are read and compared without it.
    import jax.numpy as jnp

    floats = {path: x for path, x in params.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    found = jax.device_get(jax.jit(lambda tree: jax.tree.map(lambda x: jnp.isfinite(x).all(), tree))(floats))
    broken = sorted(path for path, is_finite in found.items() if not is_finite)
    if not broken:
        return ""
    return (
        f"{len(broken)} of {len(found)} parameters of the checkpoint hold NaN or infinity, such as {broken[0]}: take "
        "another step of that run (--step, --config.step)"
    )
