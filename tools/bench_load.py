"""Peak memory and seconds of loading a large checkpoint: ours on 1 and on 8 fake devices, and transformers'.

Usage: python tools/bench_load.py [--layers=48] [--width=1024] [--vocab=65536] [--devices=1,8] [--directory=DIR]
Writes a random XLM-R of these sizes (2.7 GB of f32; its largest tensor is a tenth of that) to a temporary directory
and loads it, in a process for each measurement. Peak memory is the highest resident set that the kernel saw, less
what the process held when everything was imported and one small model was loaded. Prints JSON, in MiB and seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from mser_jax import state
from mser_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding
from mser_jax.pretrained import bert, export, files, load

MIB = 2**20
SMALL = {"layers": 1, "width": 64, "vocab": 100}


def define(layers: int, width: int, vocab: int) -> tuple[TextEncoderConfig, dict[str, jax.ShapeDtypeStruct]]:
    """XLM-R of these sizes: its config and its parameters, abstract."""
    sizes = {"num_layers": layers, "width": width, "num_heads": width // 64, "mlp_width": 4 * width}
    cfg = TextEncoderConfig(**sizes, vocab_size=vocab, max_positions=514, position_offset=2, norm_eps=1e-5)
    return cfg, state.define(lambda rngs: TextEncoder(cfg, rngs=rngs)).abstract


def write(directory: pathlib.Path, **sizes: int) -> None:
    """A checkpoint of noise in f32, in files of 1 GB. (A constant would be no test: pages could be shared.)"""
    cfg, abstract = define(**sizes)
    noise = 0.02 * np.random.default_rng(0).standard_normal(2**22 + 1).astype(np.float32)
    params = {path: np.resize(noise, leaf.shape) for path, leaf in abstract.items()}
    export.save(directory, params, bert.key_map(cfg), bert.config_to_hf(cfg), max_shard_size="1GB")


def load_ours(directory: pathlib.Path) -> int:
    """Loads over `fsdp` on all devices; the bytes of the parameters."""
    hf = load.read_config(directory)
    family = load.family_of(hf, ("text",))
    cfg = family.config_from_hf(hf)
    abstract = state.define(lambda rngs: TextEncoder(cfg, rngs=rngs)).abstract
    mesh = mesh_lib.make_mesh(data=1, fsdp=-1)
    shardings = sharding.infer_shardings(abstract, mesh)
    sharded = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path]) for path, leaf in abstract.items()
    }
    params = jax.block_until_ready(load.load(directory, family.key_map(cfg), sharded))
    return sum(value.nbytes for value in params.values())


def load_transformers(directory: pathlib.Path) -> int:
    """What its users write; every parameter is touched, as it may only be mapped. The bytes of the parameters."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(directory, add_pooling_layer=False, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sum()
    return sum(parameter.nbytes for parameter in model.parameters())


LOADERS: dict[str, Callable[[pathlib.Path], int]] = {"ours": load_ours, "transformers": load_transformers}


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (highest since the process began or it was reset), bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def measure(kind: str, directory: pathlib.Path, warm_up: pathlib.Path) -> dict[str, float]:
    """One child: imports and compiles with a small model, then loads the large one."""
    LOADERS[kind](warm_up)
    # 5 resets the highest resident set to the present one (man 5 proc).
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    begin = time.perf_counter()
    num_bytes = LOADERS[kind](directory)
    seconds = time.perf_counter() - begin
    peak = resident("VmHWM") - before
    return {"parameters_mib": num_bytes / MIB, "peak_mib": peak / MIB, "seconds": seconds, "before_mib": before / MIB}


def child(kind: str, devices: int, directory: pathlib.Path, warm_up: pathlib.Path) -> dict[str, float]:
    """Runs `measure` in a process with so many fake devices."""
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, __file__, f"--measure={kind}", f"--directory={directory}", f"--warm_up={warm_up}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{kind} on {devices} device(s) failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(directory: pathlib.Path, warm_up: pathlib.Path, devices: list[int]) -> dict[str, object]:
    """All measurements, and what the claim is about: a host holds its shards and one tensor."""
    tensors = files.index(directory).values()
    largest = max(files.num_bytes(info) for info in tensors) / MIB
    runs = {
        **{f"ours, {n} device(s)": child("ours", n, directory, warm_up) for n in devices},
        "transformers": child("transformers", 1, directory, warm_up),
    }
    for run in runs.values():
        run["peak_over_parameters_mib"] = run["peak_mib"] - run["parameters_mib"]
    rounded = {name: {key: round(value, 1) for key, value in run.items()} for name, run in runs.items()}
    return {"tensors": len(tensors), "largest_tensor_mib": round(largest, 1), **rounded}


def main() -> None:
    """Writes the checkpoints, runs the children, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"layers": 48, "width": 1024, "vocab": 65536}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="of the random XLM-R")
    parser.add_argument("--devices", default="1,8", help="numbers of fake devices to load onto")
    parser.add_argument(
        "--directory",
        type=lambda path: pathlib.Path(path).expanduser(),
        help="load this checkpoint (BERT or XLM-R) instead",
    )
    parser.add_argument("--measure", choices=sorted(LOADERS), help=argparse.SUPPRESS)
    parser.add_argument("--warm_up", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.directory, args.warm_up)))
        return
    with tempfile.TemporaryDirectory() as folder:
        warm_up, directory = pathlib.Path(folder, "small"), args.directory or pathlib.Path(folder, "large")
        write(warm_up, **SMALL)
        if args.directory is None:
            write(directory, layers=args.layers, width=args.width, vocab=args.vocab)
        print(json.dumps(compare(directory, warm_up, [int(n) for n in args.devices.split(",")]), indent=2))


if __name__ == "__main__":
    main()
