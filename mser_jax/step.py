"""The train step, and the one jit signature that training and ahead-of-time compiles share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mser_jax.state import ModelDefinition, TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# (model, batch, rng) -> (sum of losses, its weight, metrics); the loss is sum / weight.
LossFn = Callable[[nnx.Module, Batch, jax.Array], tuple[jax.Array, jax.Array, Metrics]]


def make_train_step(
    definition: ModelDefinition, loss_fn: LossFn, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure (state, batch) -> (state, metrics).

    When the loss or the gradient norm is not finite, parameters and moments stay as they were, `skipped` is 1 and the
    step still counts, so that the next step sees the next batch.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)

        def mean_loss(trainable: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
            total, weight, metrics = loss_fn(definition.merge({**trainable, **state.frozen}), batch, rng)
            return total / jnp.maximum(weight, 1.0), metrics

        (loss, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.trainable)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, optimizer = tx.update(grads, state.optimizer, state.trainable, finite=finite)
        trainable = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), optax.apply_updates(state.trainable, updates), state.trainable
        )
        metrics = {**metrics, "loss": loss, "grad_norm": grad_norm, "skipped": 1 - finite.astype(jnp.int32)}
        return TrainState(state.step + 1, trainable, state.frozen, optimizer, state.rng), metrics

    return train_step


def jit_signature(abstract: TrainState) -> dict[str, Any]:
    """Keyword arguments of `jax.jit` for a train step: state in and out as `abstract` says, its buffers reused."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return {"in_shardings": (shardings, None), "out_shardings": (shardings, None), "donate_argnums": 0}
