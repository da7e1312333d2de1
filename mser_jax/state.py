"""TrainState: everything a step changes or needs, and its abstract twin for restoring and ahead-of-time compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mser_jax.parallel import sharding

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


def initializer(
    definition: ModelDefinition, tx: optax.GradientTransformation, multipliers: Mapping[str, float], seed: int
) -> Callable[..., TrainState]:
    """A traceable function that makes the state of step 0. Paths with multiplier 0 are frozen.

    It may be given parameters that were loaded, {path: array}: they stand instead of those it would draw.
    """

    def init(given: Mapping[str, jax.Array] | None = None) -> TrainState:
        params_key, step_key = jax.random.split(jax.random.key(seed))
        params = initial_params(definition, params_key) | dict(given or {})
        trainable = {path: value for path, value in params.items() if multipliers[path]}
        frozen = {path: value for path, value in params.items() if not multipliers[path]}
        return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), step_key)

    return init


def abstract_state(init: Callable[..., TrainState], mesh: Mesh, rules: Any = ((".*", None),)) -> TrainState:
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
