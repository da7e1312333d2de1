"""Real processes over loopback, on the toy stage: same losses, one stop, refusals, a death, another number of them."""

import os
import signal

import pytest
from processes import Launcher, losses
from toy_stage import toy_config

from mser_jax import config as config_lib
from mser_jax.checkpoint import Checkpoints
from mser_jax.parallel import distributed
from mser_jax.parallel.distributed import Cluster, detect


@pytest.fixture(scope="module")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.close()


def config(**sections):
    return toy_config(telemetry={"log_every": 1}, mesh={"data": 2, "fsdp": 4}, **sections)


@pytest.fixture(scope="module")
def alone(launcher, tmp_path_factory):
    """{step: loss} of twelve steps of one process."""
    folder = tmp_path_factory.mktemp("alone")
    ((code, _, log),) = launcher.launch(folder, [(config(), folder / "run")])
    assert code == 0, log[-3000:]
    return losses(folder / "run")


def test_two_processes_train_as_one_and_say_who_they_are(launcher, alone, tmp_path):
    found = launcher.launch(tmp_path, [(config(), tmp_path / "run")], count=2)
    assert [code for code, *_ in found] == [0, 0], found
    assert losses(tmp_path / "run") == pytest.approx(alone, abs=1e-5)
    log = found[0][2]
    rows = [line.split() for line in log[log.index("process  host") :].splitlines()[1:3]]
    assert [row[0] for row in rows] == ["0", "1"]
    assert all(row[2:5] == ["4", "×", "cpu"] and row[5] == distributed.code_hash() for row in rows)
    # Twice as many find its last checkpoint damaged, and agree on the one before.
    for data in (tmp_path / "run" / "checkpoints" / "12" / "params" / "d").iterdir():
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    again = launcher.launch(tmp_path / "again", [(config(), tmp_path / "run")], count=4)
    for code, ((drawn, _),), log in again:
        assert code == 0 and drawn == [8, 9, 10, 11] and "DAMAGED CHECKPOINT" in log and "LOST STEPS" in log
    assert losses(tmp_path / "run") == pytest.approx(alone, abs=1e-5)


def test_a_death_ends_the_others_and_another_number_of_processes_goes_on(launcher, alone, tmp_path):
    limits = {"heartbeat_timeout": 10}
    # Batches are drawn before the step before is known to be done: the checkpoint of step 4 is older than its death.
    died = launcher.launch(
        tmp_path / "died", [(config(distributed=limits), tmp_path / "run")], count=4, pause=0.2,
        signals={3: [10, signal.SIGKILL]},
    )  # fmt: skip
    assert died[3][0] == -signal.SIGKILL
    assert all(code not in (0, 75) for code, *_ in died[:3])
    assert any("heartbeat timeout" in log or "another task died" in log for _, _, log in died[:3])
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest in (4, 8)
    again = launcher.launch(tmp_path / "again", [(config(), tmp_path / "run")], count=2)
    assert [code for code, *_ in again] == [0, 0], again[0][2][-3000:]
    assert "Resuming at step" in again[0][2]
    assert losses(tmp_path / "run") == pytest.approx(alone, abs=1e-5)


def test_an_error_of_one_process_ends_all(launcher, tmp_path):
    limits = {"heartbeat_timeout": 10}
    found = launcher.launch(tmp_path, [(config(distributed=limits), tmp_path / "run")], count=2, fails={1: 6})
    assert found[1][0] == 1 and "Process 1 ends alone: RuntimeError: this batch cannot be read" in found[1][2]
    assert found[0][0] not in (0, 75)
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest == 4


def test_one_process_is_told_to_stop_and_all_save_the_same_step(launcher, tmp_path):
    long = config(train={"budget": "2000 steps"}, checkpointing={"every": ""})
    run = [(long, tmp_path / "run")]
    found = launcher.launch(tmp_path / "stopped", run, count=2, pause=0.05, signals={1: [3, signal.SIGTERM]})
    assert [code for code, *_ in found] == [75, 75], found[0][2][-3000:]
    step = Checkpoints(tmp_path / "run" / "checkpoints").latest
    for _, _, log in found:
        assert f"all save after step {step - 1}" in log
    assert sorted(losses(tmp_path / "run")) == list(range(1, step + 1))


def test_a_host_with_another_config_is_named_and_nothing_starts(launcher, tmp_path):
    found = launcher.launch(
        tmp_path, [(config(), tmp_path / "run")], count=4, only={"2": {"optim.learning_rate": 0.5, "mesh.mode": "auto"}}
    )
    host = os.uname().nodename
    for code, _, log in found:
        assert code == 1
        assert f"config.optim.learning_rate: 0.5 on process 2 ({host}); 0.001 on 3 of 4" in log
        assert f"config.mesh.mode: 'auto' on process 2 ({host}); 'explicit' on 3 of 4" in log
        assert "Traceback" not in log
    assert not (tmp_path / "run").exists()


def test_a_host_that_does_not_come_ends_the_wait_with_what_to_look_at(launcher, tmp_path):
    brief = [(config(distributed={"initialization_timeout": 2}), tmp_path / "run")]
    ((code, _, log),) = launcher.launch(tmp_path, brief, count=2, start=[1])
    assert code not in (0, 75)
    assert "Process 1 of 2" in log and "did not meet the others" in log and "--config.distributed.port" in log


def test_differences_name_the_odd_ones_out():
    code = [{"code": "a", "jax": "1"}, {"code": "b", "jax": "1"}, {"code": "b", "jax": "1"}, {"code": "b"}]
    assert distributed.differences(code, ["h0", "h1", "h2", "h3"]) == [
        "code: a on process 0 (h0); b on 3 of 4",
        "jax: nothing on process 3 (h3); 1 on 3 of 4",
    ]
    assert distributed.differences(code[1:3], ["h1", "h2"]) == []
    many = distributed.differences([{"x": str(n)} for n in range(12)], list("abcdefghijkl"))
    assert many[0].startswith("x: 1 on process 1 (b), ") and "and 3 more; 0 on 1 of 12" in many[0]


def test_code_hash_changes_with_any_source_file(tmp_path, monkeypatch):
    package = tmp_path / "mser_jax" / "parallel"
    package.mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(distributed, "__file__", str(package / "distributed.py"))
    before = distributed.code_hash()
    (package / "a.py").write_text("x = 2\n")
    assert distributed.code_hash() != before


SLURM = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
JOBSET = {
    "JOBSET_NAME": "run", "REPLICATED_JOB_NAME": "slice", "JOB_INDEX": "1", "JOB_COMPLETION_INDEX": "3",
    "PROCESSES_IN_JOB": "4", "JAX_PROCESS_COUNT": "8",
}  # fmt: skip
EXPLICIT = {"MSER_COORDINATOR": "h0", "MSER_NUM_PROCESSES": "2", "MSER_PROCESS_ID": "1"}


@pytest.mark.parametrize(
    ("environ", "has_tpu", "expected"),
    [
        ({}, False, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, None),
        ({}, True, Cluster("tpu")),
        ({**SLURM, **JOBSET}, True, Cluster("tpu")),
        (EXPLICIT, True, Cluster("explicit", "h0:9", 2, 1)),
        ({**EXPLICIT, "MSER_COORDINATOR": "h0:77"}, False, Cluster("explicit", "h0:77", 2, 1)),
        (
            {**SLURM, "SLURM_STEP_NODELIST": "n[007-014]", "SLURM_STEP_TASKS_PER_NODE": "1(x8)"},
            False,
            Cluster("slurm", "n007:9", 8, 5),
        ),
        (
            {**SLURM, "SLURM_STEP_NODELIST": "a-1,b-[2,3]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            False,
            Cluster("slurm", "a-1:9", 8, 5, (1,)),
        ),
        (JOBSET, False, Cluster("jobset", "run-slice-0-0.run:9", 8, 7)),
    ],
)
def test_start_ups_are_told_apart(environ, has_tpu, expected):
    assert detect(environ, 9, has_tpu=has_tpu) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"MSER_COORDINATOR": "h0"}, "MSER_NUM_PROCESSES, MSER_PROCESS_ID not set"),
        ({**EXPLICIT, "MSER_PROCESS_ID": "2"}, "process 2 of 2; they count from 0"),
        ({**EXPLICIT, "MSER_NUM_PROCESSES": "two"}, "MSER_NUM_PROCESSES='two': expected a number"),
        ({**JOBSET, "JAX_PROCESS_COUNT": ""}, "A JobSet: JAX_PROCESS_COUNT not set"),
        (SLURM, r"with srun\): SLURM_STEP_NODELIST, SLURM_STEP_TASKS_PER_NODE not set"),
    ],
)
def test_half_a_place_is_refused(environ, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        detect(environ, 9, has_tpu=False)
