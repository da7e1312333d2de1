"""A stack of identical blocks: parameters with a leading layer axis, run by `lax.scan` with a remat policy.

Compile time and program size do not grow with depth. Parameter paths carry no layer number:
`speech_encoder/layers/attention/query/kernel` is [layers, in, out].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mser_jax.models.layers import normalise

Module = TypeVar("Module", bound=nnx.Module)


def _all_but_gathered_weights(primitive: Any, *_: Any, **__: Any) -> bool:
    """Saves every activation, but not the whole weights: L layers of those are what FSDP must not keep."""
    return primitive.name not in ("reshard", "sharding_constraint")


# What the backward pass finds in memory; everything else is computed again, layer by layer.
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "none": _all_but_gathered_weights,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class StackOutput(NamedTuple):
    """`last` [B, T, D] in x's dtype; on demand `mixed` f32 [B, T, D], `collected` [L, B, T, D].

    `means`: f32 [L, B, K, D] on demand. `extras`: what the layers returned besides x, stacked [L, ...]; None where
    they return x alone.
    """

    last: jax.Array
    mixed: jax.Array | None
    collected: jax.Array | None
    means: jax.Array | None = None
    extras: Any = None


def stack_layers(make: Callable[[nnx.Rngs], Module], num_layers: int, rngs: nnx.Rngs) -> Module:
    """One module as `make(rngs)` builds it; each parameter is a stack of `num_layers` different draws."""

    def init(key: jax.Array) -> nnx.State:
        return nnx.split(make(nnx.Rngs(params=key)))[1]

    graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(params=0))))[0]
    return nnx.merge(graphdef, jax.vmap(init)(jax.random.split(rngs.params(), num_layers)))


def run_layers(
    layers: nnx.Module,
    x: jax.Array,
    *args: Any,
    remat: str = "none",
    rng: jax.Array | None = None,
    mix_weights: jax.Array | None = None,
    mean_weights: jax.Array | None = None,
    collect: bool = False,
    per_layer: Any = None,
) -> StackOutput:
    """x [B, T, D] through all layers of `stack_layers`: `x = layer(x, *args, rng=its own key)`.

    A layer may return (x, extra) instead: see StackOutput.

    Args:
        layers: a module with stacked parameters.
        x: the input of the first layer; every layer returns the same shape and dtype.
        *args: what each layer gets besides (masks, memory); the same for all.
        remat: "none" | "dots" (keep products with weights) | "full" (keep each layer's input only).
        rng: split into one key a layer; None = deterministic.
        mix_weights: f32 [L]; `mixed` = Σ weight_l · normalise(output of layer l), accumulated layer by
            layer so that no [L, B, T, D] exists in a forward pass.
        mean_weights: f32 [B, K, T]; `means`_k = Σ_t weight_kt · normalise(output of layer l)_t for every layer.
        collect: also return every layer's output.
        per_layer: a pytree of arrays [L, ...]; each layer gets its own slice as first argument after x.

    Raises:
        ValueError: unknown remat policy.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat={remat!r}: expected one of {sorted(REMAT_POLICIES)}")
    graphdef, params = nnx.split(layers)
    num_layers = jax.tree.leaves(params)[0].shape[0]

    def layer(
        x: jax.Array, params: nnx.State, key: jax.Array | None, weight: jax.Array | None, own: Any, *args: Any
    ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, Any]:
        out = nnx.merge(graphdef, params)(x, *(() if per_layer is None else (own,)), *args, rng=key)
        x, extra = out if isinstance(out, tuple) else (out, None)
        share = None if weight is None else weight * normalise(x)
        return x, share, None if mean_weights is None else weighted_mean(x, mean_weights), extra

    # On one device nothing is gathered, and a checkpoint that saves everything costs a quarter on CPU.
    if remat != "none" or jax.sharding.get_abstract_mesh().size > 1:
        # prevent_cse is for code outside loops; inside a scan it only costs.
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[remat], prevent_cse=False)

    def body(carry: tuple[jax.Array, jax.Array | None], of_layer: Any) -> Any:
        x, mixed = carry
        x, share, mean, extra = layer(x, *of_layer, *args)
        return (x, None if share is None else mixed + share), (x if collect else None, mean, extra)

    keys = None if rng is None else jax.random.split(rng, num_layers)
    start = None if mix_weights is None else jnp.zeros_like(x, jnp.float32)
    (last, mixed), outputs = lax.scan(body, (x, start), (params, keys, mix_weights, per_layer))
    return StackOutput(last, mixed, *outputs)


def weighted_mean(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [B, T, D], weights f32 [B, K, T] -> Σ_t weight_kt · normalise(x)_t, f32 [B, K, D]."""
    return jnp.einsum("bkt,btd->bkd", weights, normalise(x))
