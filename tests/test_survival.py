"""What a run survives: kill -9 at any moment, damaged checkpoints, a full disk, a step that never comes."""

import errno
import logging
import random
import re
import shutil
import signal

import jax
import pytest
from processes import Launcher, light_program, losses
from toy_stage import ToyStage, toy_config

from mser_jax import main, stages, train
from mser_jax.checkpoint import CheckpointError, Checkpoints
from mser_jax.parallel import mesh as mesh_lib

EVERY = 2


@pytest.fixture(scope="module")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.close()


def config(**sections):
    usual = {"train": {"budget": "100000 steps"}, "checkpointing": {"every": f"{EVERY} steps"}}
    return toy_config(telemetry={"log_every": 1}, **usual | sections)


def resumed(log):
    """The step that a run went on from."""
    found = re.search(r"Resuming at step (\d+) of", log)
    return int(found[1]) if found else 0


def test_kill_9_at_any_moment_loses_at_most_the_steps_since_the_last_checkpoint(launcher, tmp_path):
    rng, run = random.Random(3), tmp_path / "run"
    moments = [["start", rng.uniform(0.1, 0.8)] if n % 5 == 4 else ["batch", rng.uniform(0, 0.8)] for n in range(30)]
    at_least, complete, during_a_save, begun = 0, 0, 0, []
    for number, moment in enumerate(moments):
        ((code, _, log),) = launcher.launch(
            tmp_path / f"kill{number}", [(config(), run)], devices=1, light=True, kill=moment
        )
        assert code == -signal.SIGKILL, log[-3000:]
        assert "DAMAGED" not in log and "Traceback" not in log
        if "Resuming" in log:
            assert resumed(log) == complete >= at_least
        begun.append(resumed(log))
        names = [path.name for path in (run / "checkpoints").glob("*")]
        complete = max((int(name) for name in names if name.isdigit()), default=0)
        during_a_save += any("tmp" in name for name in names)
        done = max(losses(run), default=0) if (run / "metrics.jsonl").exists() else 0
        # Of the last save that has begun nothing may be there; the one before was complete by then.
        at_least = max(at_least, ((done - 1) // EVERY - 1) * EVERY)
    assert during_a_save and begun[-1] > 0, (during_a_save, begun)
    last = [(config(), run)]
    stop = {"0": [max(begun) + 40, signal.SIGTERM]}
    ((code, _, log),) = launcher.launch(tmp_path / "last", last, devices=1, light=True, signals=stop)
    assert code == 75 and resumed(log) == complete >= at_least
    ((code, _, log),) = launcher.launch(
        tmp_path / "whole", [(config(), tmp_path / "uninterrupted")], devices=1, light=True, signals=stop
    )
    assert losses(run) == losses(tmp_path / "uninterrupted"), "same batches, same state, to the last bit"


class LightStage(ToyStage):
    def evaluators(self, mesh):
        return []


@pytest.fixture
def run(monkeypatch):
    """run(workdir, **sections): the loop in this process, its step in numpy."""

    def go(workdir, **sections):
        monkeypatch.setattr(stages, "make", lambda config, metadata=None: LightStage())
        monkeypatch.setattr(train, "build", light_program)
        train.run(config(**sections), str(workdir))

    return go


def damage(file, way):
    if way == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("way", ["truncated", "removed"])
def test_a_damaged_newest_checkpoint_falls_back_loudly_and_is_saved_again(run, tmp_path, caplog, way):
    twelve = {"train": {"budget": "12 steps"}, "checkpointing": {"every": "4 steps"}}
    run(tmp_path, **twelve)
    before = losses(tmp_path)
    for data in (tmp_path / "checkpoints" / "12" / "params" / "d").iterdir():
        damage(data, way)
    with caplog.at_level(logging.INFO, "absl"):
        run(tmp_path, **twelve)
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any("DAMAGED CHECKPOINT" in text and "12 is damaged" in text for text in told)
    assert any("LOST STEPS" in text and "step 12 is no longer one" in text for text in told)
    assert f"It is kept as {tmp_path / 'checkpoints' / '12.damaged'}." in told
    assert "Resuming at step 8 of 12" in caplog.text
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "12.damaged", "8"]
    assert losses(tmp_path) == before
    with pytest.raises(CheckpointError, match=r"12 is damaged.*Other checkpoints there: \[8\]"):
        shutil.rmtree(tmp_path / "checkpoints" / "12")
        shutil.copytree(tmp_path / "checkpoints" / "12.damaged", tmp_path / "checkpoints" / "12")
        Checkpoints(tmp_path / "checkpoints").restore(abstract_of_light(), step=12)


def abstract_of_light():
    return light_program(config(), mesh_lib.make_mesh(devices=jax.devices()[:1]), ToyStage()).abstract


def test_where_no_checkpoint_can_be_read_all_are_left_as_they_are(run, tmp_path):
    run(tmp_path, train={"budget": "4 steps"})
    for data in (tmp_path / "checkpoints").glob("*/params/d/*"):
        data.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"No checkpoint can be read:\n(.|\n)*/4 is damaged(.|\n)*/2 is damaged"):
        run(tmp_path, train={"budget": "8 steps"})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def test_no_room_is_a_clear_error_and_the_run_goes_on_where_there_is(launcher, tmp_path):
    run = [(config(), tmp_path / "run")]
    stop = {"0": [5, signal.SIGTERM]}
    ((code, *_),) = launcher.launch(tmp_path / "first", run, devices=1, light=True, signals=stop)
    assert code == 75
    kept = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    ((code, _, log),) = launcher.launch(tmp_path / "full", run, devices=1, light=True, room=200_000)
    assert code == 1
    (error,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert re.search(r"Saving below .* failed.*There is no room.*as they were: \[4, 6\]", error)
    assert log.splitlines()[-1] == error and "Traceback" not in log, "Orbax's threads have their say no more"
    assert {path: path.read_bytes() for path in kept} == kept
    stop = {"0": [9, signal.SIGTERM]}
    ((code, _, log),) = launcher.launch(tmp_path / "room", run, devices=1, light=True, signals=stop)
    assert code == 75 and resumed(log) == 6
    assert sorted(losses(tmp_path / "run")) == list(range(1, 11))


def test_a_step_that_does_not_come_prints_all_stacks_and_ends_the_process(launcher, tmp_path):
    stalls = config()
    stalls.telemetry.update({"stall_seconds": 0.5, "stall_exit": True})
    ((code, _, log),) = launcher.launch(tmp_path, [(stalls, tmp_path / "run")], devices=1, light=True, pause=3600)
    assert code == 75
    assert "No progress for 0 s (telemetry.stall_seconds); last: started." in log
    assert "in on_batch" in log and "Thread 0x" in log


def test_a_full_disk_that_is_met_elsewhere_is_one_line_too():
    full = OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl")
    assert "metrics.jsonl'. Free some room: the same command then goes on" in main._no_room(full, "run")
    assert main._no_room(OSError(errno.ENOSPC, "No space left on device"), "runs/x").startswith("runs/x: ")
    assert not any(main._no_room(error, "") for error in (OSError(errno.EACCES, "Permission denied"), ValueError()))
