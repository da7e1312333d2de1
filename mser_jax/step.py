"""The train step, and the one jit signature that training and ahead-of-time compiles share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mser_jax.parallel import microbatch, sharding
from mser_jax.state import ModelDefinition, TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]
Params = dict[str, jax.Array]
# (model, batch, rng) -> (sum of losses, its weight, metrics); the loss is sum / weight. A metric is a number, or a mean
# as (sum, weight); over the parts of an accumulated batch all of them are added up.
LossFn = Callable[[nnx.Module, Batch, jax.Array], tuple[jax.Array, jax.Array, Metrics]]


def make_train_step(
    definition: ModelDefinition, loss_fn: LossFn, tx: optax.GradientTransformation, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure (state, batch) -> (state, metrics).

    When the loss or the gradient norm is not finite, or the batch holds nothing (weight 0: moments and weights would
    decay for it), parameters and moments stay as they were, `skipped` is 1 and the step still counts, so that the next
    step sees the next batch.

    `accumulate`: the batch is taken in so many parts, one after the other. Their sums are added up and divided once, so
    the result is that of the whole batch, for losses that are sums over rows. The batch must divide.
    """

    def sums_and_gradients(
        trainable: Params, frozen: Params, batch: Batch, rng: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, Metrics], Params]:
        def total_loss(trainable: Params) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
            total, weight, metrics = loss_fn(definition.merge({**sharding.defer_sums(trainable), **frozen}), batch, rng)
            return total, (weight, metrics)

        (total, (weight, metrics)), grads = jax.value_and_grad(total_loss, has_aux=True)(trainable)
        return (total, weight, metrics), grads

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)
        if accumulate == 1:
            (total, weight, metrics), grads = sums_and_gradients(state.trainable, state.frozen, batch, rng)
        else:

            def add_one(sums: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
                number, rows = part
                new = sums_and_gradients(state.trainable, state.frozen, rows, jax.random.fold_in(rng, number))
                return jax.tree.map(jnp.add, sums, new), None

            parts = (jnp.arange(accumulate), microbatch.split(batch, accumulate))
            shapes = jax.eval_shape(
                sums_and_gradients, state.trainable, state.frozen, {name: x[0] for name, x in parts[1].items()}, rng
            )
            zeros = jax.tree.map(_zeros, shapes)
            ((total, weight, metrics), grads), _ = jax.lax.scan(add_one, zeros, parts)
        weight, holds_some = jnp.maximum(weight, 1.0), weight > 0
        loss, grads = total / weight, jax.tree.map(lambda grad: grad / weight, grads)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & holds_some
        updates, optimizer = tx.update(grads, state.optimizer, state.trainable, finite=finite)
        trainable = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), optax.apply_updates(state.trainable, updates), state.trainable
        )
        metrics = {name: _mean(value) if isinstance(value, tuple) else value for name, value in metrics.items()}
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm, "skipped": 1 - finite.astype(jnp.int32)}
        return TrainState(state.step + 1, trainable, state.frozen, optimizer, state.rng), metrics

    return train_step


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(shape.shape, shape.dtype, device=shape.sharding)


def _mean(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    total, weight = pair
    return total / jnp.maximum(weight, 1.0)


# Of the TPU compiler: weights are gathered while the layer before them computes. Off by default; MaxText sets them too.
TPU_OPTIONS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
}


def jit_signature(abstract: TrainState) -> dict[str, Any]:
    """Keyword arguments of `jax.jit` for a train step: state in and out as `abstract` says, its buffers reused."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    devices = abstract.step.sharding.mesh.devices
    options = TPU_OPTIONS if devices.size > 1 and devices.flat[0].platform == "tpu" else None
    return {
        "in_shardings": (shardings, None),
        "out_shardings": (shardings, None),
        "donate_argnums": 0,
        "compiler_options": options,
    }
