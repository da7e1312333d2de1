"""What a checkpoint costs a run: how long the loop stands still for one, and how long it is written beside the steps.

Usage: python tools/bench_checkpoint.py [--millions=25] [--every=10] [--steps=40] [--matmuls=12] [--directory=DIR]
Trains a stack of square matrices (f32, Adam) of so many million parameters through this package's train step, first
without checkpoints, then with one every so many steps, and once more where each save is waited for. Prints JSON:
  step_ms                 a step without checkpoints (median)
  blocked_ms              the loop stands still for one save: values to the host, files opened (median)
  saved_ms                from the beginning of a save until it is complete, beside the steps (median)
  synchronous_ms          the same where the loop waits for it
  share_of_a_step         blocked_ms / (every × step_ms): what saving that often adds to a step
  slowdown                of the whole run: its seconds with saves / without − 1, other steps' slowing included
  bytes                   of one checkpoint
  checksums_ms            its files are read again for their checksums, in the thread that writes (median)
  checksums_in_step_ms    the same, of what the loop stands still for; 0 where none runs in its thread
  restore_ms              a state is read, its files held against their checksums (median of five, files in memory)
  verify_ms               that check alone
  verify_share            verify_ms / (restore_ms − verify_ms)
On CPU, steps and writing share the cores: there `slowdown` says more than the share does.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mser_jax import integrity
from mser_jax.checkpoint import Checkpoints
from mser_jax.state import TrainState

WIDTH = 1024


def make_state(millions: float) -> TrainState:
    """Square matrices, and Adam's moments of them."""
    count = max(1, round(millions * 1e6 / WIDTH**2))
    keys = jax.random.split(jax.random.key(0), count)
    params = {f"layers/{i}/kernel": jax.random.normal(key, (WIDTH, WIDTH)) / 32 for i, key in enumerate(keys)}
    return TrainState(jnp.int32(0), params, {}, optax.adam(1e-4).init(params), jax.random.key(1))


def make_step(matmuls: int) -> Any:
    """A jitted (state, x) -> state that takes about `matmuls` products with each matrix."""

    def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        for kernel in params.values():
            for _ in range(matmuls):
                x = jnp.tanh(x @ kernel)
        return jnp.mean(x**2)

    def step(state: TrainState, x: jax.Array) -> TrainState:
        grads = jax.grad(loss)(state.trainable, x)
        updates, optimizer = optax.adam(1e-4).update(grads, state.optimizer)
        return TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), {}, optimizer, state.rng)

    return jax.jit(step, donate_argnums=0)


def run(
    options: argparse.Namespace, directory: str | None, *, wait: bool = False
) -> tuple[float, list[float], list[float], list[float]]:
    """(seconds, of each step, that each save blocks, until each save is complete); no directory: no saves."""
    state, step = make_state(options.millions), make_step(options.matmuls)
    x = jax.random.normal(jax.random.key(2), (options.rows, WIDTH))
    state = jax.block_until_ready(step(state, x))
    checkpoints = Checkpoints(directory, keep_latest=2) if directory else None
    steps, blocked, complete, under_way = [], [], [], 0.0
    start = time.perf_counter()
    for number in range(1, options.steps + 1):
        begin = time.perf_counter()
        state = jax.block_until_ready(step(state, x))
        steps.append(time.perf_counter() - begin)
        if checkpoints and number % options.every == 0:
            begin = time.perf_counter()
            checkpoints.save(state, {"config": {}})
            blocked.append(time.perf_counter() - begin)
            if wait:
                checkpoints.wait()
                complete.append(time.perf_counter() - begin)
            under_way = begin
        elif checkpoints and under_way and not checkpoints.saving:
            complete.append(time.perf_counter() - under_way)
            under_way = 0.0
    seconds = time.perf_counter() - start
    if checkpoints:
        checkpoints.close()
        if under_way and not wait:
            complete.append(time.perf_counter() - under_way)
    return seconds, steps, blocked, complete


class Timed:
    """Seconds of each call of a function of `integrity`, by whether the main thread made it."""

    def __init__(self, name: str) -> None:
        self.main, self.beside, self._function = [], [], getattr(integrity, name)
        setattr(integrity, name, self)

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        begin = time.perf_counter()
        found = self._function(*args)
        here = threading.current_thread() is threading.main_thread()
        (self.main if here else self.beside).append(time.perf_counter() - begin)
        return found


def restore(options: argparse.Namespace, directory: str, problems: Timed) -> tuple[float, float]:
    """(seconds that a restore takes, those of them for the checksums), medians of five."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                            make_state(options.millions))  # fmt: skip
    seconds = []
    problems.main.clear()
    for _ in range(5):
        checkpoints = Checkpoints(directory)
        begin = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(abstract).params)
        seconds.append(time.perf_counter() - begin)
        checkpoints.close()
    return statistics.median(seconds), statistics.median(problems.main)


def main() -> None:
    """Prints the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=25.0)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--matmuls", type=int, default=4)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--directory", default="")
    options = parser.parse_args()
    writes, problems = Timed("write"), Timed("problems")
    with tempfile.TemporaryDirectory(dir=options.directory or None) as directory:
        alone, steps, _, _ = run(options, None)
        beside, _, blocked, complete = run(options, f"{directory}/asynchronous")
        _, _, _, synchronous = run(options, f"{directory}/synchronous", wait=True)
        newest = pathlib.Path(directory, "asynchronous", str(max(Checkpoints(f"{directory}/asynchronous").steps)))
        whole, verify = restore(options, f"{directory}/asynchronous", problems)
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    step = statistics.median(steps)
    found = {
        "device": jax.devices()[0].device_kind,
        "every": options.every,
        "step_ms": step * 1e3,
        "blocked_ms": statistics.median(blocked) * 1e3,
        "saved_ms": statistics.median(complete) * 1e3,
        "synchronous_ms": statistics.median(synchronous) * 1e3,
        "share_of_a_step": statistics.median(blocked) / (options.every * step),
        "slowdown": beside / alone - 1,
        "bytes": size,
        "checksums_ms": statistics.median(writes.beside) * 1e3,
        "checksums_in_step_ms": sum(writes.main) * 1e3,
        "restore_ms": whole * 1e3,
        "verify_ms": verify * 1e3,
        "verify_share": verify / (whole - verify),
    }
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}))


if __name__ == "__main__":
    main()
