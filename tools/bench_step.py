"""Utterances a second of the train step, at several numbers of fake CPU devices, side by side in one run.

Usage: python tools/bench_step.py [--config=configs/stage1.py[:variant]] [--devices=1,8] [--repeats=3] [--steps=8]
Every measurement is a process of its own (the number of CPU devices is fixed when jax starts); they alternate, and
medians are printed as JSON. Batches are synthetic: the input pipeline has a bench of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from mser_jax import config as config_lib
from mser_jax import state, train
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import alignment

ROOT = pathlib.Path(__file__).resolve().parents[1]


def measure(config_spec: str, steps: int) -> dict[str, float]:
    """One child: compiles, warms up, times `steps` steps on the devices it finds."""
    config = config_lib.load(config_spec)
    config.train.budget = "100 steps"
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
        program = train.build(config, mesh, stage=alignment.Alignment(config, alignment.SYNTHETIC))
        batch = synthetic_batch(program.stage.batch_spec(mesh))
        train_state = state.create(program.init, program.abstract)
        begin = time.perf_counter()
        train_state, metrics = program.train_step(train_state, batch)
        jax.block_until_ready(metrics)
        compile_seconds = time.perf_counter() - begin
        for _ in range(2):
            train_state, metrics = program.train_step(train_state, batch)
        jax.block_until_ready(metrics)
        begin = time.perf_counter()
        for _ in range(steps):
            train_state, metrics = program.train_step(train_state, batch)
        jax.block_until_ready(metrics)
        seconds = (time.perf_counter() - begin) / steps
    flops = program.stage.flops(program.stage.batch_spec(mesh))
    size = config.train.batch_size
    return {
        "devices": mesh.devices.size,
        "utterances_per_second": size / seconds,
        "gflops_per_second": flops / seconds / 1e9,
        "compile_seconds": compile_seconds,
    }


def synthetic_batch(spec: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Noise of full length, random tokens and labels, every row valid; sharded as the spec says."""
    rng = np.random.default_rng(0)
    out = {}
    for name, leaf in spec.items():
        if leaf.dtype == np.bool_:
            value = np.ones(leaf.shape, bool)
        elif name == "num_samples":
            value = np.full(leaf.shape, spec["waveform"].shape[1], leaf.dtype)
        else:
            low, high = (-3000, 3000) if name == "waveform" else (0, 2)
            value = rng.integers(low, high, leaf.shape).astype(leaf.dtype)
        out[name] = jax.device_put(value, leaf.sharding)
    return out


def main() -> None:
    """Runs the children in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs/stage1.py"))
    parser.add_argument("--devices", default="1,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.config, options.steps)))
        return
    runs: dict[int, list[dict[str, float]]] = {int(count): [] for count in options.devices.split(",")}
    for _ in range(options.repeats):
        for count, results in runs.items():
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
            done = subprocess.run(
                [sys.executable, __file__, "--child", f"--config={options.config}", f"--steps={options.steps}"],
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                cwd=ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(done.stderr)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    medians = [
        {name: round(statistics.median(run[name] for run in results), 2) for name in results[0]}
        for results in runs.values()
    ]
    print(json.dumps({"config": options.config, "cores": len(os.sched_getaffinity(0)), "step": medians}, indent=2))


if __name__ == "__main__":
    main()
