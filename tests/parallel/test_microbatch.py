"""A batch in parts: rows stay where they are, values and gradients are those of the whole, memory is that of a part."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import microbatch, sharding


@pytest.mark.parametrize("mode", ["explicit", "auto"])
def test_no_row_travels(mode):
    mesh = mesh_lib.make_mesh(data=2, fsdp=4, mode=mode)
    x = np.random.default_rng().standard_normal((48, 3)).astype(np.float32)

    def there_and_back(x):
        parts = microbatch.split({"x": x}, 3)
        return parts["x"], microbatch.join(parts)["x"]

    with jax.set_mesh(mesh):
        rows = jax.device_put(x, sharding.batch_sharding(mesh))
        program = jax.jit(there_and_back).lower(rows).compile()
        parts, again = program(rows)
    assert not re.search("all-gather|all-to-all|collective-permute|all-reduce", program.as_text())
    np.testing.assert_array_equal(again, x)
    for number in range(3):
        np.testing.assert_array_equal(parts[number], x[number::3])


def test_values_and_gradients_of_the_whole_in_less_memory():
    rng = np.random.default_rng()
    x, y, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 16), (64, 64), (16, 512)))
    v = rng.standard_normal((512, 8)).astype(np.float32) / 512

    def loss(weights, rows, number):
        def encode(rows, rng):
            del rng
            return {"z": jnp.tanh(jnp.sin(rows @ weights[0]) @ weights[1])}

        z = microbatch.encode(encode, rows, jax.random.key(0), number)["z"]
        return ((z @ z.T - y) ** 2).mean()

    programs = [
        jax.jit(jax.value_and_grad(loss), static_argnums=2).lower((w, v), x, number).compile() for number in (1, 4)
    ]
    whole, parts = (program((w, v), x) for program in programs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parts, whole)
    memory, less = (program.memory_analysis().temp_size_in_bytes for program in programs)
    assert less < 0.6 * memory


def test_every_part_draws_for_itself():
    def noise(rows, rng):
        return rows + jax.random.normal(rng, rows.shape)

    drawn = np.asarray(microbatch.encode(noise, jnp.zeros((6, 4)), jax.random.key(0), 2))
    assert len(np.unique(drawn)) == drawn.size
