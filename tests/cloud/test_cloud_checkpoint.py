"""A damaged newest checkpoint on gs://, which renames no folders: the one before is used, it counts as cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax.checkpoint import Checkpoints
from mser_jax.state import TrainState


def state_at(step):
    params = {"head/kernel": jnp.full((64, 64), float(step))}
    return TrainState(jnp.int32(step), params, {}, {"mu": params}, jax.random.key(3))


@pytest.mark.parametrize("way", ["removed", "uncommitted"])
def test_falls_back_to_the_one_before(gcs, bucket, caplog, way):
    checkpoints = Checkpoints(bucket, keep_latest=2)
    for step in (1, 2):
        checkpoints.save(state_at(step), {"config": {}})
    checkpoints.close()
    if way == "removed":
        for data in (bucket / "2" / "params" / "d").iterdir():
            data.unlink()
    else:
        (bucket / "2" / "commit_success.txt").unlink()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0))
    checkpoints = Checkpoints(bucket, keep_latest=2, clean=True)
    restored = checkpoints.resume(abstract)
    assert int(restored.step) == 1
    np.testing.assert_array_equal(restored.trainable["head/kernel"], np.ones((64, 64)))
    assert ("DAMAGED CHECKPOINT" in caplog.text) == (way == "removed")
    checkpoints.save(state_at(2), {"config": {}})
    checkpoints.close()
    names = {path.name for path in bucket.iterdir()}
    assert names == {"1", "2"}
    assert int(Checkpoints(bucket).restore(abstract).step) == 2
