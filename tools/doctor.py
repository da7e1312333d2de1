"""Is this machine, or this pod, fit to run? Each line says OK, WARN or FAIL, and what to do; exit code 1 with a FAIL.

    python tools/doctor.py [--config=configs/stage1.py[:variant]] [--workdir=DIR] [--config.section.key=value …]

It looks at versions, devices, the room and permissions of the workdir and of every data path (also gs://), times an
all-reduce over all devices and the reading of training data. On several hosts, start it on all of them as a run is
started: the hosts are then held against each other first. Nothing is left behind.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags
from etils import epath
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from packaging.requirements import Requirement

from mser_jax import config as config_lib
from mser_jax import stages, storage
from mser_jax.parallel import distributed
from mser_jax.parallel import mesh as mesh_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]

# (OK | WARN | FAIL, what was found and what to do)
Finding = tuple[str, str]
MIN_FREE_BYTES = 20 * 2**30


def versions() -> Iterator[Finding]:
    """Python and every package that setup.py asks for."""
    yield ("OK" if sys.version_info >= (3, 11) else "FAIL"), f"Python {sys.version.split()[0]} (3.11 or newer)"
    wrong = []
    for text in importlib.metadata.requires("mser_jax") or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing, {wanted.specifier or 'any version'} is needed")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found}, {wanted.specifier} is needed")
    main = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributed.PACKAGES)
    if wrong:
        yield "FAIL", f"{'; '.join(wrong)}. Do: pip install -e ."
    else:
        yield "OK", main


def devices() -> Iterator[Finding]:
    """What jax sees, and whether it overlooks an accelerator."""
    found = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in found}))
    yield "OK", f"{len(found)} × {kinds} on {jax.process_count()} process(es), {len(jax.local_devices())} of them here"
    if found[0].platform == "cpu":
        if os.environ.get("JAX_PLATFORMS") == "cpu":
            yield "WARN", "JAX_PLATFORMS=cpu keeps jax on the CPU. Do: unset it to use an accelerator"
        elif distributed.has_tpu():
            yield (
                "FAIL",
                "TPU chips, but jax runs on the CPU. Do: end what holds them; pip install -e '.[tpu]'",
            )
        elif shutil.which("nvidia-smi"):
            yield "FAIL", "NVIDIA's driver, but jax runs on the CPU. Do: pip install -e '.[gpu]'; see nvidia-smi"
        else:
            yield "WARN", "No accelerator: fit for the small configs (launch/local.sh) only"


def place(name: str, path: str) -> Iterator[Finding]:
    """Room and permissions at `path`, local or gs://, by writing, reading, listing and deleting a small file."""
    folder = storage.absolute(path)
    made = [p for p in (folder, *folder.parents) if not storage.is_remote(path) and not p.exists()]
    try:
        if made:
            folder.mkdir(parents=True)
        begin = time.monotonic()
        storage.check(folder)
        yield "OK", f"{name} {path}: written, read, listed, deleted in {time.monotonic() - begin:.2f} s"
        if not storage.is_remote(path):
            free = shutil.disk_usage(path).free
            state = "OK" if free >= MIN_FREE_BYTES else "WARN"
            advice = "" if state == "OK" else ": a checkpoint of a large model needs more. Do: free some"
            yield state, f"{name} {path}: {free / 2**30:.0f} GiB are free{advice}"
    except Exception as error:
        advice = storage.explain(error) or "Do: check owner and mode of the folder, or name another one"
        # Prepared data are only read.
        state = "WARN" if name.startswith("data") and _readable(folder) else "FAIL"
        yield state, f"{name} {path}: {type(error).__name__}: {error}. {advice}"
    finally:
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def _readable(folder: epath.Path) -> bool:
    try:
        return any(True for _ in folder.iterdir())
    except Exception:
        return False


def all_reduce(num_bytes: int = 64 * 2**20, repeats: int = 5) -> Iterator[Finding]:
    """The sum over all devices of `num_bytes` of each: is it right, and how fast?"""
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("all",), axis_types=(AxisType.Auto,))
    rows = num_bytes // 4
    where = NamedSharding(mesh, P("all"))
    make = jax.jit(lambda: jnp.repeat(jnp.arange(1.0, count + 1)[:, None], rows, 1), out_shardings=where)
    total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P("all")))
    x = jax.block_until_ready(make())
    summed = jax.block_until_ready(total(x))
    right = all(bool((shard.data == count * (count + 1) / 2).all()) for shard in summed.addressable_shards)
    begin = time.monotonic()
    for _ in range(repeats):
        summed = total(x)
    jax.block_until_ready(summed)
    seconds = (time.monotonic() - begin) / repeats
    if not right:
        yield "FAIL", f"all-reduce over {count} devices gave a wrong sum. Do: report the host; do not train on it"
        return
    # What a ring moves through each device's links.
    rate = 2 * (count - 1) / count * num_bytes / seconds / 1e9
    speed = f"{rate:.2f} GB/s through each" if count > 1 else "one device sends nothing"
    yield "OK", f"all-reduce of {num_bytes / 2**20:g} MiB over {count} device(s): {seconds * 1e3:.1f} ms, {speed}"


def reading(config: ConfigDict, seconds: float) -> Iterator[Finding]:
    """Training batches of the config, for so many seconds; nothing is trained."""
    corpora = config.data.corpora
    try:
        mesh = mesh_lib.make_mesh(devices=jax.devices())
        stage = stages.make(config)
        size = stage.data_size()
        config_lib.steps(config.train.budget, config.train.batch_size, size)
        with jax.set_mesh(mesh):
            batches = stage.batches(0, mesh)
            first = next(batches)
            begin, rows, bad = time.monotonic(), 0, 0
            while time.monotonic() - begin < seconds:
                batch = next(batches)
                rows += batch["valid"].size
                bad += int(batch["valid"].size - batch["valid"].sum())
            rate = rows / (time.monotonic() - begin)
            batches.close()
    except Exception as error:
        advice = storage.explain(error) or "Do: prepare it with tools/prepare_corpus.py, or name --config.data.data_dir"
        yield "FAIL", f"data {corpora or '(none named)'}: {type(error).__name__}: {str(error)[:400]}. {advice}"
        return
    shape = ", ".join(f"{name} {x.dtype}{list(x.shape)}" for name, x in first.items() if x.ndim > 1)
    yield "OK", f"data {corpora}: {size.examples} utterances, {size.hours:.1f} h; a batch is {shape}"
    yield "OK", f"read at {rate:.0f} utterances/s by {jax.process_count()} process(es); tools/bench_data.py tells more"
    if bad:
        yield "WARN", f"{bad} of {rows} utterances could not be decoded; the log above names them"


def paths_of(config: ConfigDict, workdir: str) -> Iterator[tuple[str, str]]:
    """(what for, path) of all that a run would write to or read from."""
    if workdir:
        yield "workdir", workdir
    data = config.data.data_dir or os.environ.get("TFDS_DATA_DIR", "")
    if data:
        yield "data.data_dir", data
    cache = config.data.get("feature_cache", "")
    if cache not in ("", "auto"):
        yield "data.feature_cache", cache


def check(name: str, findings: Callable[[], Iterator[Finding]]) -> bool:
    """Prints what is found, as it is found; False with a FAIL."""
    fine = True
    try:
        for state, text in findings():
            fine &= state != "FAIL"
            print(f"{state:<5} {name:<11} {text}", flush=True)
    except Exception as error:
        print(f"FAIL  {name:<11} {type(error).__name__}: {str(error)[:600]}", flush=True)
        return False
    return fine


def main(argv: list[str]) -> None:
    """Runs all checks; SystemExit(1) with a FAIL."""
    del argv
    config, workdir, fine = flags.FLAGS.config, flags.FLAGS.workdir, True
    try:
        with distributed.joined(config, workdir=workdir):
            fine &= check("versions", versions)
            fine &= check("devices", devices)
            for name, path in paths_of(config, workdir):
                fine &= check("storage", lambda name=name, path=path: place(name, path))
            fine &= check("all-reduce", all_reduce)
            fine &= check("data", lambda: reading(config, flags.FLAGS.seconds))
    except config_lib.ConfigError as error:
        print(f"FAIL  hosts       {error}", flush=True)
        fine = False
    if not fine:
        raise SystemExit(1)


def parse(argv: Sequence[str]) -> list[str]:
    """As `config_lib.parse_flags`, for stage 1's config where none is named."""
    argv = [argv[0], f"--config={ROOT / 'configs' / 'stage1.py'}", *argv[1:]]
    return config_lib.parse_flags(argv, usage=__doc__)


if __name__ == "__main__":
    # Here and not above: who imports this file may have imported mser_jax.main, which has flags of the same names.
    config_lib.define_flag()
    flags.DEFINE_string("workdir", "", "Where a run would be kept: a folder or gs://…", allow_override=True)
    flags.DEFINE_float("seconds", 5.0, "How long data are read")
    app.run(main, flags_parser=parse)
