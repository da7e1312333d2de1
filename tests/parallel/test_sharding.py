"""Which dimension is sharded, what must match, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding


def test_mesh_sizes():
    assert dict(mesh_lib.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert dict(mesh_lib.make_mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    for wrong in ({"data": 3}, {"data": -1, "fsdp": -1}, {"data": 2, "fsdp": 2}, {"data": 0}):
        with pytest.raises(ValueError, match="does not fit 8 cpu device"):
            mesh_lib.make_mesh(**wrong)
    with pytest.raises(ValueError, match="explicit"):
        mesh_lib.make_mesh(mode="manual")


def test_slices_lie_along_data():
    """The first half of the devices is the first half of `data`; fsdp and tensor never leave a slice."""
    mesh = mesh_lib.make_mesh(data=-1, fsdp=2, tensor=1, slices=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    assert set(ids[:2].ravel()) == set(range(4)) and set(ids[2:].ravel()) == set(range(4, 8))
    with pytest.raises(ValueError, match="over 2 slices: their number must divide data=1"):
        mesh_lib.make_mesh(data=1, fsdp=-1, slices=2)


def test_the_largest_divisible_dimension_is_sharded():
    assert sharding.fsdp_spec((256, 1024), 4) == P(None, "fsdp")
    assert sharding.fsdp_spec((1026, 256), 4) == P(None, "fsdp")
    assert sharding.fsdp_spec((1025, 257), 4) == P()
    assert sharding.fsdp_spec((64,), 4) == P(), "small arrays stay whole"
    assert sharding.fsdp_spec((256, 1024), 1) == P()


def test_rules_win_in_order_and_must_cover(mesh8):
    tree = {"a": {"kernel": jax.ShapeDtypeStruct((512, 512), "float32")}, "b": jax.ShapeDtypeStruct((8,), "float32")}
    out = sharding.infer_shardings(tree, mesh8, (("kernel$", ("fsdp", None)), (".*", None)))
    assert out["a"]["kernel"].spec == P("fsdp", None) and out["b"].spec == P()
    with pytest.raises(ValueError, match=r"No sharding rule matches these parameters.*\n  b$"):
        sharding.infer_shardings(tree, mesh8, (("kernel$", None),))
    with pytest.raises(ValueError, match=r"\n  b: a rule for 2 dimensions, .* but the shape is \(20000,\)"):
        sharding.infer_shardings({"b": jax.ShapeDtypeStruct((20_000,), "float32")}, mesh8, (("b", ("fsdp", None)),))


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((32, 256, 512), ("fsdp", "tensor"), P(None, "fsdp", "tensor")),
        ((32, 512, 256), (("tensor", "fsdp"), None), P(None, ("tensor", "fsdp"), None)),
        # 258 is no multiple of fsdp: the other dimension is, and the stack stays whole.
        ((32, 258, 512), ("fsdp", "tensor"), P(None, None, ("tensor", "fsdp"))),
        ((32, 258, 514), ("fsdp", "tensor"), P(None, None, "tensor")),
        ((64, 64), ("fsdp", None), P()),
        ((640, 640), (), P()),
    ],
)
def test_rows_of_the_table(shape, axes, expected):
    mesh = mesh_lib.make_mesh(data=1, fsdp=4, tensor=2)
    assert sharding.spec_of(shape, axes, mesh) == expected


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("explicit", (2, 2, 2)),
        ("explicit", (8, 1, 1)),
        ("explicit", (1, 8, 1)),
        ("explicit", (1, 1, 8)),
        ("auto", (2, 2, 2)),
    ],
)
def test_a_pair_of_products_over_tensor_is_the_dense_pair(mode, shape):
    """Values and gradients of x → out → in, heads between; f32, 1e-5 of the largest, 1e-6 of each term of the sum."""
    rng = np.random.default_rng()
    x, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 3, 128), (128, 256), (256, 128)))

    def loss(kernels, x):
        kernels = sharding.defer_sums(kernels)
        out, back = (sharding.split_by(8, how) for how in ("out", "in"))
        y = jnp.tanh(sharding.matmul(x, kernels["l/a/kernel"], out)).reshape(8, 3, 8, 32)
        y = sharding.matmul(y.reshape(8, 3, 256), kernels["l/b/kernel"], back)
        return jnp.sin(y).sum()

    kernels = {"l/a/kernel": a, "l/b/kernel": b}
    expected = jax.value_and_grad(loss)(kernels, x)
    mesh = mesh_lib.make_mesh(*shape, mode=mode)
    rules = (("a/", ("fsdp", "tensor")), ("b/", (("tensor", "fsdp"), None)))
    placed = jax.device_put(kernels, sharding.infer_shardings(kernels, mesh, rules))
    with jax.set_mesh(mesh):
        value, grads = jax.jit(jax.value_and_grad(loss))(placed, jax.device_put(x, sharding.batch_sharding(mesh)))
    # Its terms are sines of either sign: a sum near zero is no measure of their errors.
    np.testing.assert_allclose(value, expected[0], rtol=0, atol=1e-6 * x.size)
    for path, grad in grads.items():
        np.testing.assert_allclose(grad, expected[1][path], atol=1e-5 * np.abs(expected[1][path]).max())
        if mode == "explicit":
            assert grad.sharding.is_equivalent_to(placed[path].sharding, 2)


def test_too_many_replicated_bytes_name_the_largest(mesh8):
    tree = {"odd": jax.ShapeDtypeStruct((999, 999), "float32"), "even": jax.ShapeDtypeStruct((1024, 1024), "float32")}
    shardings = sharding.infer_shardings(tree, mesh8)
    with pytest.raises(ValueError, match=r"48\.8% of the parameter bytes.*\n +3,992,004 B  odd \(999, 999\)"):
        sharding.check_sharded(tree, shardings, 0.02)
    sharding.check_sharded({"even": tree["even"]}, {"even": shardings["even"]}, 0.02)


@pytest.mark.parametrize("mode", ["explicit", "auto"])
def test_lookup_and_constrain_give_values_and_shardings(mode):
    mesh = mesh_lib.make_mesh(data=2, fsdp=4, mode=mode)
    table = np.random.default_rng().normal(size=(32, 16)).astype(np.float32)
    ids = np.random.default_rng().integers(0, 32, (8, 3))
    with jax.set_mesh(mesh):
        placed = jax.device_put(ids, sharding.batch_sharding(mesh))
        sharded = jax.device_put(table, NamedSharding(mesh, P("fsdp")))
        rows = jax.jit(lambda t, i: sharding.lookup(sharding.gather_weight(t), i))(sharded, placed)
        assert rows.sharding.shard_shape(rows.shape) == (1, 3, 16)
        whole = jax.jit(sharding.replicate)(rows)
        assert whole.sharding.is_fully_replicated
        back = jax.jit(lambda x: sharding.constrain(x, sharding.BATCH))(whole)
        assert back.sharding.shard_shape(back.shape) == (1, 3, 16)
    np.testing.assert_array_equal(back, table[ids])


def test_without_a_mesh_everything_is_the_identity():
    x = jnp.arange(6.0).reshape(3, 2)
    assert sharding.constrain(x, sharding.BATCH) is x
    np.testing.assert_array_equal(sharding.lookup(x, jnp.array([2, 0])), x[jnp.array([2, 0])])


@pytest.mark.parametrize("spec", [P(None, "fsdp"), P("fsdp", None), P()])
def test_lookup_gives_rows_and_gradients_whatever_the_tables_sharding(spec):
    """Exact rows; gradients of repeated ids are added up: a sum of at most 24 float32 rows, to 1e-6 of their sizes."""
    rng = np.random.default_rng()
    table, weight = rng.normal(size=(32, 16)).astype(np.float32), rng.normal(size=(8, 3, 16)).astype(np.float32)
    ids = rng.integers(0, 4, (8, 3))
    expected, size = np.zeros(table.shape), np.zeros(table.shape)
    np.add.at(expected, ids, weight)
    np.add.at(size, ids, np.abs(weight))
    for mesh in (mesh_lib.make_mesh(data=2, fsdp=4), mesh_lib.make_mesh(data=1, fsdp=4, tensor=2)):
        with jax.set_mesh(mesh):
            placed, rows = (jax.device_put(x, sharding.batch_sharding(mesh)) for x in (ids, weight))
            sharded = jax.device_put(table, NamedSharding(mesh, spec))

            def weighted(table, placed=placed, rows=rows):
                found = sharding.lookup(table, placed)
                return (found * rows).sum(), found

            (_, found), grad = jax.jit(jax.value_and_grad(weighted, has_aux=True))(sharded)
            assert found.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 3)
            assert grad.sharding.is_equivalent_to(sharded.sharding, 2)
        np.testing.assert_array_equal(found, table[ids])
        assert (np.abs(grad - expected) <= 1e-6 * size).all()


@pytest.mark.parametrize("mode", ["explicit", "auto"])
@pytest.mark.parametrize("devices", [1, 2])
def test_gradients_of_a_product_sum_over_one_axis_on_one_cpu(devices, mode):
    """And over batch and time where rows are shared out; values within 1e-5 of float64 either way."""
    rng = np.random.default_rng(0)
    x, kernel, weights = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 5, 6), (6, 7), (4, 5, 7)))
    mesh = mesh_lib.make_mesh(data=devices, devices=jax.devices()[:devices], mode=mode)
    with jax.set_mesh(mesh):
        rows = [jax.device_put(y, NamedSharding(mesh, sharding.BATCH)) for y in (x, weights)]
        whole = jax.device_put(kernel, NamedSharding(mesh, P()))

        def loss(kernel, x, weights):
            y = sharding.matmul(x, kernel)
            return (y * weights).sum(), y

        gradient, y = jax.jit(jax.grad(loss, has_aux=True))(whole, *rows)
        jaxpr = jax.make_jaxpr(jax.grad(lambda *args: loss(*args)[0]))(whole, *rows)
    products = [eqn.params["dimension_numbers"] for eqn in jaxpr.eqns if eqn.primitive is jax.lax.dot_general_p]
    assert max(len(contracted[0]) for contracted, _ in products) == (1 if devices == 1 else 2)
    np.testing.assert_allclose(y, np.einsum("bti,io->bto", *map(np.float64, (x, kernel))), atol=1e-5)
    np.testing.assert_allclose(gradient, np.einsum("bti,bto->io", *map(np.float64, (x, weights))), atol=1e-5)
