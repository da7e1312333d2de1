"""Attention against jax's own, GELU against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mser_jax.models.attention import attend
from mser_jax.models.layers import gelu
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding


def drawn(dtype, key_heads=4, keys=7):
    """q [2, 6, 4, 8], k and v [2, keys, key_heads, 8]."""
    rng = np.random.default_rng(0)
    shapes = (2, 6, 4, 8), (2, keys, key_heads, 8), (2, keys, key_heads, 8)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("key_heads", "options"),
    [(4, {}), (4, {"mask": (2, 1, 7), "bias": (1, 4, 6, 7)}), (2, {"mask": (2, 6, 7), "scale": 0.3}), (1, {})],
    ids=["plain", "key mask, bias", "grouped, mask, scale", "one key head"],
)
def test_attention_and_its_gradients_equal_jax(dtype, key_heads, options):
    """5e-6 in f32; in bf16 the two round at different places, each by less than two units in the last place."""
    rng = np.random.default_rng(1)
    q, k, v = drawn(dtype, key_heads)
    mask = rng.random(options["mask"]) < 0.7 if "mask" in options else None
    bias = rng.standard_normal(options["bias"]).astype(np.float32) if "bias" in options else None
    weights = rng.standard_normal(q.shape).astype(np.float32)

    def ours(q, k, v):
        return attend(q, k, v, mask=mask, bias=bias, scale=options.get("scale"))

    def theirs(q, k, v):
        seen = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(q, k, v, bias, seen, scale=options.get("scale"))

    def both(attention):
        def total(*args):
            y = attention(*args)
            return (y.astype(jnp.float32) * weights).sum(), y

        gradients, y = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return y, *gradients

    for found, expected in zip(both(ours), both(theirs), strict=True):
        assert found.dtype == expected.dtype == q.dtype
        found, expected = (np.asarray(x, np.float64) for x in (found, expected))
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=largest * (5e-6 if dtype == "float32" else 2**-7))


@pytest.mark.parametrize("key_heads", [4, 2], ids=["own key heads", "grouped"])
@pytest.mark.parametrize("mode", ["explicit", "auto"])
def test_heads_may_lie_on_different_devices(mode, key_heads):
    """Rows over two devices, heads over two: as on one, and no device is sent another's heads."""
    q, k, v = drawn("float32", key_heads)
    mask = np.arange(7)[None, None] < np.array([5, 7])[:, None, None]
    expected = attend(q, k, v, mask=mask)
    mesh = mesh_lib.make_mesh(2, 1, 2, mode=mode, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec(sharding.BATCH_AXES, None, "tensor", None)
        placed = [jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) for x in (q, k, v)]
        rows = jax.device_put(mask, jax.sharding.NamedSharding(mesh, sharding.BATCH))
        compiled = jax.jit(lambda q, k, v, mask: attend(q, k, v, mask=mask)).lower(*placed, rows).compile()
        found = compiled(*placed, rows)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    text = compiled.as_text()
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if name in text]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_gelu_equals_float64(dtype, tolerance):
    """Values and slopes, tails included; tolerances relative to 1 + |x|."""
    x = jnp.asarray(np.concatenate([np.linspace(-12, 12, 4001), np.random.default_rng(0).normal(size=999)]), dtype)
    at = np.asarray(x, np.float64)
    normal = scipy.special.ndtr(at)
    density = np.exp(-0.5 * at**2) / np.sqrt(2 * np.pi)
    y, slope = jax.jvp(gelu, (x,), (jnp.ones_like(x),))
    assert y.dtype == slope.dtype == x.dtype
    for found, expected in ((y, at * normal), (slope, normal + at * density)):
        assert np.max(np.abs(np.asarray(found, np.float64) - expected) / (1 + np.abs(at))) <= tolerance
