"""Accumulated gradients are those of the whole batch; fingerprints see every bit and no mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax import state, step
from mser_jax.models.layers import Linear
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding


class Tagger(nnx.Module):
    def __init__(self, rngs):
        self.head = Linear(6, 5, rngs=rngs)


def token_loss(model, batch, rng):
    """Σ over tokens that count: rows have between none and all of four."""
    del rng
    losses = optax.softmax_cross_entropy_with_integer_labels(model.head(batch["x"]), batch["y"])
    counted = batch["mask"]
    weight = counted.sum(dtype=jnp.float32)
    total = jnp.where(counted, losses, 0.0).sum()
    return total, weight, {"tokens": weight, "squares": (jnp.where(counted, losses**2, 0.0).sum(), weight)}


def uneven_batch(mesh):
    rng = np.random.default_rng(5)
    counts = rng.permutation(np.r_[np.zeros(4, int), np.full(4, 4), rng.integers(1, 4, 8)])
    batch = {
        "x": rng.normal(size=(16, 4, 6)).astype(np.float32),
        "y": rng.integers(0, 5, (16, 4)).astype(np.int32),
        "mask": np.arange(4) < counts[:, None],
    }
    per_part = batch["mask"].reshape(4, 4, 4).sum((0, 2))
    assert len(set(per_part)) > 1, "each of the four parts counts other tokens"
    return jax.device_put(batch, sharding.batch_sharding(mesh))


@pytest.mark.parametrize(("mode", "shape"), [("explicit", (1, 1)), ("explicit", (2, 2)), ("auto", (2, 2))])
def test_accumulated_sums_are_those_of_the_whole_batch(mode, shape):
    """Parameters, loss and metrics after a step of plain gradient descent: 1e-6 relative."""
    mesh = mesh_lib.make_mesh(*shape, mode=mode, devices=jax.devices()[: shape[0] * shape[1]])
    definition, tx = state.define(Tagger), optax.with_extra_args_support(optax.sgd(0.5))
    with jax.set_mesh(mesh):
        init = state.initializer(definition, tx, dict.fromkeys(definition.abstract, 1.0), seed=0)
        start = state.create(init, state.abstract_state(init, mesh))
        batch = uneven_batch(mesh)
        found = {n: jax.jit(step.make_train_step(definition, token_loss, tx, n))(start, batch) for n in (1, 2, 4)}
    whole, metrics = found[1]
    assert np.abs(whole.params["head/kernel"] - start.params["head/kernel"]).max() > 1e-2
    for number in (2, 4):
        after, those = found[number]
        for path, value in whole.params.items():
            np.testing.assert_allclose(after.params[path], value, rtol=1e-6, atol=1e-7, err_msg=path)
        assert metrics.keys() == those.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(those[name], value, rtol=1e-6, err_msg=name)


def test_a_mean_of_means_would_differ():
    """The same batch in parts whose means are averaged: what accumulation by sums avoids."""
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        batch = jax.tree.map(np.asarray, uneven_batch(mesh))
        model = Tagger(nnx.Rngs(0))
        parts = [{name: x[part::4] for name, x in batch.items()} for part in range(4)]
        means = [float(total / weight) for total, weight, _ in (token_loss(model, part, None) for part in parts)]
        total, weight, _ = token_loss(model, batch, None)
    assert abs(np.mean(means) - float(total / weight)) > 1e-3


def test_a_fingerprint_sees_every_bit_and_no_mesh(mesh8):
    rng = np.random.default_rng(0)
    params = {"a/kernel": rng.normal(size=(512, 64)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}
    params["c"] = params["a/kernel"][:8].astype(jnp.bfloat16)
    first = state.fingerprint(params)
    placed = {
        path: jax.device_put(x, NamedSharding(mesh8, P("fsdp") if x.ndim > 1 else P())) for path, x in params.items()
    }
    assert state.fingerprint(placed) == first
    for path in params:
        for change in (flip_lowest_bit, swap_two):
            assert state.fingerprint(params | {path: change(params[path])}) != first, (path, change)
    assert state.fingerprint({**params, "d": params["b"]}) != first
    renamed = {("z" if path == "b" else path): value for path, value in params.items()}
    assert state.fingerprint(renamed) != first


def flip_lowest_bit(x):
    bits = x.copy().view(f"uint{8 * x.dtype.itemsize}")
    bits.flat[3] ^= 1
    return bits.view(x.dtype)


def swap_two(x):
    out = x.copy()
    out.flat[0], out.flat[5] = x.flat[5], x.flat[0]
    return out
