"""One program at a time in a workdir: real processes on a disk, and a storage library that fails in its own way."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from processes import Launcher
from toy_stage import ToyStage, toy_config

from mser_jax import claims, evaluate, lease, stages, train
from mser_jax.parallel import preemption

HOLDER = """
import sys, time
from etils import epath
from mser_jax import lease
with lease.held(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"`."""
    line = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def run(monkeypatch):
    def go(workdir, stage=None, **sections):
        monkeypatch.setattr(stages, "make", lambda config, metadata=None: stage or ToyStage())
        train.run(toy_config(**sections), str(workdir))

    return go


def claim_of(workdir, program="train"):
    """The newest claim file below a workdir, and what it says."""
    path = max((workdir / "lease" / program).iterdir())
    return path, json.loads(path.read_text())


def test_a_second_run_is_refused_with_host_and_process_and_writes_nothing(holder, run, tmp_path):
    name = f"process {holder.pid} on {os.uname().nodename}, since 20"
    before = sorted((tmp_path / "run").rglob("*"))
    begin = time.monotonic()
    with pytest.raises(lease.LeaseError, match=f"run is in use by {name}.*take another --workdir") as refused:
        run(tmp_path / "run")
    assert time.monotonic() - begin < 5 and "\n" not in str(refused.value)
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_after_kill_9_its_successor_on_this_machine_has_the_workdir_at_once(holder, run, tmp_path):
    holder.kill()  # not waited for: a zombie is dead, too
    time.sleep(0.1)
    begin = time.monotonic()
    run(tmp_path / "run", train={"budget": "2 steps"})
    assert time.monotonic() - begin < claims.STALE_SECONDS / 4
    path, told = claim_of(tmp_path / "run")
    assert path.name == "claim-00001" and told["released"]


def test_a_process_of_another_machine_may_have_the_same_number(holder, tmp_path, monkeypatch, caplog):
    """Pods that are started again have the name and the process numbers of the ones before."""
    holder.kill()
    path, told = claim_of(tmp_path / "run")
    path.write_text(json.dumps(told | {"machine": "another boot", "pid": os.getpid(), "time": time.time() - 118}))
    with lease.held(tmp_path / "run"):
        pass
    assert "Waiting for its next sign of life; without one it is dead in 2 s" in caplog.text
    path, told = claim_of(tmp_path / "run")
    path.write_text(json.dumps(told | {"machine": "another boot", "released": False}))
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    beat = threading.Timer(0.3, lambda: path.write_text(path.read_text().replace(
        f'"time": {told["time"]}', f'"time": {time.time()}')))  # fmt: skip
    beat.start()
    with pytest.raises(lease.LeaseError, match="in use by process"), lease.held(tmp_path / "run"):
        pass
    beat.join()


def test_told_to_stop_while_it_waits_it_goes_at_once(holder, tmp_path):
    path, told = claim_of(tmp_path / "run")
    path.write_text(json.dumps(told | {"machine": "another boot"}))
    with pytest.raises(preemption.Preempted), lease.held(tmp_path / "run", stop=lambda: True):
        pass


def test_stopped_and_failed_runs_give_the_workdir_back(run, tmp_path):
    with pytest.raises(preemption.Preempted):
        run(tmp_path, ToyStage(on_batch=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None))
    assert claim_of(tmp_path)[1]["released"]
    with pytest.raises(FloatingPointError):
        run(tmp_path, ToyStage(poison=range(99)), train={"max_skipped": 2})
    path, told = claim_of(tmp_path)
    assert told["released"] and path.name == "claim-00001"


def test_a_run_that_was_taken_over_stops_with_one_line_and_writes_nothing_more(run, tmp_path):
    def taken_over(step):
        if step == 5:
            assert wait_until((tmp_path / "checkpoints" / "3").exists), "a save under way is finished"
            assert claims.take(tmp_path / "lease" / "train", force=True)
            there.append({path: path.stat().st_mtime_ns for path in (tmp_path).rglob("*") if path.is_file()})

    there = []
    with pytest.raises(lease.LeaseError, match=r"taken over by process .*writes nothing more") as lost:
        run(tmp_path, ToyStage(on_batch=taken_over), checkpointing={"every": "3 steps"})
    assert "\n" not in str(lost.value)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == there[0]


def test_all_processes_of_a_second_run_end_with_the_same_line(holder, launcher, tmp_path):
    ends = launcher.launch(tmp_path / "logs", [(toy_config(), tmp_path / "run")], count=2, devices=2, light=True)
    errors = {line for _, _, log in ends for line in log.splitlines() if line.startswith("error: ")}
    assert [code for code, _, _ in ends] == [1, 1] and len(errors) == 1
    assert f"is in use by process {holder.pid} on" in errors.pop()
    assert not any("Traceback" in log for _, _, log in ends)


def test_several_processes_that_lose_the_workdir_all_stop_without_a_checkpoint(launcher, tmp_path):
    stealing = threading.Thread(target=_steal_soon, args=(tmp_path / "run",))
    stealing.start()
    config = toy_config(train={"budget": "100000 steps"}, checkpointing={"every": "20 steps"})
    ends = launcher.launch(tmp_path / "logs", [(config, tmp_path / "run")], count=2, devices=2, pause=0.03)
    stealing.join()
    errors = {line for _, _, log in ends for line in log.splitlines() if line.startswith("error: ")}
    assert [code for code, _, _ in ends] == [1, 1], ends
    assert len(errors) == 1 and "was taken over" in errors.pop()


def _steal_soon(workdir):
    wait_until((workdir / "checkpoints" / "20").exists, 60)
    claims.take(workdir / "lease" / "train", force=True)


def test_the_runner_of_a_sweep_holds_its_row_and_the_run_in_it_the_workdir(run, tmp_path):
    claim = claims.take(tmp_path / "claims")
    with claims.held(claim):
        run(tmp_path, train={"budget": "2 steps"})
    assert (tmp_path / "finished.json").exists()


def test_evaluations_of_one_folder_keep_each_other_out_but_no_training(monkeypatch, tmp_path):
    class Found:
        class stage:
            prepare = staticmethod(lambda *args: None)
            evaluators = staticmethod(lambda mesh: ran.append(mesh) or ())

        run, params, step = tmp_path, {}, 3

    from mser_jax.parallel import mesh as mesh_lib

    ran, Found.mesh = [], mesh_lib.make_mesh()
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda *args: Found)
    config = toy_config()
    config.checkpoint, config.step = str(tmp_path), -1
    (tmp_path / "checkpoints").mkdir()
    with lease.held(tmp_path):
        evaluate.run(config, str(tmp_path))
    assert len(ran) == 1
    with lease.held(tmp_path / "evaluation", "evaluate"), pytest.raises(lease.LeaseError, match="evaluation is in use"):
        evaluate.run(config, "")
    assert len(ran) == 1


class HttpError(Exception):
    """As gcsfs raises it: no OSError."""


@pytest.fixture
def storage_fails(monkeypatch):
    """Set: nothing can be written, as on gs:// when it answers 503 for longer than gcsfs tries."""
    fails, replace = threading.Event(), claims.storage.replace

    def failing(path, content):
        if fails.is_set():
            raise HttpError("Service unavailable, 503")
        replace(path, content)

    monkeypatch.setattr(claims.storage, "replace", failing)
    return fails


def wait_until(holds, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_the_heartbeat_survives_any_error_of_the_storage_library(storage_fails, tmp_path):
    claim = claims.take(tmp_path)
    with claims.held(claim, every=0.02, stale_after=0.4) as lost:
        storage_fails.set()
        time.sleep(0.15)
        storage_fails.clear()
        since = claims.who(tmp_path).heard
        assert wait_until(lambda: claims.who(tmp_path).heard > since), "it beats again"
        assert not lost.is_set()
        storage_fails.set()
        assert wait_until(lost.is_set), "where none came through, another may have it"
        storage_fails.clear()
        assert wait_until(lambda: not lost.is_set())
        other = claims.take(tmp_path, force=True)
        assert wait_until(lambda: threading.Event.is_set(lost))
    assert claims.who(tmp_path).number == other.number and claims.who(tmp_path).alive, "what is lost is not given back"


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"{}", b"[3]", b'{"owner": "x"'])
def test_a_claim_that_cannot_be_read_is_as_old_as_its_file(tmp_path, content):
    folder = epath.Path(tmp_path)
    claims.take(folder)
    (path,) = folder.iterdir()
    path.write_bytes(content)
    assert claims.take(folder, at_once=True) is None
    os.utime(path, (0, time.time() - claims.STALE_SECONDS - 1))
    assert claims.take(folder).number == 1


def test_a_run_that_could_not_give_its_workdir_back_keeps_no_later_one_of_its_process_out(storage_fails, tmp_path):
    with lease.held(tmp_path):
        with pytest.raises(lease.LeaseError), lease.held(tmp_path):
            pass
        storage_fails.set()
    storage_fails.clear()
    assert claims.who(tmp_path / "lease" / "train").alive
    with lease.held(tmp_path):
        pass


def test_a_beat_that_hangs_is_none(monkeypatch, tmp_path):
    claim, go_on = claims.take(tmp_path), threading.Event()
    monkeypatch.setattr(claims.storage, "replace", lambda *args: go_on.wait(5))
    with claims.held(claim, every=0.02, stale_after=0.2) as lost:
        assert wait_until(lost.is_set)
        go_on.set()


def test_a_run_outlives_an_outage_of_storage_in_which_nobody_took_its_workdir(storage_fails, monkeypatch, tmp_path):
    monkeypatch.setattr(lease.claims.held.__wrapped__, "__defaults__", (0.02, 0.2))
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    with lease.held(tmp_path) as held:
        storage_fails.set()
        assert wait_until(held._event.is_set)
        assert not held.lost, "a step needs no storage"
        with pytest.raises(lease.LeaseError, match=r"no sign of life .*HttpError\('Service unavailable, 503'\)"):
            held.check()
        storage_fails.clear()
        held.check()
        assert not held._event.is_set()


def test_a_runner_beside_its_dead_owner_waits_for_the_run_that_outlives_it(tmp_path):
    """A sweep's runner that was killed leaves a run behind that saves: its claim ends when it is stale, no sooner."""
    code = f"from etils import epath; from mser_jax import claims; claims.take(epath.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(pathlib.Path.cwd())})
    assert claims.who(tmp_path).gone
    assert claims.take(tmp_path) is None
    assert claims.take(tmp_path, at_once=True)
    assert pathlib.Path(tmp_path, "claim-00001").exists()
