"""What is kept, what is ignored, and what a person reads when a checkpoint cannot be used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax.checkpoint import FORMAT_VERSION, CheckpointError, Checkpoints, difference, versions
from mser_jax.state import TrainState


def state_at(step, width=8):
    params = {"head/kernel": jnp.full((width, 4), float(step)), "head/bias": jnp.zeros(4)}
    return TrainState(jnp.int32(step), params, {}, {"mu": params}, jax.random.key(3))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_latest=2, keep_every=3)
    for step in range(1, 8):
        checkpoints.save(state_at(step), {"config": {"seed": 5}})
    checkpoints.close()
    return tmp_path


def test_the_latest_and_every_third_are_kept_with_config_and_versions(saved):
    assert sorted(int(path.name) for path in saved.iterdir() if path.name.isdigit()) == [3, 6, 7]
    checkpoints = Checkpoints(saved)
    assert checkpoints.latest == 7
    told = {"config": {"seed": 5}, "format_version": FORMAT_VERSION, "versions": versions()}
    assert checkpoints.metadata(3) == told
    restored = checkpoints.restore(abstract(state_at(0)))
    assert int(restored.step) == 7
    np.testing.assert_array_equal(restored.trainable["head/kernel"], np.full((8, 4), 7.0))
    np.testing.assert_array_equal(jax.random.key_data(restored.rng), jax.random.key_data(jax.random.key(3)))
    only = checkpoints.restore_params(abstract(state_at(0)).params, step=3)
    np.testing.assert_array_equal(only["head/kernel"], np.full((8, 4), 3.0))


def test_a_step_that_is_not_there_names_those_that_are(saved):
    with pytest.raises(CheckpointError, match=r"No checkpoint of step 5 .*there are \[3, 6, 7\]"):
        Checkpoints(saved).metadata(5)
    with pytest.raises(CheckpointError, match="No complete checkpoint"):
        Checkpoints(saved / "nothing").restore(abstract(state_at(0)))


def test_a_truncated_checkpoint_is_a_clear_error_that_names_the_others(saved):
    for data in (saved / "7" / "params").rglob("d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"7 is damaged: .*Other checkpoints there: \[3, 6\]; move this folder"):
        Checkpoints(saved).restore(abstract(state_at(0)))
    assert int(Checkpoints(saved).restore(abstract(state_at(0)), step=6).step) == 6


def test_a_save_that_was_cut_off_is_ignored(saved):
    (saved / "7").rename(saved / "7.orbax-checkpoint-tmp")
    (saved / "7.orbax-checkpoint-tmp" / "commit_success.txt").unlink()
    assert Checkpoints(saved).latest == 6


def test_difference_lists_all_and_names_the_nearest():
    def leaf(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, dtype)

    expected = {"a/kernel": leaf(3, 4), "b/kernel": leaf(2), "same": leaf(1), "kind": leaf(1)}
    there = {"a/kernel": leaf(3, 5), "b/kernl": leaf(2), "same": leaf(1), "kind": leaf(1, dtype="int32")}
    assert difference(expected, there) == [
        "missing in the checkpoint: b/kernel (2,) (nearest left over: b/kernl)",
        "left over in the checkpoint: b/kernl (2,)",
        "a/kernel: model has (3, 4) float32, checkpoint has (3, 5) float32",
        "kind: model has (1,) float32, checkpoint has (1,) int32",
    ]
    assert difference(expected, expected) == []
