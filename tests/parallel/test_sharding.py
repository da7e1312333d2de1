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


def test_the_largest_divisible_dimension_is_sharded():
    assert sharding.fsdp_spec((256, 1024), 4) == P(None, "fsdp")
    assert sharding.fsdp_spec((1026, 256), 4) == P(None, "fsdp")
    assert sharding.fsdp_spec((1025, 257), 4) == P()
    assert sharding.fsdp_spec((64,), 4) == P(), "small arrays stay whole"
    assert sharding.fsdp_spec((256, 1024), 1) == P()


def test_rules_win_in_order_and_must_cover(mesh8):
    tree = {"a": {"kernel": jax.ShapeDtypeStruct((512, 512), "float32")}, "b": jax.ShapeDtypeStruct((8,), "float32")}
    out = sharding.infer_shardings(tree, mesh8, (("kernel$", P("fsdp")), (".*", None)))
    assert out["a"]["kernel"].spec == P("fsdp") and out["b"].spec == P()
    with pytest.raises(ValueError, match="No sharding rule matches these parameters:\n  b"):
        sharding.infer_shardings(tree, mesh8, (("kernel$", None),))


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
