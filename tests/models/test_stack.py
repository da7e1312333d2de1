"""Scanned stacks: equal to a Python loop, the same under every remat policy, no larger when deeper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mser_jax.models.attention import Block, MultiHeadAttention
from mser_jax.models.layers import dropout
from mser_jax.models.stack import REMAT_POLICIES, run_layers, stack_layers
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding


def make(num_layers, width=16, rate=0.0):
    return stack_layers(lambda r: Block(width, 2, 32, depth=num_layers, dropout=rate, rngs=r), num_layers, nnx.Rngs(0))


def inputs(seed=0):
    x = jax.random.normal(jax.random.key(seed), (2, 5, 16))
    return x, jnp.array([[True] * 5, [True, True, True, False, False]])


def test_equals_a_loop_and_layers_differ():
    layers, (x, mask) = make(3), inputs()
    graphdef, params = nnx.split(layers)
    out = run_layers(layers, x, mask, collect=True)
    for i in range(3):
        x = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], params))(x, mask)
        np.testing.assert_allclose(out.collected[i], x, atol=1e-6)
    np.testing.assert_allclose(out.last, x, atol=1e-6)
    kernel = layers.attention.query.kernel[...]
    assert kernel.shape == (3, 16, 16) and float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1


class Scaled(nnx.Module):
    """x · weight · its own factor; beside it, what it multiplied with."""

    def __init__(self, rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(self, x, own, shift, *, rng=None):
        factor = self.weight[...] * own["factor"]
        return x * factor + shift, {"factor": factor}


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_each_layer_gets_its_own_and_returns_extras(remat):
    layers, factors = stack_layers(Scaled, 3, nnx.Rngs(0)), jnp.array([2.0, 3.0, 5.0])
    out = run_layers(layers, jnp.ones((1, 1, 1)), 0.5, remat=remat, per_layer={"factor": factors})
    np.testing.assert_allclose(out.extras["factor"], layers.weight[...] * factors)
    expected = 1.0
    for factor in np.asarray(out.extras["factor"]):
        expected = expected * factor + 0.5
    np.testing.assert_allclose(out.last[0, 0, 0], expected, rtol=1e-6)


def test_remat_policies_give_the_same_gradients_and_different_memory():
    layers, (x, mask) = make(4, rate=0.3), inputs()
    graphdef, params = nnx.split(layers)
    results, sizes = {}, {}
    for remat in REMAT_POLICIES:

        def loss(params, remat=remat):
            out = run_layers(
                nnx.merge(graphdef, params),
                x,
                mask,
                remat=remat,
                rng=jax.random.key(1),
                mix_weights=jnp.ones(4),
            )
            return jnp.sum(out.last**3) + jnp.sum(out.mixed**2)

        results[remat] = jax.jit(jax.value_and_grad(loss))(params)
        residuals = jax.tree.leaves(jax.vjp(loss, params)[1])
        sizes[remat] = sum(r.size for r in residuals)
    for remat in ("dots", "full"):
        for a, b in zip(jax.tree.leaves(results["none"]), jax.tree.leaves(results[remat]), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=max(1e-5, 2e-6 * np.abs(a).max()))
    assert sizes["full"] < sizes["dots"] < sizes["none"]


def test_program_does_not_grow_with_depth():
    x, mask = inputs()

    def size(num_layers):
        graphdef, params = nnx.split(make(num_layers))

        def loss(params, x):
            out = run_layers(nnx.merge(graphdef, params), x, mask, mix_weights=jnp.ones(num_layers))
            return out.mixed.sum()

        return len(jax.jit(jax.grad(loss)).lower(params, x).as_text().splitlines())

    assert size(2) == size(8)


def test_dropout_differs_by_layer_and_key_and_keeps_the_mean():
    x = jnp.ones((200, 500))
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    dropped = dropout(x, 0.25, jax.random.key(0))
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=0.01)
    np.testing.assert_allclose((dropped == 0).mean(), 0.25, atol=0.01)

    layers, (x, mask) = make(2, rate=0.5), inputs()
    # Both layers made equal: what differs between their branches is the dropout alone.
    graphdef, params = nnx.split(layers)
    layers = nnx.merge(graphdef, jax.tree.map(lambda p: jnp.stack([p[0], p[0]]), params))
    x0 = jnp.zeros_like(x)
    bias = layers.attention.out.bias
    bias[...] = jnp.ones_like(bias[...])
    first, second = run_layers(layers, x0, mask, rng=jax.random.key(0), collect=True).collected
    assert not np.array_equal(np.asarray(first) == 0, np.asarray(second - first) == 0)
    again = run_layers(layers, x0, mask, rng=jax.random.key(0)).last
    np.testing.assert_array_equal(again, second)
    assert np.any(run_layers(layers, x0, mask, rng=jax.random.key(1)).last != second)


def test_attention_equals_float64_numpy_and_masked_rows_are_finite():
    attention = MultiHeadAttention(16, 4, memory_width=12, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, memory = rng.standard_normal((2, 3, 16)), rng.standard_normal((2, 7, 12))
    mask = np.array([[True] * 7, [True] * 4 + [False] * 3])
    for layer in (attention.query, attention.key, attention.value, attention.out):
        layer.bias[...] = jnp.asarray(rng.standard_normal(16), jnp.float32)

    def linear(layer, y):
        return y @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])

    def heads(y):
        return y.reshape(*y.shape[:2], 4, 4)

    q, k, v = linear(attention.query, x), linear(attention.key, memory), linear(attention.value, memory)
    logits = np.einsum("bthd,bshd->bhts", heads(q), heads(k)) / 2.0
    p = np.exp(logits) * mask[:, None, None]
    p /= p.sum(-1, keepdims=True)
    expected = linear(attention.out, np.einsum("bhts,bshd->bthd", p, heads(v)).reshape(2, 3, 16))
    x, memory = jnp.asarray(x, jnp.float32), jnp.asarray(memory, jnp.float32)
    np.testing.assert_allclose(attention(x, memory, jnp.asarray(mask)), expected, atol=1e-5)

    def loss(memory):
        return attention(x, memory, jnp.zeros((2, 7), bool)).sum()

    value, grad = jax.value_and_grad(loss)(memory)
    assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_wrong_names_are_refused():
    x, mask = inputs()
    with pytest.raises(ValueError, match=r"expected one of \['dots', 'full', 'none'\]"):
        run_layers(make(1), x, mask, remat="all")
    with pytest.raises(ValueError, match="not a multiple of num_heads 3"):
        MultiHeadAttention(16, 3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("mode", ["explicit", "auto"])
def test_one_device_keeps_no_copy_of_the_weights(mode):
    """A scan keeps for its backward pass what it computes from its weights, but not the weights as they came."""
    layers, (x, mask) = make(3, width=16), inputs()
    mesh = mesh_lib.make_mesh(data=1, devices=jax.devices()[:1], mode=mode)
    rows, whole = sharding.batch_sharding(mesh), jax.sharding.NamedSharding(mesh, jax.P())
    graphdef, params = nnx.split(layers)
    with jax.set_mesh(mesh):
        x, mask, params = jax.device_put(x, rows), jax.device_put(mask, rows), jax.device_put(params, whole)

        def forward(x):
            return run_layers(nnx.merge(graphdef, params), x, mask).last

        jaxpr = jax.make_jaxpr(lambda x: jax.vjp(forward, x)[1](x))(x)
    kept = [v.aval.shape for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan" for v in eqn.outvars]
    kernels = {leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 3}
    assert (3, 2, 5, 16) in kept and len(kernels) == 3
    assert not kernels & set(kept), kernels & set(kept)
