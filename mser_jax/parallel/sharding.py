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
from jax.typing import DTypeLike

from mser_jax.parallel.rules import LARGEST, RULES, Axes, Rule

BATCH_AXES = ("data", "fsdp")
BATCH = P(BATCH_AXES)

# Smaller parameters stay whole: an all-gather of a bias costs more than the bytes it saves.
MIN_SHARDED_ELEMENTS = 2**14

# Parameters that are used as an operand of `matmul`; others reach their layer by `gather_weight`.
_PRODUCT = re.compile(r"/(kernel|lora/a|lora/b)$")


def _explicit() -> bool | None:
    """True / False for the mesh in context, None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else all(kind == AxisType.Explicit for kind in mesh.axis_types)


def _one_cpu() -> bool:
    """Whether the mesh in context is a CPU as one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size == 1 and mesh.abstract_device is not None and mesh.abstract_device.platform == "cpu"


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """Gives `x` the sharding `spec` on the mesh in context (jax.set_mesh); the identity without a mesh, and
    on an Auto one of a single device.

    `with_sharding_constraint` only asserts on Explicit axes, so those are resharded. What has that sharding already is
    returned as it is: a scan over layers keeps for its backward pass a copy of all that it computes from its weights.
    """
    explicit, mesh = _explicit(), jax.sharding.get_abstract_mesh()
    if explicit is None or (not explicit and mesh.size == 1):
        return x
    if explicit and jax.typeof(x).sharding == NamedSharding(mesh, spec):
        return x
    return jax.sharding.reshard(x, spec) if explicit else jax.lax.with_sharding_constraint(x, spec)


def replicate(x: jax.Array) -> jax.Array:
    """`x` whole on every device (an all-gather; its transpose is a reduce-scatter)."""
    return constrain(x, P(*(None,) * x.ndim))


def gather_weight(x: jax.Array) -> jax.Array:
    """A parameter as the layer that uses it needs it: whole. Called at the point of use, also in scans."""
    return replicate(x)


def matmul(x: jax.Array, kernel: jax.Array, split: str | None = None, dtype: DTypeLike | None = None) -> jax.Array:
    """x [..., in] @ kernel [in, out] -> [..., out], the kernel gathered over `fsdp` for it.

    On Explicit meshes the kernel's gradient is summed and scattered in one go: it is told to be a sum over devices that
    is still to be made (`reduced`, whose transpose is `unreduced`), else XLA makes an all-reduce of the whole gradient
    and a slice, which is twice the traffic and a whole gradient a layer.

    Args:
        x: rows, sharded or not.
        kernel: of x's dtype, with the sharding of its parameter.
        split: what stays over `tensor` (Shoeybi et al. 2019). "out": the output features; "in": the input features,
            as x has them from such a layer, and the sum over them is made here; None: nothing.
        dtype: of the result; None = x's.
    """
    explicit = _explicit()
    if explicit is None:
        return jnp.matmul(x, kernel, preferred_element_type=dtype)
    if _one_cpu():
        # XLA's CPU compiler makes a gradient that sums over two axes of a transposed copy. TPUs would copy here: their
        # rows come in tiles of 8.
        y = jnp.matmul(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), replicate(kernel), preferred_element_type=dtype)
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
    axis = "tensor" if split else None
    spec = (axis if split == "in" else None, axis if split == "out" else None)
    if not explicit:
        return jnp.matmul(x, constrain(kernel, P(*spec)), preferred_element_type=dtype)
    rows = jax.typeof(x).sharding.spec
    # On one device there is nothing to sum, and the kernel stays what it is: see `constrain`.
    summed = _batch_axes(rows) if jax.sharding.get_abstract_mesh().size > 1 else set()
    kernel = constrain(kernel, P(*spec, reduced=summed))
    # Summed over `tensor` here; elsewhere the result's sharding follows from those of the operands.
    out = P(*rows[:-1], None) if axis and split == "in" else None
    return jnp.einsum("...i,io->...o", x, kernel, preferred_element_type=dtype, out_sharding=out)


def gather_bias(bias: jax.Array, split: str | None = None) -> jax.Array:
    """The bias [out] of such a product: it stays over `tensor` where its features do."""
    return constrain(bias, P("tensor" if split == "out" else None))


def _batch_axes(spec: P) -> set[str]:
    """The batch axes in `spec`."""
    return {axis for axis in jax.tree.leaves(tuple(spec)) if axis in BATCH_AXES}


def split_by(count: int, how: str) -> str | None:
    """`how`, where so many heads or hidden units can be cut over the `tensor` axis in context; else None."""
    parts = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return how if parts > 1 and count % parts == 0 else None


def defer_sums(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Flat {path: parameter}, so that gradients of kernels are summed over `data` once, where this is called.

    Else that is done where they are used: layer by layer in a scan. Explicit meshes only.
    """
    if not _explicit():
        return dict(params)

    sizes = jax.sharding.get_abstract_mesh().shape

    def mark(path: str, x: jax.Array) -> jax.Array:
        spec = jax.typeof(x).sharding.spec
        axes = {axis for axis in BATCH_AXES if sizes.get(axis, 1) > 1} - _batch_axes(spec)
        return jax.sharding.reshard(x, P(*spec, reduced=axes)) if axes and _PRODUCT.search(path) else x

    return {path: mark(path, x) for path, x in params.items()}


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of `table` [n, d] for integer `ids` [...], sharded like `ids` -> [..., d].

    Where the table's columns lie over `fsdp`, a device looks up its columns for the ids of all `fsdp` devices, and the
    rows are then exchanged. So neither the table nor its gradient is ever whole anywhere, and what travels is rows.
    """
    if not _explicit():
        return jnp.take(table, ids, axis=0)
    rows = P(*jax.typeof(ids).sharding.spec, None)
    axes = rows[0] if isinstance(rows[0], tuple) else (rows[0],)
    if tuple(jax.typeof(table).sharding.spec) != (None, "fsdp") or axes[-1] != "fsdp":
        return table.at[ids].get(out_sharding=rows)
    together = P(axes[:-1] or None, *rows[1:-1])
    columns = table.at[constrain(ids, together)].get(out_sharding=P(*together, "fsdp"))
    return constrain(columns, rows)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading dimension over data × fsdp, whatever the rank."""
    return NamedSharding(mesh, BATCH)


def batch_parts(mesh: Mesh) -> int:
    """How many parts a batch is cut into: data × fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def path_of(key_path: Sequence[Any]) -> str:
    """'a/b/0/kernel' for a jax key path."""
    return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in key_path)


def spec_of(shape: Sequence[int], axes: Sequence[Axes] | None, mesh: Mesh) -> P:
    """The PartitionSpec of an array of this shape by a row of the table (parallel/rules.py).

    An axis that does not divide its dimension is left out; `fsdp` then goes to the largest of the trailing dimensions
    that it divides.
    """
    if math.prod(shape) < MIN_SHARDED_ELEMENTS or axes == ():
        return P()
    if axes is None:
        return fsdp_spec(shape, mesh.shape["fsdp"])
    start = len(shape) - len(axes)
    if start < 0:
        raise ValueError(f"a rule for {len(axes)} dimensions, {tuple(axes)}, but the shape is {tuple(shape)}")
    chosen: list[list[str]] = [[] for _ in shape]
    left = list(shape)
    for dimension, wanted in enumerate(axes, start):
        for axis in (wanted,) if isinstance(wanted, str) else wanted or ():
            if mesh.shape[axis] > 1 and left[dimension] % mesh.shape[axis] == 0:
                chosen[dimension].append(axis)
                left[dimension] //= mesh.shape[axis]
    fsdp = mesh.shape["fsdp"]
    if fsdp > 1 and "fsdp" in jax.tree.leaves(tuple(axes)) and not any("fsdp" in names for names in chosen):
        divisible = [d for d in range(start, len(shape)) if left[d] % fsdp == 0]
        if divisible:
            chosen[max(divisible, key=lambda d: (left[d], d))].append("fsdp")
    return P(*(None if not c else c[0] if len(c) == 1 else tuple(c) for c in chosen)) if any(chosen) else P()


def fsdp_spec(shape: Sequence[int], fsdp: int) -> P:
    """The largest dimension that `fsdp` divides is sharded; none for small arrays or where nothing divides."""
    if fsdp == 1 or math.prod(shape) < MIN_SHARDED_ELEMENTS:
        return P()
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if not divisible:
        return P()
    best = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*("fsdp" if axis == best else None for axis in range(len(shape))))


def infer_shardings(tree: Any, mesh: Mesh, rules: Sequence[Rule] = ((".*", LARGEST),)) -> Any:
    """A NamedSharding for every leaf of `tree` (arrays or ShapeDtypeStructs).

    The first rule whose regex is found in the path wins: see `spec_of`.

    Raises:
        ValueError: some path matches no rule, or one for more dimensions than it has; all such paths are listed.
    """
    compiled = [(re.compile(pattern), axes) for pattern, axes in rules]
    wrong: list[str] = []

    def one(key_path: Sequence[Any], leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        found = [axes for pattern, axes in compiled if pattern.search(path)]
        if not found:
            wrong.append(path)
            return NamedSharding(mesh, P())
        try:
            return NamedSharding(mesh, spec_of(leaf.shape, found[0], mesh))
        except ValueError as error:
            wrong.append(f"{path}: {error}")
            return NamedSharding(mesh, P())

    out = jax.tree_util.tree_map_with_path(one, tree)
    if wrong:
        raise ValueError(
            "No sharding rule matches these parameters (mser_jax/parallel/rules.py):\n  " + "\n  ".join(wrong)
        )
    return out


def placed(shapes: Mapping[str, jax.ShapeDtypeStruct], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Flat {path: shape and dtype} with the shardings of the table (rules.RULES)."""
    where = infer_shardings(dict(shapes), mesh, RULES)
    return {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[path]) for path, x in shapes.items()}


def check_sharded(tree: Any, shardings: Any, tolerance: float) -> None:
    """Raises ValueError when more than `tolerance` of the bytes would stay whole on every `fsdp` shard.

    The message names the five largest offenders. `tree` and `shardings` have the same structure.
    """
    share, rows = _whole(tree, shardings)
    if share > tolerance:
        worst = "\n".join(f"  {size:>12,} B  {path} {shape}" for size, path, shape in sorted(rows, reverse=True)[:5])
        raise ValueError(
            f"{share:.1%} of the parameter bytes stay whole on every fsdp shard (limit {tolerance:.0%}). "
            f"Largest:\n{worst}\nAdd a rule, choose an fsdp size that divides them, or raise mesh.replicated_limit."
        )


def replicated_share(tree: Any, shardings: Any) -> float:
    """The share of the bytes of `tree` that stay whole on every `fsdp` shard; 0 where there is one."""
    return _whole(tree, shardings)[0]


def _whole(tree: Any, shardings: Any) -> tuple[float, list[tuple[int, str, tuple[int, ...]]]]:
    """Their share, and (bytes, path, shape) of each."""
    rows, total = [], 0
    for (key_path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
    ):
        size = math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
        total += size
        if sharding.mesh.shape["fsdp"] > 1 and "fsdp" not in jax.tree.leaves(tuple(sharding.spec)):
            rows.append((size, path_of(key_path), leaf.shape))
    return sum(size for size, *_ in rows) / max(total, 1), rows
