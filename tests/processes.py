"""Runs of several processes over loopback, forked from one interpreter that has imported everything.

`Launcher()` starts this file as a program; `launch` runs one after the other in it. A launch is a dict:
  count      processes; devices: CPU devices of all of them together
  runs       [[config, workdir], …], one after the other in each process
  only       {process: {"section.key": value}}: what differs there
  signals    {process: [step, number]}: the signal that it sends itself when that step draws its batch (toy stage)
  pause      seconds before each step (toy stage)
  kill       seconds until all are killed
  start      the processes that are started at all (default: all)
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def losses(workdir):
    """{step: loss} of the run below `workdir`, the last of each step."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


class Launcher:
    """The interpreter that forks; close it."""

    def __init__(self):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def launch(self, folder, runs, count=1, devices=8, **options):
        """[(exit code, records decoded in each run, log)] of every process; a signal n is the exit code −n."""
        folder.mkdir(parents=True, exist_ok=True)
        runs = [[config.to_dict(), str(workdir)] for config, workdir in runs]
        message = {"folder": str(folder), "runs": runs, "count": count, "devices": devices, "port": free_port()}
        self._server.stdin.write(json.dumps(message | options) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        found = []
        for number, code in codes.items():
            records = (folder / f"records{number}").read_text().splitlines()
            found.append((code, [json.loads(line) for line in records], (folder / f"log{number}").read_text()))
        return found

    def close(self):
        self._server.stdin.close()
        self._server.wait(30)


def _serve():
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.INFO)
    import toy_stage  # noqa: F401

    from mser_jax import train  # noqa: F401
    from mser_jax.parallel import distributed  # noqa: F401
    from mser_jax.telemetry import metrics  # noqa: F401

    for line in sys.stdin:
        message = json.loads(line)
        children = {number: _fork(message, number) for number in message.get("start", range(message["count"]))}
        if "kill" in message:
            time.sleep(message["kill"])
            for child in children.values():
                os.kill(child, signal.SIGKILL)
        codes = {n: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for n, child in children.items()}
        print(json.dumps(codes), flush=True)


def _fork(message, number):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        folder = pathlib.Path(message["folder"])
        log = os.open(folder / f"log{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with (folder / f"records{number}").open("w") as records:
            code = _run(message, number, records)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not the parent's handlers of its end.
        os._exit(code)


def _run(message, number, records):
    from mser_jax import config as config_lib
    from mser_jax import stages, train
    from mser_jax.checkpoint import CheckpointError
    from mser_jax.parallel import distributed

    count = message["count"]
    # Numbers matter here, not speed.
    flags = f"--xla_force_host_platform_device_count={message['devices'] // count} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{flags} --xla_llvm_disable_expensive_passes=true"
    if count > 1:
        place = {"COORDINATOR": f"127.0.0.1:{message['port']}", "NUM_PROCESSES": str(count), "PROCESS_ID": str(number)}
        os.environ.update({f"MSER_{key}": value for key, value in place.items()})
    runs = [(config_lib.from_dict(config), workdir) for config, workdir in message["runs"]]
    for config, _ in runs:
        for key, value in message.get("only", {}).get(str(number), {}).items():
            section, _, last = key.rpartition(".")
            config[section][last] = value
    decoded = []
    if runs[0][0].stage == "toy":
        stages.make = lambda config, metadata=None: _toy(message, number, decoded)
    else:
        _note_records(decoded)
    try:
        with distributed.joined(runs[0][0], workdir=runs[0][1]):
            for config, workdir in runs:
                decoded.clear()
                train.run(config, workdir)
                print(json.dumps(sorted(decoded)), file=records, flush=True)
    except (config_lib.ConfigError, CheckpointError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SystemExit as error:
        return error.code
    return 0


def _toy(message, number, decoded):
    from toy_stage import ToyStage

    step_of, signum = message.get("signals", {}).get(str(number), (-1, 0))

    def on_batch(step):
        decoded.append(step)
        time.sleep(message.get("pause", 0))
        if step == step_of:
            os.kill(os.getpid(), signum)

    return ToyStage(on_batch=on_batch)


def _note_records(decoded):
    """From now on `decoded` gets the row of every record whose audio is read. Nothing is evaluated."""
    from mser_jax.data.sources import RecordSource
    from mser_jax.stages.alignment import Alignment
    from mser_jax.stages.finetuning import Finetuning

    read = RecordSource.audio
    RecordSource.audio = lambda self, row: decoded.append(int(row)) or read(self, row)
    Alignment.evaluators = Finetuning.evaluators = lambda self, mesh: []


if __name__ == "__main__":
    _serve()
