"""Utterances a second of the train step: on several numbers of fake CPU devices, or beside PyTorch doing the same.

Usage: python tools/bench_step.py [--config=configs/stage1.py[:variant]] [--devices=1,8] [--repeats=3] [--steps=8]
       python tools/bench_step.py --stage=1 --beside=torch [--learn=all,heads] [--repeats=3] [--steps=5]
       python tools/bench_step.py --stage=2 --beside=torch [--repeats=3] [--steps=5]
Every measurement is a process of its own (the number of CPU devices is fixed when jax starts); they alternate, and
medians are printed as JSON. Batches are synthetic: the input pipeline has a bench of its own.

The step beside PyTorch: int16 waveforms of 4 s and 16 token ids each, batch 8, in; new parameters out. Whisper-base and
multilingual-E5-small shapes with stage 1's layer mix, Q-Former and heads; front end, forward, backward, clipping and
AdamW, in float32 on one device. `all` learns every parameter, `heads` all but the two towers (the preset). In PyTorch
(tools/bench_step_torch.py) clips are padded to the 30 s that Whisper's feature extractor gives its users, or, with the
position table cut, to 4 s. `cached` starts from kept features (config.data.feature_cache), so its speech encoder
is frozen whatever learns.

Stage 2's (tools/bench_step_torch_llm.py) starts from the same clips and has rows of 20 tokens and 2 targets, as the
preset has; Gemma 3 270M with adapters on all its linear layers. `torch_30s` has logits at every token, as transformers'
loss takes them; `torch_4s` at the answer only, as ours. What learns has the same size in all rows, or nothing is
printed.
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
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mser_jax import config as config_lib
from mser_jax import state, train
from mser_jax.data.chat import SPEECH
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import alignment, finetuning, towers

ROOT = pathlib.Path(__file__).resolve().parents[1]
BESIDE_CONFIG = {1: f"{ROOT}/configs/stage1.py:whisper_base_e5", 2: f"{ROOT}/configs/stage2.py:whisper_base_gemma"}
SECONDS, TOKENS, BATCH = 4, 16, 8
ROW, ANSWER = 20, 2
LENGTHS = {
    1: {},
    2: {
        **dict.fromkeys(("tokens", "token_mask"), ROW),
        **dict.fromkeys(("targets", "target_positions", "target_mask"), ANSWER),
    },
}
STAGES = {"alignment": alignment.Alignment, "finetuning": finetuning.Finetuning}


def beside_config(spec: str, learn: str = "heads", cached: bool = False) -> Any:
    """The config of one of our rows beside PyTorch: shapes only, unless $MSER_WEIGHTS has weights for stage 2."""
    config = config_lib.load(spec)
    if config.stage == "alignment" or not os.environ.get("MSER_WEIGHTS"):
        for tower in towers.TOWERS.keys() & config.keys():
            config[tower].init = ""
    config.train.batch_size = BATCH
    config.data.length_classes = (float(SECONDS),)
    config.data.feature_cache = "auto" if cached else ""
    config.model.trailing_silence = 0.0  # PyTorch's users hear 30 s, or the clip as it is.
    config.precision.compute = "float32"
    if config.stage == "finetuning":
        # Bytes stand for the tokenizer that comes with the weights, and need more room; `measure` takes it back.
        config.data.sequences.short = (200, 100)
        return config
    config.data.max_tokens = TOKENS
    if learn == "all":
        config.optim.groups = ((".*", 1.0),) if not cached else (("^speech_encoder/", 0.0), (".*", 1.0))
        # As PyTorch's kernels do: the backward pass computes GELU and normalisations again.
        config.speech_encoder.remat = config.text_encoder.remat = "dots"
    return config


def measure(config: Any, steps: int, lengths: Mapping[str, int] = LENGTHS[1]) -> dict[str, float]:
    """One child: compiles, warms up, times `steps` steps on the devices it finds.

    `lengths`: tokens of a row, for each array of the batch whose rows shall have others than the config says.
    """
    config.train.budget = "100 steps"
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
        program = train.build(config, mesh, stage=STAGES[config.stage](config, alignment.SYNTHETIC))
        spec = program.stage.batch_spec(mesh)
        for name, size in lengths.items():
            spec[name] = spec[name].update(shape=(config.train.batch_size, size))
        num_speech = program.stage.num_soft_tokens if config.stage == "finetuning" else 0
        batch = synthetic_batch(spec, max(config.data.length_classes), num_speech)
        given = program.stage.pretrained(program.abstract.params)
        train_state = state.create(program.init, program.abstract, given)
        begin = time.perf_counter()
        train_state, metrics = program.train_step(train_state, batch)
        jax.block_until_ready(metrics)
        compile_seconds = time.perf_counter() - begin
        for _ in range(2):
            train_state, metrics = program.train_step(train_state, batch)
        jax.block_until_ready(metrics)
        took = []
        for _ in range(steps):
            begin = time.perf_counter()
            train_state, metrics = program.train_step(train_state, batch)
            jax.block_until_ready((train_state, metrics))
            took.append(time.perf_counter() - begin)
    seconds = statistics.median(took)
    flops = program.stage.flops(spec)
    return {
        "devices": mesh.devices.size,
        "utterances_per_second": config.train.batch_size / seconds,
        "gflops_per_second": flops / seconds / 1e9,
        "compile_seconds": compile_seconds,
        "learning_parameters": sum(int(np.prod(leaf.shape)) for leaf in program.abstract.trainable.values()),
    }


def synthetic_batch(spec: Mapping[str, jax.ShapeDtypeStruct], seconds: float, num_speech: int) -> dict[str, jax.Array]:
    """Noise of full length (waveforms, or states), random tokens and labels, all rows valid; as the spec says.

    Where there are answers they end the rows, and soft tokens follow the first one.
    """
    rng = np.random.default_rng(0)
    full = {"num_samples": round(seconds * 16_000), "num_frames": spec["states"].shape[1] if "states" in spec else 0}
    out = {}
    for name, leaf in spec.items():
        if leaf.dtype == np.bool_:
            value = np.ones(leaf.shape, bool)
        elif name in full:
            value = np.full(leaf.shape, full[name], leaf.dtype)
        elif name == "states":
            value = rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        else:
            low, high = {"waveform": (-3000, 3000), "tokens": (5, 380), "targets": (5, 380)}.get(name, (0, 2))
            value = rng.integers(low, high, leaf.shape).astype(leaf.dtype)
        if name == "tokens" and "targets" in spec:
            value[:, 1 : 1 + num_speech] = SPEECH
        if name == "target_positions":
            value[:] = np.arange(spec["tokens"].shape[1])[-leaf.shape[1] :]
        out[name] = jax.device_put(value, leaf.sharding)
    return out


def child(arguments: Sequence[str], script: str = __file__, devices: int = 1) -> dict[str, float]:
    """The JSON that one process prints."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def alternate(rows: Mapping[str, Any], repeats: int) -> dict[str, dict[str, float]]:
    """{name: medians} of rows {name: () -> figures}, measured in turns."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, run in rows.items():
            runs[name].append(run())
    return {
        name: {key: round(statistics.median(run[key] for run in results), 3) for key in results[0]}
        for name, results in runs.items()
    }


def torch_arguments(stage: int, seconds: int) -> tuple[str, list[str]]:
    """The script of a stage in PyTorch, and its arguments for clips padded to `seconds`."""
    sizes = [f"--seconds={seconds}", f"--clip_seconds={SECONDS}", f"--batch_size={BATCH}"]
    if stage == 1:
        return f"{ROOT}/tools/bench_step_torch.py", [*sizes, f"--max_tokens={TOKENS}"]
    logits = "answers" if seconds == SECONDS else "all"
    sizes += [f"--tokens={ROW}", f"--targets={ANSWER}", f"--logits={logits}"]
    return f"{ROOT}/tools/bench_step_torch_llm.py", sizes


def beside_torch(stage: int, learn: str, steps: int, repeats: int) -> dict[str, Any]:
    """The four rows and their ratios. Exits where what learns has another size in PyTorch."""
    common = [f"--learn={learn}"] * (stage == 1) + [f"--steps={steps}"]

    def torch(seconds: int) -> dict[str, float]:
        script, arguments = torch_arguments(stage, seconds)
        return child([*common, *arguments], script)

    def ours(cached: bool) -> dict[str, float]:
        arguments = ["--child", f"--stage={stage}", "--beside=torch", *common, *(["--cached"] if cached else [])]
        return child(arguments)

    rows = alternate(
        {
            "torch_30s": lambda: torch(30),
            f"torch_{SECONDS}s": lambda: torch(SECONDS),
            f"ours_{SECONDS}s": lambda: ours(cached=False),
            f"ours_{SECONDS}s_cached": lambda: ours(cached=True),
        },
        repeats,
    )
    learning = {name: row["learning_parameters"] for name, row in rows.items()}
    if stage == 2 and len(set(learning.values())) > 1:
        raise SystemExit(f"not the same network: {learning} parameters learn")
    rate = {name: row["utterances_per_second"] for name, row in rows.items()}
    padded, careful, plain, cached = rate.values()
    ratios = {
        "ours / torch_30s": plain / padded,
        "ours / torch_4s": plain / careful,
        "cached / torch_4s": cached / careful,
    }
    return {"learn": learn, "rows": rows, "ratios": {name: round(value, 2) for name, value in ratios.items()}}


def main() -> None:
    """Runs the children in turns and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs/stage1.py"))
    parser.add_argument("--devices", default="1,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stage", type=int, default=1, choices=tuple(BESIDE_CONFIG))
    parser.add_argument("--beside", choices=("torch",))
    parser.add_argument("--learn", default="", help="with --stage=1: all, heads, or both, comma-separated")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cached", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.beside:
            config = beside_config(BESIDE_CONFIG[options.stage], options.learn, options.cached)
            figures = measure(config, options.steps, LENGTHS[options.stage])
        else:
            figures = measure(config_lib.load(options.config), options.steps)
        print(json.dumps(figures))
        return
    out: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    if options.beside:
        learns = (options.learn or "all,heads").split(",") if options.stage == 1 else ["adapters"]
        out["step"] = [beside_torch(options.stage, learn, options.steps, options.repeats) for learn in learns]
    else:
        arguments = ["--child", f"--config={options.config}", f"--steps={options.steps}"]
        rows = {count: lambda count=count: child(arguments, devices=int(count)) for count in options.devices.split(",")}
        out |= {"config": options.config, "step": list(alternate(rows, options.repeats).values())}
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
