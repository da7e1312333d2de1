"""Compiles a config's train step for accelerators that are not there: does it fit, what travels, how fast at best?

    python -m mser_jax.aot --config=configs/stage2.py:llama3_8b --topology=v5p:4x4x8 [--slices=2] [--set mesh.fsdp=16]
                           [--report=FILE.html] [--search]

The compiler is the real one: libtpu (`pip install 'mser_jax[aot]'`), or jax's CUDA plugin for h100:1x8. The program is
the one that training runs, made by train.build; no data is opened and no weight is read. Memory is as the compiler
planned it; times are a roofline from published peaks, a prediction. Exit code 1: it does not fit.
"""

from __future__ import annotations

import os

# Before jax: it must neither take a TPU of this host nor ask the cloud for one, and several may compile at once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")  # silences a warning; the topology decides

import argparse
import ast
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import stages, storage, train
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding
from mser_jax.stages.alignment import SYNTHETIC
from mser_jax.stages.towers import TOWERS
from mser_jax.telemetry import aot_report, hlo, roofline
from mser_jax.telemetry.aot_report import Kind, Prediction

GIB = 2**30
# Longer than any prompt in bytes, which stand in for a tokenizer that is not there; batches get the config's lengths.
_BYTES = {"short": (1021, 509), "long": (1031, 521)}


def devices_of(topology: str, slices: int) -> tuple[list[jax.Device], roofline.Chip]:
    """The devices of 'v5p:4x4x8' or 'h100:1x8', and their chip's peaks.

    Raises:
        ConfigError: an unknown chip or shape, or the compiler for it is not installed.
    """
    name, _, shape = topology.partition(":")
    chips = roofline.chips()
    if name not in chips or not shape:
        raise config_lib.ConfigError(
            f"--topology={topology}: expected CHIP:SHAPE, such as v5p:4x4x8, v5e:16x16 or h100:1x8; chips are "
            + ", ".join(chips)
        )
    try:
        if name == "h100":
            nodes, _, gpus = shape.partition("x")
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name="h100",
                topology=f"{slices}x{nodes}x{gpus}",
                target_config=roofline.h100_description(),
            )
        else:
            options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
            if name == "v4":  # its two cores as one device, as a v4 host has them
                options["chip_config_name"] = "megacore"
            if set(shape.split("x")) == {"1"}:  # a host of one chip; libtpu's default has more
                options["chips_per_host_bounds"] = (1, 1, 1)
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except Exception as error:
        extra = "gpu" if name == "h100" else "aot"
        raise config_lib.ConfigError(
            f"--topology={topology}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
            f"If its compiler is not installed: pip install 'mser_jax[{extra}]'; else there is no such shape"
        ) from error
    return list(found.devices), chips[name]


def prepare(spec: str, changes: Sequence[str]) -> ConfigDict:
    """The config `spec` with 'key=value' `changes`, made independent of weights, tokenizers and data.

    Raises:
        ConfigError: no such config or key, or a value of another type.
    """
    config = config_lib.load(spec)
    for change in changes:
        set_value(config, change)
    config_lib.check(config)
    for tower in TOWERS.keys() & config.keys():
        config[tower].init = config[tower].tokenizer = ""
    if config.precision.compute == "auto":
        config.precision.compute = "bfloat16"
    if config.stage == "finetuning":
        config.init_from = ""
    return config


def set_value(config: ConfigDict, change: str) -> None:
    """Applies 'section.key=value'. Raises ConfigError as `prepare`."""
    key, equals, text = change.partition("=")
    if not equals:
        raise config_lib.ConfigError(f"--set {change}: expected section.key=value")
    config_lib.set_value(config, key, text)


def batch_of(stage: Any, sequences: Mapping[str, Any] | None, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """`stage.batch_spec`, with the token lengths of `sequences` where those of _BYTES stand."""
    spec = dict(stage.batch_spec(mesh))
    if sequences is None:
        return spec
    lengths = {old: new for name in _BYTES for old, new in zip(_BYTES[name], sequences[name], strict=True)}
    return {
        name: x.update(shape=(x.shape[0], lengths[x.shape[1]])) if x.ndim == 2 and x.shape[1] in lengths else x
        for name, x in spec.items()
    }


def compile_step(config: ConfigDict, devices: Sequence[jax.Device], chip: roofline.Chip) -> Prediction:
    """Compiles the train step of `config` for `devices`.

    Raises:
        ConfigError: the config does not fit the devices' number.
    """
    config = config.copy_and_resolve_references()
    sequences = None
    if config.stage == "finetuning":
        sequences = config.data.sequences.to_dict()
        config.data.sequences.update(_BYTES)
    with config_lib.blame("mesh"):
        mesh = mesh_lib.make_mesh(
            config.mesh.data, config.mesh.fsdp, config.mesh.tensor, mode=config.mesh.mode, devices=devices
        )
    with jax.set_mesh(mesh):
        stage = stages.make(config, SYNTHETIC)
        program = train.build(config, mesh, stage=stage)
        batch = batch_of(stage, sequences, mesh)
        lowered = program.train_step.lower(program.abstract, batch)
        begin = time.monotonic()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            compiled, problem = None, str(error)
        seconds = time.monotonic() - begin
    state = program.abstract
    where = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    base = Prediction(
        chip=chip,
        mesh=dict(mesh.shape),
        slices=mesh_lib.num_slices(devices),
        batch_size=config.train.batch_size,
        audio_seconds=config.train.batch_size * max(config.data.length_classes),
        replicated=sharding.replicated_share(state.params, where),
        analytic_flops=stage.flops(batch),
        compile_seconds=seconds,
        kinds=(
            Kind("parameters that train", _held(state.trainable)),
            Kind("optimiser", _held(state.optimizer)),
            Kind("frozen parameters", _held(state.frozen)),
            Kind("batch", _held(batch)),
        ),
    )
    if compiled is None:
        return dataclasses.replace(base, problem=problem, largest=_largest_leaves(state))
    return _measured(base, compiled, mesh)


def _held(tree: Any) -> int:
    """Bytes on one device of an abstract tree."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            shape = leaf.sharding.shard_shape(leaf.shape)
            total += jax.ShapeDtypeStruct(shape, leaf.dtype).size * leaf.dtype.itemsize
    return total


def _largest_leaves(tree: Any, count: int = 8) -> tuple[hlo.Buffer, ...]:
    """Of an abstract tree, as one device holds them."""
    found = [
        hlo.Buffer(_held(leaf), str(leaf.dtype), leaf.sharding.shard_shape(leaf.shape), sharding.path_of(path))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return tuple(sorted(found, key=lambda buffer: -buffer.bytes)[:count])


def _measured(base: Prediction, compiled: jax.stages.Compiled, mesh: Mesh) -> Prediction:
    memory, module = compiled.memory_analysis(), hlo.Module(compiled.as_text())
    named = sum(kind.bytes for kind in base.kinds)
    kinds = (
        *base.kinds,
        Kind("padding of tiles", max(memory.argument_size_in_bytes - named, 0)),
        Kind("results beside the state", max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)),
        Kind("activations and temporaries", memory.temp_size_in_bytes),
        Kind("program", memory.generated_code_size_in_bytes),
    )
    counted = compiled.cost_analysis() or {}
    return dataclasses.replace(
        base,
        kinds=kinds,
        roofline=roofline.predict(module.work(), module.collectives(), mesh, base.chip),
        largest=tuple(hlo.largest(module)),
        xla_flops=float(counted.get("flops", 0.0)),
    )


def candidates(config: ConfigDict, count: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """What --search tries: (what is varied, settings) in the order in which the best of one is kept for the next."""
    tensor = [1, 2, 4, 8] if "llm" in config and config.llm.sizes.num_layers >= 60 else [1]
    sizes = [n for n in (8, 16, 32, 64, count) if count % n == 0]
    yield (
        "mesh",
        [
            {"mesh.data": count // (f * t), "mesh.fsdp": f, "mesh.tensor": t}
            for f, t in itertools.product(dict.fromkeys(sizes), tensor)
            if f * t <= count and count % (f * t) == 0
        ],
    )
    network = "llm" if "llm" in config else "speech_encoder"
    yield "remat", [{f"{network}.remat": policy} for policy in ("dots", "full", "none")]
    size = config.train.batch_size
    yield "batch size", [{"train.batch_size": size * factor} for factor in (1, 2, 4, 8)]


def search(config: ConfigDict, devices: Sequence[jax.Device], chip: roofline.Chip) -> list[tuple[str, Prediction]]:
    """Mesh shapes, then remat policies, then batch sizes, each with the best of what came before; best first.

    Best is most utterances a second among those that fit. A setting that the config refuses is left out.
    """
    tried: dict[str, Prediction] = {}
    best: dict[str, Any] = {}
    for what, settings in candidates(config, len(devices)):
        for setting in settings:
            chosen = best | setting
            name = "  ".join(f"{key}={value}" for key, value in chosen.items())
            if name in tried:
                continue
            changed = config.copy_and_resolve_references()
            for key, value in chosen.items():
                set_value(changed, f"{key}={value}")
            try:
                tried[name] = compile_step(changed, devices, chip)
            except config_lib.ConfigError as error:
                print(f"{what}: {name}: {str(error).splitlines()[0]}", flush=True)
                continue
            print(f"{what}: {name}: {aot_report.summary(tried[name])}", flush=True)
            if what == "batch size" and not tried[name].fits:
                break
        fitting = {name: p for name, p in tried.items() if p.fits}
        if not fitting:
            break
        name = max(fitting, key=lambda name: fitting[name].utterances_per_second)
        best = {key: ast.literal_eval(value) if value[0].isdigit() else value
                for key, value in (pair.split("=") for pair in name.split("  "))}  # fmt: skip
    return sorted(tried.items(), key=lambda item: (not item[1].fits, -item[1].utterances_per_second))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 it fits, 1 it does not, 2 it cannot be asked."""
    parser = argparse.ArgumentParser(prog="python -m mser_jax.aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="FILE.py[:variant]")
    parser.add_argument("--topology", required=True, help="v4|v5e|v5p|v6e|tpu7x:SHAPE, or h100:NODESxGPUS")
    parser.add_argument("--slices", type=int, default=1, help="TPU slices of that shape, joined by the network")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an override; may be repeated")
    parser.add_argument("--search", action="store_true", help="try mesh shapes, remat policies and batch sizes")
    parser.add_argument("--report", default="", help="an HTML page of it")
    args = parser.parse_args(argv)
    try:
        if args.report:
            config_lib.check_output("report", storage.absolute(args.report).parent)
        devices, chip = devices_of(args.topology, args.slices)
        config = prepare(args.config, args.set)
        title = f"{args.config} on {args.topology}" + (f" × {args.slices} slices" if args.slices > 1 else "")
        if args.search:
            tried = search(config, devices, chip)
            print(aot_report.table(tried))
            best = tried[0][1]
        else:
            best = compile_step(config, devices, chip)
    except config_lib.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(aot_report.text(best, title))
    if args.report:
        aot_report.write_html(args.report, best, title)
    return 0 if best.fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
