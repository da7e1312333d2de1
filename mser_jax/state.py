"""TrainState: everything a step changes or needs, and its abstract twin for restoring and ahead-of-time compiles."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mser_jax.parallel import sharding
from mser_jax.parallel.rules import RULES, Rule

Flat = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters are flat {'path/to/kernel': array}. Frozen leaves are never differentiated and have no moments."""

    step: jax.Array  # int32 []: steps begun, skipped ones included
    trainable: Flat
    frozen: Flat
    optimizer: Any
    rng: jax.Array  # typed key []: constant; a step uses fold_in(rng, step)

    @property
    def params(self) -> Flat:
        """All parameters, trainable and frozen."""
        return {**self.trainable, **self.frozen}


@dataclasses.dataclass(frozen=True)
class ModelDefinition:
    """A module without its arrays: `make(rngs)` builds it, `graphdef` merges parameters back into it."""

    make: Callable[[nnx.Rngs], nnx.Module]
    graphdef: Any
    abstract: dict[str, jax.ShapeDtypeStruct]

    def merge(self, params: Mapping[str, jax.Array]) -> nnx.Module:
        """The module with these flat parameters."""
        flat = [(tuple(path.split("/")), nnx.Param(value)) for path, value in params.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(_restore_keys(flat)))


def _restore_keys(flat: list[tuple[tuple[str, ...], Any]]) -> list[tuple[tuple[Any, ...], Any]]:
    """Paths hold list indices as text; nnx wants them as integers."""
    return [(tuple(int(key) if key.isdigit() else key for key in path), value) for path, value in flat]


def define(make: Callable[[nnx.Rngs], nnx.Module]) -> ModelDefinition:
    """Traces `make` without allocating anything.

    Raises:
        TypeError: the module holds variables that are not parameters (they would be lost between steps).
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    flat = nnx.to_flat_state(abstract)
    others = ["/".join(map(str, path)) for path, value in flat if not isinstance(value, nnx.Param)]
    if others:
        raise TypeError(
            f"These variables are no nnx.Param: {others}. Compute constants in __call__, pass rngs as arguments."
        )
    shapes = {
        "/".join(map(str, path)): jax.ShapeDtypeStruct(value.get_value().shape, value.get_value().dtype)
        for path, value in flat
    }
    return ModelDefinition(make=make, graphdef=graphdef, abstract=shapes)


def initial_params(definition: ModelDefinition, rng: jax.Array) -> Flat:
    """Freshly initialised flat parameters (traceable)."""
    _, state = nnx.split(definition.make(nnx.Rngs(rng)))
    return {"/".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(state)}


def initial(
    definition: ModelDefinition, seed: int, wanted: Mapping[str, jax.ShapeDtypeStruct], given: Mapping[str, jax.Array]
) -> Flat:
    """The parameters `wanted` {path: with its sharding} as they are at step 0: those in `given`, else drawn."""

    def draw(given: Mapping[str, jax.Array]) -> Flat:
        params = initial_params(definition, _keys(seed)[0]) | dict(given)
        return {path: params[path] for path in wanted}

    where = {path: leaf.sharding for path, leaf in wanted.items()}
    return jax.jit(draw, out_shardings=where)({path: given[path] for path in wanted if path in given})


def _keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of the parameters and of the steps."""
    params_key, step_key = jax.random.split(jax.random.key(seed))
    return params_key, step_key


def fingerprint(params: Mapping[str, jax.Array]) -> str:
    """16 hex digits over paths, shapes, dtypes and every bit of the values; the same on any mesh.

    Sums of mixed bits, made where the arrays are: nothing is moved, and each value is read once.
    """
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_checksum, tree))(dict(params)))
    digest = hashlib.sha256()
    for path in sorted(params):
        leaf = params[path]
        digest.update(f"{path} {leaf.dtype} {leaf.shape} {np.asarray(sums[path]).tolist()};".encode())
    return digest.hexdigest()[:16]


def _checksum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two sums modulo 2³² of the bits of x [...], each mixed with where it stands."""

    def mixed(y: jax.Array) -> jax.Array:  # the finaliser of MurmurHash3
        y = (y ^ (y >> 16)) * jnp.uint32(0x85EBCA6B)
        y = (y ^ (y >> 13)) * jnp.uint32(0xC2B2AE35)
        return y ^ (y >> 16)

    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    place = jnp.zeros_like(bits)
    for axis, size in enumerate(x.shape):
        index = jnp.arange(size, dtype=jnp.uint32).reshape(size, *(1,) * (x.ndim - axis - 1))
        place = mixed(place + jnp.uint32(0x9E3779B9) + index)
    return tuple(mixed(bits ^ mixed(place + jnp.uint32(salt))).sum(dtype=jnp.uint32) for salt in (1, 2))


def not_finite(state: TrainState) -> list[str]:
    """Find the leaves of what trains and of the optimiser that hold a NaN or an infinity: their paths.

    One reduction where the arrays are; it waits for the step that made them, so it is for when a state is saved.
    """
    leaves = {
        sharding.path_of(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.trainable, state.optimizer))
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    finite = jax.device_get(_finite(leaves))
    return [path for path in leaves if not finite[path]]


@jax.jit
def _finite(leaves: Flat) -> Flat:
    return {path: jnp.isfinite(leaf).all() for path, leaf in leaves.items()}


def initializer(
    definition: ModelDefinition, tx: optax.GradientTransformation, multipliers: Mapping[str, float], seed: int
) -> Callable[..., TrainState]:
    """A traceable function that makes the state of step 0. Paths with multiplier 0 are frozen.

    It may be given parameters that were loaded, {path: array}: they stand instead of those it would draw.
    """

    def init(given: Mapping[str, jax.Array] | None = None) -> TrainState:
        params_key, step_key = _keys(seed)
        params = initial_params(definition, params_key) | dict(given or {})
        trainable = {path: value for path, value in params.items() if multipliers[path]}
        frozen = {path: value for path, value in params.items() if not multipliers[path]}
        return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), step_key)

    return init


def abstract_state(init: Callable[..., TrainState], mesh: Mesh, rules: Sequence[Rule] = RULES) -> TrainState:
    """The state as ShapeDtypeStructs with the shardings it has on `mesh` (moments like their parameters)."""
    shapes = jax.eval_shape(init)
    shardings = sharding.infer_shardings(shapes, mesh, rules)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
    )


def create(
    init: Callable[..., TrainState], abstract: TrainState, given: Mapping[str, jax.Array] | None = None
) -> TrainState:
    """Runs `init` straight into its shardings: no host ever holds the whole state, and step 1 compiles once.

    `given`: loaded parameters; their buffers become the state's, and nothing is drawn in their place.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(init, out_shardings=where, donate_argnums=0)(dict(given or {}))
