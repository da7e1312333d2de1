"""A damaged newest checkpoint on gs://, which renames no folders: the one before is used, it counts as cut off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax import integrity
from mser_jax.checkpoint import CheckpointError, Checkpoints
from mser_jax.state import TrainState


def state_at(step):
    params = {"head/kernel": jnp.full((64, 64), float(step))}
    return TrainState(jnp.int32(step), params, {}, {"mu": params}, jax.random.key(3))


@pytest.mark.parametrize("way", ["removed", "flipped", "uncommitted"])
def test_falls_back_to_the_one_before(gcs, bucket, caplog, way):
    checkpoints = Checkpoints(bucket, keep_latest=2)
    for step in (1, 2):
        checkpoints.save(state_at(step), {"config": {}})
    checkpoints.close()
    if way == "removed":
        for data in (bucket / "2" / "params" / "d").iterdir():
            data.unlink()
    elif way == "flipped":
        (data,) = (bucket / "2" / "params" / "ocdbt.process_0" / "d").iterdir()
        data.write_bytes(data.read_bytes()[:-9] + b"rotten" + data.read_bytes()[-3:])
    else:
        (bucket / "2" / "commit_success.txt").unlink()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0))
    if way != "uncommitted":
        with pytest.raises(CheckpointError, match=f"{bucket}/2 is damaged: (params|training)/"):
            Checkpoints(bucket).restore_params(abstract.params)
    checkpoints = Checkpoints(bucket, keep_latest=2, clean=True)
    restored = checkpoints.resume(abstract)
    assert int(restored.step) == 1
    np.testing.assert_array_equal(restored.trainable["head/kernel"], np.ones((64, 64)))
    assert ("DAMAGED CHECKPOINT" in caplog.text) == (way != "uncommitted")
    checkpoints.save(state_at(2), {"config": {}})
    checkpoints.close()
    names = {path.name for path in bucket.iterdir()}
    assert names == {"1", "2"}
    assert int(Checkpoints(bucket).restore(abstract).step) == 2


def test_nothing_is_downloaded_for_checksums_and_none_is_complete_without_them(gcs, bucket, monkeypatch):
    order, write = [], integrity.write
    monkeypatch.setattr(
        integrity, "write",
        lambda folder, told: order.append((folder / "commit_success.txt").exists()) or write(folder, told),
    )  # fmt: skip
    checkpoints = Checkpoints(bucket)
    checkpoints.save(state_at(1), {"config": {}})
    checkpoints.close()
    assert order == [False] and (bucket / "1" / "commit_success.txt").exists()
    read = []
    monkeypatch.setattr(integrity, "_read", lambda path: read.append(path))
    assert integrity.problems(bucket / "1") == [] and read == []
