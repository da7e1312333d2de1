"""Every sharding decision: parameters by table, activations by `constrain`, weights gathered where they are used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
BATCH = P(BATCH_AXES)

# Smaller parameters stay whole: an all-gather of a bias costs more than the bytes it saves.
MIN_SHARDED_ELEMENTS = 2**14


def _explicit() -> bool | None:
    """True / False for the mesh in context, None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else all(kind == AxisType.Explicit for kind in mesh.axis_types)


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """Gives `x` the sharding `spec` on the mesh in context (jax.set_mesh); the identity without a mesh.

    `with_sharding_constraint` only asserts on Explicit axes, so those are resharded. What has that sharding already is
    returned as it is: a scan over layers keeps for its backward pass a copy of all that it computes from its weights.
    """
    explicit = _explicit()
    if explicit is None:
        return x
    if explicit and jax.typeof(x).sharding == NamedSharding(jax.sharding.get_abstract_mesh(), spec):
        return x
    return jax.sharding.reshard(x, spec) if explicit else jax.lax.with_sharding_constraint(x, spec)


def replicate(x: jax.Array) -> jax.Array:
    """`x` whole on every device (an all-gather; its transpose is a reduce-scatter)."""
    return constrain(x, P(*(None,) * x.ndim))


def gather_weight(x: jax.Array) -> jax.Array:
    """A parameter as the layer that uses it needs it: whole over `fsdp`. Called at the point of use, also in scans."""
    return replicate(x)


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of `table` [n, d] for integer `ids` [...], sharded like `ids` -> [..., d]."""
    if not _explicit():
        return jnp.take(table, ids, axis=0)
    return table.at[ids].get(out_sharding=P(*jax.typeof(ids).sharding.spec, None))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading dimension over data × fsdp, whatever the rank."""
    return NamedSharding(mesh, BATCH)


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is cut into: data × fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def path_of(key_path: Sequence[Any]) -> str:
    """'a/b/0/kernel' for a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in key_path)


def fsdp_spec(shape: Sequence[int], fsdp: int) -> P:
    """The largest dimension that `fsdp` divides is sharded; none for small arrays or where nothing divides."""
    if fsdp == 1 or math.prod(shape) < MIN_SHARDED_ELEMENTS:
        return P()
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if not divisible:
        return P()
    best = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*("fsdp" if axis == best else None for axis in range(len(shape))))


def infer_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, P | None]] = ((".*", None),)) -> Any:
    """A NamedSharding for every leaf of `tree` (arrays or ShapeDtypeStructs).

    The first rule whose regex is found in the path wins; a rule without a spec means `fsdp_spec`.

    Raises:
        ValueError: some path matches no rule; all of them are listed.
    """
    compiled = [(re.compile(pattern), spec) for pattern, spec in rules]
    unmatched: list[str] = []

    def one(key_path: Sequence[Any], leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        for pattern, spec in compiled:
            if pattern.search(path):
                return NamedSharding(mesh, fsdp_spec(leaf.shape, mesh.shape["fsdp"]) if spec is None else spec)
        unmatched.append(path)
        return NamedSharding(mesh, P())

    out = jax.tree_util.tree_map_with_path(one, tree)
    if unmatched:
        raise ValueError("No sharding rule matches these parameters:\n  " + "\n  ".join(unmatched))
    return out


def placed(shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Flat {path: shape and dtype} with the shardings that `infer_shardings` gives."""
    where = infer_shardings(dict(shapes), mesh)
    return {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[path]) for path, x in shapes.items()}


def check_sharded(tree: Any, shardings: Any, tolerance: float) -> None:
    """Raises ValueError when more than `tolerance` of the bytes would stay whole on every `fsdp` shard.

    The message names the five largest offenders. `tree` and `shardings` have the same structure.
    """
    rows, total = [], 0
    for (key_path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
    ):
        size = math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
        total += size
        if sharding.mesh.shape["fsdp"] > 1 and "fsdp" not in jax.tree.leaves(tuple(sharding.spec)):
            rows.append((size, path_of(key_path), leaf.shape))
    replicated = sum(size for size, *_ in rows)
    if total and replicated > tolerance * total:
        worst = "\n".join(f"  {size:>12,} B  {path} {shape}" for size, path, shape in sorted(rows, reverse=True)[:5])
        raise ValueError(
            f"{replicated / total:.1%} of the parameter bytes stay whole on every fsdp shard (limit {tolerance:.0%}). "
            f"Largest:\n{worst}\nAdd a rule, choose an fsdp size that divides them, or raise mesh.replicated_limit."
        )
