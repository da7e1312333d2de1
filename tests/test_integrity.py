"""Bits that rot in any file of a checkpoint: it is refused where it is used, and a run goes on from the one before."""

import json
import pathlib
import random
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mser_jax import integrity
from mser_jax.checkpoint import CheckpointError, CheckpointMismatch, Checkpoints
from mser_jax.state import TrainState

# Of each file: random bytes of a saved checkpoint cannot be known before, so the places are drawn for each by name.
WAYS = ("64 bytes", "a bit", "zeros", "empty", "cut", "gone", "beside")


def state_at(step):
    params = {"head/kernel": jax.random.normal(jax.random.key(step), (96, 32)), "head/bias": jnp.full(4, float(step))}
    return TrainState(jnp.int32(step), params, {}, {"mu": params}, jax.random.key(3))


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(state_at(step), {"config": {"seed": step}})
    checkpoints.close()
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def damage(path, way, rng):
    data = bytearray(path.read_bytes())
    if way == "64 bytes":
        for place in rng.choices(range(len(data)), k=64):
            data[place] ^= rng.randrange(1, 256)
    elif way == "a bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "gone":
        path.unlink()
        return
    elif way == "beside":
        path.with_name("process_7").write_bytes(data)
    else:
        data = {"zeros": bytes(len(data)), "empty": b"", "cut": data[: len(data) // 2]}[way]
    path.write_bytes(bytes(data))


def same(restored, step):
    assert int(restored.step) == step
    for ours, theirs in zip(
        jax.tree.leaves(state_at(step).optimizer), jax.tree.leaves(restored.optimizer), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(state_at(step).params["head/kernel"], restored.params["head/kernel"])


def test_whatever_happens_to_a_file_it_is_refused_and_a_run_goes_on_from_the_one_before(saved, tmp_path):
    files = files_of(saved / "2")
    kinds = {"_CHECKPOINT_METADATA", "checksums.json", "_METADATA", "_sharding", "process_0", "manifest.ocdbt"}
    assert kinds <= {path.name for path in files} and any(path.parent.name == "d" for path in files)
    opened_none = 0
    for number, file in enumerate(files):
        # Orbax reads only whether it is there; the copy of it that lies in each item is a file like others.
        if str(file) == "commit_success.txt":
            continue
        # All ways meet all kinds of files over the runs of this loop, two of them each file.
        for way in (WAYS[number % 2], WAYS[2 + number % 5]):
            if way == "beside" and file.parent == pathlib.Path():
                way = "gone"
            rng = random.Random(f"{number} {way}")
            folder = tmp_path / "copy"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(saved, folder)
            damage(folder / "2" / file, way, rng)
            name = "process_7" if way == "beside" else file.name
            try:
                Checkpoints(folder).restore_params(ABSTRACT.params)
                pytest.fail(f"{file}, {way}: read as if nothing were")
            except CheckpointError as error:
                told = str(error)
            assert str(folder) in told and "\n" not in told, (file, way)
            if "cannot be opened" in told:
                opened_none += 1
                assert f"Damaged: {folder / '2'}" in told
            else:
                assert f"{folder / '2'} is damaged: " in told and name in told, (file, way, told)
            checkpoints = Checkpoints(folder, clean=True)
            same(checkpoints.resume(ABSTRACT), 1)
            assert checkpoints.metadata(1)["config"] == {"seed": 1}
            assert files_of(folder / "2.damaged") and not (folder / "2").exists(), (file, way)
            checkpoints.save(state_at(2), {"config": {"seed": 2}})
            checkpoints.close()
            same(Checkpoints(folder).restore(ABSTRACT), 2)
    assert opened_none < 4


@pytest.mark.parametrize(
    "old, new", [(b"item_handlers", b"iteo_handlers"), (b"custom_metadata", b"custom_\xffetadata")]
)
def test_metadata_that_keep_orbax_from_opening_any_checkpoint_are_named_and_set_aside(copy, old, new):
    path = copy / "2" / "_CHECKPOINT_METADATA"
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(CheckpointError, match=f"({copy}/2 is damaged: _CHECKPOINT|Damaged: {copy}/2; move)"):
        Checkpoints(copy).restore_params(ABSTRACT.params)
    same(Checkpoints(copy, clean=True).resume(ABSTRACT), 1)
    assert (copy / "2.damaged").exists()


def test_one_of_several_files_is_enough_and_sound_ones_are_read(saved):
    assert integrity.problems(saved / "2") == []
    parts = [integrity.problems(saved / "2", part, 3) for part in range(3)]
    assert parts == [[], [], []]


def test_processes_share_the_reading_and_together_read_all(copy):
    (data,) = (copy / "2" / "params" / "ocdbt.process_0" / "d").iterdir()
    damage(data, "a bit", random.Random(5))
    found = [integrity.problems(copy / "2", part, 3) for part in range(3)]
    assert sorted(map(len, found)) == [0, 0, 1]


def test_a_checkpoint_never_counts_as_complete_without_its_checksums(copy, monkeypatch):
    """They are written before Orbax commits; where they cannot be, there is no checkpoint."""
    seen = []
    write = integrity.write

    def watched(folder, told):
        write(folder, told)
        seen.append((folder.name, sorted(path.name for path in copy.iterdir())))

    monkeypatch.setattr(integrity, "write", watched)
    checkpoints = Checkpoints(copy)
    checkpoints.save(state_at(3), {"config": {}})
    checkpoints.wait()
    ((name, there),) = seen
    assert name in there and "3" not in there and (copy / "3" / integrity.FILE).exists()

    def full(folder, told):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(integrity, "write", full)
    with pytest.raises(CheckpointError, match=r"There is no room.*as they were: \[2, 3\]"):
        checkpoints.save(state_at(4), {"config": {}})
        checkpoints.wait()
    assert not (copy / "4").exists()


def test_metadata_that_orbax_writes_late_are_waited_for(copy, monkeypatch):
    """It has a thread of its own for them, which may be behind when all else is written."""
    path, told = copy / "2" / "_CHECKPOINT_METADATA", integrity.metadata(copy / "2", ())
    whole, early = path.read_text(), json.loads(path.read_text()) | {"custom_metadata": {}, "item_handlers": {}}
    for number, text in enumerate((json.dumps(early), "", whole[:100])):
        path.write_text(text)
        late = threading.Timer(0.1, path.write_text, (whole,))
        late.start()
        integrity.write(copy / "2", told)
        late.join()
        assert integrity.problems(copy / "2") == [], number
    monkeypatch.setattr(integrity, "_METADATA_SECONDS", 0.05)
    path.write_text(json.dumps(early))
    with pytest.raises(TimeoutError, match="_CHECKPOINT_METADATA was not written"):
        integrity.write(copy / "2", told)


def test_files_that_the_system_leaves_are_nobodys(copy):
    (copy / "2" / "params" / "d" / ".nfs0001").write_bytes(b"x")
    (copy / "2" / ".DS_Store").write_bytes(b"x")
    (copy / "2" / "calibration.json").write_text("{}")
    same(Checkpoints(copy).restore(ABSTRACT), 2)


def as_older_versions_wrote(folder, **changes):
    """Makes a checkpoint one without checksums, its metadata changed."""
    (folder / integrity.FILE).unlink()
    path = folder / "_CHECKPOINT_METADATA"
    told = json.loads(path.read_text())
    told["custom_metadata"] = {k: v for k, v in (told["custom_metadata"] | changes).items() if v is not None}
    path.write_text(json.dumps(told))


def test_checkpoints_from_before_checksums_are_read_with_one_warning(copy, caplog):
    as_older_versions_wrote(copy / "2", format_version=None)
    checkpoints = Checkpoints(copy)
    same(checkpoints.restore(ABSTRACT), 2)
    checkpoints.metadata(2)
    told = [record.getMessage() for record in caplog.records if "older than checksums" in record.getMessage()]
    assert len(told) == 1 and str(copy / "2") in told[0]


def test_a_newer_format_is_refused_by_version_and_left_where_it_is(copy):
    as_older_versions_wrote(copy / "2", format_version=7, versions={"mser_jax": "3.1"})
    for clean in (False, True):
        with pytest.raises(CheckpointMismatch, match=r"written by mser_jax 3\.1 in format 7; .*reads formats up to 1"):
            Checkpoints(copy, clean=clean).resume(ABSTRACT)
    assert (copy / "2" / "params").exists()
    integrity.write(copy / "2", integrity.metadata(copy / "2", ()))
    with pytest.raises(CheckpointMismatch, match=r"written by mser_jax 3\.1 in format 7"):
        Checkpoints(copy).metadata(2)


def test_a_format_with_checksums_is_nothing_without_them(copy):
    (copy / "2" / integrity.FILE).unlink()
    with pytest.raises(CheckpointError, match=r"2 is damaged: checksums.json is missing"):
        Checkpoints(copy).restore(ABSTRACT)
