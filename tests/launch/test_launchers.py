"""launch/*: clean shell, parsed YAML, and what they ask of gcloud, srun, sbatch and kubectl."""

import pathlib
import shlex
import signal
import string
import subprocess
import sys
import time

import fake_commands
import pytest
import sweeps
import yaml

from mser_jax.parallel import distributed, preemption

LAUNCH = sweeps.ROOT / "launch"
TRAIN = ["--config=configs/stage1.py", "--workdir=gs://bucket/run", "--config.train.budget=3 steps"]


@pytest.fixture
def commands(tmp_path):
    return fake_commands.Commands(tmp_path)


@pytest.mark.parametrize("path", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=lambda p: p.name)
def test_shellcheck_has_nothing_to_say(path):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("code", [0, 75, 1])
def test_slurm_runs_the_line_on_every_node_and_is_queued_again_when_preempted(commands, code):
    commands.add("srun", f"sys.exit({code})")
    commands.add("scontrol")
    environ = commands.environ(SLURM_SUBMIT_DIR=str(sweeps.ROOT), SLURM_JOB_ID="17")
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", *TRAIN], env=environ, check=False)
    assert done.returncode == code
    (srun,) = commands.calls("srun")
    assert srun[-len(TRAIN) - 3 :] == [".venv/bin/python", "-m", "mser_jax.main", *TRAIN]
    assert "--kill-on-bad-exit=1" in srun and "--ntasks-per-node=1" in srun
    again = [["scontrol", "requeue", "17"]]
    assert commands.calls("scontrol") == (again if code == preemption.EXIT_CODE else [])


def test_sweep_submits_a_row_to_slurm_once(commands, tmp_path):
    path, workdir = sweeps.write(tmp_path, [1, 2]), tmp_path / "runs"
    commands.add("sbatch", "print(len(open(sys.argv[0]).read()))")
    how = ("--launcher=slurm", "--submit=sbatch --partition=gpu --nodes=2")
    runners = [sweeps.start(path, workdir, *how, env=commands.environ()) for _ in range(2)]
    said = [runner.communicate(timeout=60)[1] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], said
    calls = sorted(commands.calls("sbatch"))
    assert len(calls) == 2, "two rows, whoever submits them"
    assert calls[0][1:4] == ["--partition=gpu", "--nodes=2", "--parsable"] and "--job-name=row-1" in calls[0]
    assert calls[0][-4:] == [str(LAUNCH / "slurm.sbatch"), "--config=configs/stage1.py",
                             f"--workdir={workdir}/row/1", "--config.seed=1"]  # fmt: skip
    # A job's claim does not go stale, and local runners leave it alone.
    code, _, err = sweeps.run(path, workdir, *how, "--only=1", env=commands.environ())
    assert code == 0 and "row/1: submitted: slurm" in err and len(commands.calls("sbatch")) == 2
    sweeps.run(path, workdir, *how, "--only=1", "--resubmit", env=commands.environ())
    assert len(commands.calls("sbatch")) == 3
    commands.add("sbatch", "sys.exit('no such partition')")
    code, _, err = sweeps.run(path, tmp_path / "others", *how, "--only=1", env=commands.environ())
    assert code == 1 and "row/1: FAILED, no such partition" in err


GKE = {
    "IMAGE": "registry/mser_jax:1", "SERVICE_ACCOUNT": "runs", "HOSTS": "4", "CHIPS": "8", "SLICES": "2",
    "PROCESSES": "8", "RESOURCE": "nvidia.com/gpu",
    "SELECTOR": '{"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}',
}  # fmt: skip


def test_gke_gets_a_jobset_whose_pods_know_their_place(commands, tmp_path):
    commands.add("kubectl", f"open({str(tmp_path / 'given.yaml')!r}, 'w').write(sys.stdin.read()); print('made')")
    path = sweeps.write(tmp_path, [1])
    code, _, err = sweeps.run(path, tmp_path / "runs", "--launcher=gke", env=commands.environ())
    assert code == 1 and "launch/gke.yaml needs 'SLICES' in the environment" in err and not commands.calls()
    code, _, err = sweeps.run(path, tmp_path / "runs", "--launcher=gke", env=commands.environ(**GKE))
    assert code == 0, err
    assert commands.calls() == [["kubectl", "create", "-f", "-"]]
    given = yaml.safe_load((tmp_path / "given.yaml").read_text())
    (group,) = given["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (given["kind"], given["metadata"]["name"], group["replicas"]) == ("JobSet", "row-1", 2)
    assert (job["parallelism"], job["completions"], pod["restartPolicy"]) == (4, 4, "Never")
    assert container["command"] == ["python", "-m", "mser_jax.main"]
    assert container["args"] == ["--config=configs/stage1.py", f"--workdir={tmp_path}/runs/row/1", "--config.seed=1"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    exits = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert exits == [[preemption.EXIT_CODE]]
    assert given["spec"]["failurePolicy"]["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    # What the pod of host 3 of slice 1 is told makes it process 7 of 8.
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    told |= {
        "JOBSET_NAME": "row-1",
        "REPLICATED_JOB_NAME": group["name"],
        "JOB_INDEX": "1",
        "JOB_COMPLETION_INDEX": "3",
    }
    cluster = distributed.detect(told, 8476, has_tpu=False)
    assert (cluster.process_id, cluster.num_processes) == (7, 8)
    assert cluster.coordinator == "row-1-train-0-0.row-1:8476"


def test_gke_yaml_is_yaml_before_it_is_filled_in():
    text = (LAUNCH / "gke.yaml").read_text()
    assert yaml.safe_load(text)["spec"]["replicatedJobs"][0]["replicas"] == "${SLICES}"
    assert set(string.Template(text).get_identifiers()) == {*GKE, "NAME", "ARGUMENTS"}


GCLOUD = """
import pathlib, time
state, plan = pathlib.Path({folder!r}, "state"), pathlib.Path({folder!r}, "plan")
words = sys.argv[3:]
if "describe" in words:
    if not state.exists():
        sys.exit("NOT_FOUND")
    print(state.read_text())
elif "create" in words:
    state.write_text("ACTIVE")
elif "delete" in words:
    state.unlink()
elif "ssh" in words and "mser_jax exit" in words[-3]:
    first, _, rest = plan.read_text().partition("\\n")
    plan.write_text(rest)
    if first == "vanish":
        state.write_text("SUSPENDED")
        sys.exit(255)
    if first == "wait":
        stopped = pathlib.Path({folder!r}, "stopped")
        while not stopped.exists():
            time.sleep(0.1)
        first = "75"
    print("worker 0: mser_jax exit", 75 if first == "75" else 0)
    print("worker 1: mser_jax exit", first, flush=True)
    sys.exit(1 if int(first) else 0)
elif "ssh" in words and "pkill" in words[-3] and "pgrep" not in words[-3]:
    pathlib.Path({folder!r}, "stopped").touch()
"""


def tpu_vm(commands, tmp_path, plan, *options):
    (tmp_path / "plan").write_text("\n".join(plan))
    commands.add("gcloud", GCLOUD.format(folder=str(tmp_path)))
    line = ["bash", LAUNCH / "tpu_vm.sh", "pod1", "v5litepod-64", "us-west4-a", *options, "--", *TRAIN]
    environ = commands.environ(MSER_POLL_SECONDS="0.1", MSER_CACHE_DIR="/dev/shm/cache dir")
    return subprocess.Popen(line, env=environ, stdout=-1, stderr=-1, text=True)


def words(call):
    return " ".join(call[3:])


def test_tpu_vm_starts_over_after_preemptions_until_the_run_is_done(commands, tmp_path):
    process = tpu_vm(commands, tmp_path, ["75", "vanish", "0"], "--spot", "--version=v2-alpha-tpuv5-lite")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    calls = [call for call in commands.calls() if "describe" not in call]
    assert all("--zone=us-west4-a" in call and "--quiet" in call for call in calls)
    made = [call for call in calls if "create" in call]
    assert len(made) == 2, "once, and once more after the slice was gone"
    assert words(made[0]).startswith(
        "queued-resources create pod1 --node-id=pod1 --accelerator-type=v5litepod-64 --runtime"
    )
    assert "--spot" in made[0] and "--runtime-version=v2-alpha-tpuv5-lite" in made[0]
    runs = [call for call in calls if "ssh" in call and "mser_jax exit" in words(call)]
    assert len(runs) == 3 and all("--worker=all" in call for call in runs)
    (command,) = {next(word for word in call if word.startswith("--command=")) for call in runs}
    assert "MSER_CACHE_DIR=/dev/shm/cache\\ dir .venv/bin/python -m mser_jax.main" in command
    arguments = command.partition("-m mser_jax.main ")[2].partition(" || ")[0]
    assert shlex.split(arguments) == TRAIN
    installs = [call for call in calls if "tools/install.sh tpu" in words(call)]
    assert len(installs) == 3 and calls[-1][4:7] == ["delete", "pod1", "--force"]


def test_tpu_vm_ends_with_the_code_of_a_run_that_failed(commands, tmp_path):
    process = tpu_vm(commands, tmp_path, ["1"], "--keep")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert not [call for call in commands.calls() if "delete" in call]


def test_tpu_vm_stopped_lets_the_run_save(commands, tmp_path):
    process = tpu_vm(commands, tmp_path, ["wait"])
    deadline = time.monotonic() + 60
    while (tmp_path / "plan").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "it saves first" in err
    assert any("pkill -TERM" in words(call) and "pgrep" not in words(call) for call in commands.calls())


def test_tpu_vm_refuses_what_cannot_survive(commands, tmp_path):
    line = [
        "bash",
        LAUNCH / "tpu_vm.sh",
        "pod1",
        "v5p-8",
        "zone",
        "--",
        "--config=configs/stage1.py",
        "--workdir=/tmp/run",
    ]
    done = subprocess.run(line, env=commands.environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--workdir=gs://… is missing" in done.stderr
    done = subprocess.run(line[:4], env=commands.environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Usage: launch/tpu_vm.sh NAME TYPE ZONE" in done.stderr


def test_lolo_is_a_sweep_and_a_table(tmp_path):
    speech, runs = tmp_path / "speech", tmp_path / "runs"
    speech.mkdir()
    arguments = ["stage=2", "variant=real,cache=auto", "languages=de,zh", "seeds=0,1", f"init={tmp_path}/one"]
    line = ["bash", LAUNCH / "lolo.sh", speech, runs, *arguments, "--config.train.batch_size=8", "--launcher=print"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(text) for text in done.stdout.splitlines() if "-m mser_jax.main" in text]
    assert [line[3:] for line in lines] == [
        [f"--config=configs/stage2.py:real,cache=auto,lolo={language}", f"--workdir={runs}/{language}/seed_{seed}",
         f"--config.seed={seed}", f"--config.data.corpora=speech_folder:{speech}",
         f"--config.init_from={tmp_path}/one/{language}/seed_{seed}", "--config.train.batch_size=8"]
        for seed in (0, 1) for language in ("de", "zh")
    ]  # fmt: skip
    assert "UA, leave one language out" not in done.stdout, "there is nothing to show yet"
    there = runs / "de" / "seed_0"
    there.mkdir(parents=True)
    shown = subprocess.run(
        [sys.executable, LAUNCH.parent / "tools" / "lolo_table.py", runs], capture_output=True, text=True
    )
    assert "UA, leave one language out" in shown.stdout
    wrong = subprocess.run([*line[:4], "lang=de"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "lang=de: expected stage=1|2, variant=" in wrong.stderr
