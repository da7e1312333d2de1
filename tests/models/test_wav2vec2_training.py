"""The wav2vec2 family in training: gradients, rematerialisation, eight devices, operations, bf16, what is refused."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mser_jax.models.wav2vec2 import MAX_SAMPLES, Wav2Vec2Config, Wav2Vec2Encoder
from mser_jax.parallel import sharding

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def speech(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Wide enough that several kinds of parameters are sharded.
SMALL = Wav2Vec2Config(
    num_layers=2,
    width=32,
    num_heads=4,
    mlp_width=64,
    conv_dims=(16, 16, 24),
    conv_kernels=(10, 8, 8),
    conv_strides=(5, 8, 8),
    position_kernel=16,
    position_groups=4,
    dropout=0.1,
)
LAYOUTS = {
    "base": SMALL,
    "wavlm_large": dataclasses.replace(
        SMALL, conv_norm="layer", conv_bias=True, norm_first=True, relative_buckets=32, relative_max_distance=40
    ),
}


def make(cfg, rngs):
    return cfg.make(dtype=jnp.float32, rngs=rngs)


def value_and_grad(graphdef, params, waveform, num_samples, rng):
    def loss(params):
        encoder = nnx.merge(graphdef, params)
        out = encoder(*encoder.front_end(waveform, num_samples), mix_logits=jnp.arange(3.0), rng=rng)
        target = jnp.sin(jnp.arange(32.0))
        return jnp.sum(jnp.where(out.mask[..., None], out.mixed * target + jnp.square(out.last), 0.0)) / 100

    return jax.value_and_grad(loss)(params)


LENGTHS = np.array([4000, 3000, 350, 4000, 400, 2000, 1000, 3999], np.int32)


@pytest.fixture(scope="module")
def reference(build):
    """Value and gradients of each layout on one device, remat "none"."""

    @functools.cache
    def run(layout):
        graphdef, params = nnx.split(build(functools.partial(make, LAYOUTS[layout])))
        step = jax.jit(value_and_grad, static_argnums=0)
        return step(graphdef, params, speech(10, 8, 4000), LENGTHS, jax.random.key(1))

    return run


def assert_close(out, expected):
    """Tolerance 1e-5, gradients relative to the largest of their leaf (keys' biases: of 1e-2, being 0 by theory)."""
    np.testing.assert_allclose(out[0], expected[0], rtol=1e-5)
    expected_grads = jax.tree_util.tree_leaves_with_path(expected[1])
    for (path, want), grad in zip(expected_grads, jax.tree.leaves(out[1]), strict=True):
        assert np.isfinite(grad).all(), path
        scale = max(np.abs(want).max(), 1e-2)
        np.testing.assert_allclose(grad / scale, want / scale, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_reach_every_parameter(reference, layout):
    for path, grad in jax.tree_util.tree_leaves_with_path(reference(layout)[1]):
        name = sharding.path_of(path)
        if "attention/key/bias" in name:  # shifts all logits of a query alike
            continue
        assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-6, name


@pytest.mark.parametrize(("layout", "remat"), [("base", "full"), ("wavlm_large", "dots")])
def test_remat_changes_nothing(reference, build, layout, remat):
    cfg = dataclasses.replace(LAYOUTS[layout], remat=remat)
    graphdef, params = nnx.split(build(functools.partial(make, cfg)))
    step = jax.jit(value_and_grad, static_argnums=0)
    out = step(graphdef, params, speech(10, 8, 4000), LENGTHS, jax.random.key(1))
    assert_close(out, reference(layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_equal_one(reference, build, monkeypatch, mesh8, layout):
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 32)
    graphdef, params = nnx.split(build(functools.partial(make, LAYOUTS[layout])))
    shardings = sharding.infer_shardings(params, mesh8)
    assert sum(s.spec != jax.P() for s in jax.tree.leaves(shardings)) > 20
    rows = jax.device_put((speech(10, 8, 4000), LENGTHS), sharding.batch_sharding(mesh8))
    step = jax.jit(value_and_grad, static_argnums=0)
    out = step(graphdef, jax.device_put(params, shardings), *rows, jax.random.key(1))
    assert_close(out, reference(layout))


def products(jaxpr) -> int:
    """Operations of all matrix products and convolutions in a jaxpr, those in loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "shape")]
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            total += 2 * math.prod(shapes[2]) * math.prod(shapes[1][:2])  # kernel [size, in / groups, out]
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += repeats * sum(products(inner) for inner in jax.core.jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_samples", [300, 32000])
def test_flops_are_the_products_of_the_program(layout, num_samples):
    cfg = dataclasses.replace(LAYOUTS[layout], num_layers=3)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: make(cfg, nnx.Rngs(0))))

    def forward(params, x):
        return nnx.merge(graphdef, params)(x, jnp.ones(x.shape, bool)).last

    program = jax.make_jaxpr(forward)(params, jax.ShapeDtypeStruct((1, num_samples), jnp.float32))
    assert products(program.jaxpr) == cfg.flops(num_samples)


def test_bf16_is_near_f32(build, call):
    """Compute in bf16 from f32 parameters: 2 % of the size of the output; masks and dtypes as they should be."""
    cfg = dataclasses.replace(LAYOUTS["wavlm_large"], dropout=0.0)
    x, mix = speech(11, 2, 4000), jnp.zeros(3)
    mask = np.arange(4000) < np.array([[4000], [3000]])
    f32, bf16 = (
        call(build(lambda rngs, dtype=dtype: cfg.make(dtype=dtype, rngs=rngs)), "__call__", x, mask, mix_logits=mix)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert bf16.last.dtype == jnp.bfloat16 and bf16.mixed.dtype == jnp.float32
    error = np.where(f32.mask[..., None], bf16.mixed - f32.mixed, 0.0)
    assert np.sqrt(np.square(error).mean()) < 0.02 * np.sqrt(np.square(f32.mixed).mean())


def test_what_is_refused():
    encoder = nnx.eval_shape(lambda: Wav2Vec2Encoder(SMALL, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="60 s"):
        encoder(jnp.zeros((1, MAX_SAMPLES + 1)), jnp.ones((1, MAX_SAMPLES + 1), bool))
    with pytest.raises(ValueError, match="conv_norm='batch'"):
        dataclasses.replace(SMALL, conv_norm="batch")
    with pytest.raises(ValueError, match=r"\[3, 2, 3\]"):
        dataclasses.replace(SMALL, conv_kernels=(10, 3))
    with pytest.raises(ValueError, match="groups"):
        nnx.eval_shape(lambda: make(dataclasses.replace(SMALL, position_groups=5), nnx.Rngs(0)))
