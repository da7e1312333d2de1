"""Runs of several processes over loopback, forked from one interpreter that has imported everything.

`Launcher()` starts this file as a program; `launch` runs one after the other in it. A launch is a dict:
  count      processes; devices: CPU devices of all of them together
  runs       [[config, workdir], …], one after the other in each process
  only       {process: {"section.key": value}}: what differs there
  signals    {process: [step, number]}: the signal that it sends itself when that step draws its batch (toy stage)
  fails      {process: the step whose batch it cannot read} (toy stage)
  pause      seconds before each step (toy stage)
  kill       ["start" or "batch", seconds]: all are killed so long after their start, or each after its first batch
  room       bytes that a file may have
  draw       only draws so many batches instead of training, and writes the rows of each that this process holds
  light      whether the step is plain numpy: nothing is compiled, a run is under way in half a second (toy stage)
  start      the processes that are started at all (default: all)
"""

import json
import logging as std_logging
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
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
        # The toy stage's compiles are short, and made dozens of times.
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def launch(self, folder, runs, count=1, devices=8, **options):
        """[(exit code, [[records decoded, batches drawn], …] of its runs, log)] of every process.

        A process that a signal ended has the exit code −signal.
        """
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
        since, seconds = message.get("kill", ("", 0))
        if since == "start":
            time.sleep(seconds)
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
    from mser_jax import main, stages, train
    from mser_jax.checkpoint import CheckpointError
    from mser_jax.parallel import distributed

    count = message["count"]
    for handler in std_logging.root.handlers:
        handler.addFilter(main._ours_or_important)
    if "room" in message:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (message["room"],) * 2)
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
    if message.get("light"):
        train.build = light_program
    if runs[0][0].stage == "toy":
        stages.make = lambda config, metadata=None: _toy(message, number, decoded)
    else:
        _note_records(decoded)
    try:
        with distributed.joined(runs[0][0], workdir=runs[0][1]):
            for config, workdir in runs:
                decoded.clear()
                batches = _draw(config, message["draw"]) if "draw" in message else train.run(config, workdir)
                print(json.dumps([sorted(decoded), batches]), file=records, flush=True)
    except (config_lib.ConfigError, CheckpointError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SystemExit as error:
        return error.code
    return 0


def _toy(message, number, decoded):
    from toy_stage import ToyStage

    step_of, signum = message.get("signals", {}).get(str(number), (-1, 0))
    since, seconds = message.get("kill", ("", 0))

    def on_batch(step):
        if since == "batch" and not decoded:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        decoded.append(step)
        if step == message.get("fails", {}).get(str(number)):
            raise RuntimeError("this batch cannot be read")
        time.sleep(message.get("pause", 0))
        if step == step_of:
            os.kill(os.getpid(), signum)

    return ToyStage(on_batch=on_batch)


def _draw(config, count):
    import jax
    import numpy as np

    from mser_jax import stages
    from mser_jax.parallel import mesh as mesh_lib

    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    with jax.set_mesh(mesh):
        batches = stages.make(config).batches(0, mesh)
        records = [next(batches)["record"] for _ in range(count)]
        batches.close()
    return [np.concatenate([np.asarray(s.data) for s in x.addressable_shards]).tolist() for x in records]


def light_program(config, mesh, stage=None):
    """A program for the real loop whose state and losses are a function of all batches so far."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mser_jax import stages, train
    from mser_jax.state import TrainState

    # What cannot be compressed takes the room that it seems to take.
    noise = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def init(given=None):
        w = jnp.zeros((256, 256))
        return TrainState(jnp.int32(0), {"w": w}, {}, {"momentum": w}, jax.random.key(0))

    def train_step(state, batch):
        x = np.asarray(batch["x"])
        momentum = np.float32(0.9) * np.asarray(state.optimizer["momentum"])
        momentum += np.float32(1e-3) * (x.T @ x).repeat(2, 0).repeat(2, 1) * noise
        w = np.asarray(state.trainable["w"]) - momentum
        made = TrainState(np.asarray(state.step) + 1, {"w": w}, {}, {"momentum": momentum}, state.rng)
        loss = np.float32(np.abs(w).mean())
        facts = {"loss": loss, "grad_norm": loss, "skipped": 0, "examples": len(x), "audio_seconds": 2.0 * len(x)}
        return jax.device_put(made, whole), facts

    shapes = jax.eval_shape(init)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes)
    steps = int(config.train.budget.split()[0])
    return train.Program(stage or stages.make(config), None, steps, init, abstract, train_step)


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
