"""The command end to end on the TPU compiler, and what it refuses; the parts have tests of their own (telemetry/)."""

import dataclasses
import re

import pytest

from mser_jax import aot
from mser_jax import config as config_lib
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.telemetry import aot_report, hlo, roofline

# A Q-Former and an LLM of two layers that read kept features: seconds to compile.
TINY = ["--config=configs/stage2.py:cache=auto", "--topology=v5e:2x4", "--set", "mesh.data=2", "--set", "mesh.fsdp=4"]


@pytest.fixture(scope="module")
def compiled():
    """The tiny program compiled once, by libtpu."""
    pytest.importorskip("libtpu", reason="pip install 'mser_jax[aot]'")
    devices, chip = aot.devices_of("v5e:2x4", 1)
    config = aot.prepare("configs/stage2.py:cache=auto", ["mesh.data=2", "mesh.fsdp=4"])
    return aot.compile_step(config, devices, chip)


def test_the_step_of_a_tpu(compiled, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(aot, "compile_step", lambda *_: compiled)
    page = tmp_path / "report.html"
    assert aot.main([*TINY, f"--report={page}"]) == 0
    said = capsys.readouterr().out
    assert "prediction" in said and "mesh data 2 × fsdp 4 × tensor 1 (8 devices, 1 slice)" in said
    assert page.read_text().count("data:image/png;base64,") == 2
    kinds = {kind.name: kind.bytes for kind in compiled.kinds}
    # Adam has two moments of what trains.
    assert kinds["optimiser"] == pytest.approx(2 * kinds["parameters that train"], rel=1e-3)
    assert 0 < compiled.used < 2**30 and compiled.fits and compiled.replicated < 1
    # The same products are counted as are worked out; two thirds more where they are computed again or not wanted.
    assert 0.5 < compiled.analytic_flops / 8 / compiled.roofline.flops < 1.2
    moves = {(t.kind, t.axes) for t in compiled.roofline.transfers}
    assert {("all-gather", "fsdp"), ("all-reduce", "data")} <= moves


def test_what_does_not_fit_exits_with_1_and_names_the_largest(compiled, monkeypatch, capsys):
    small = dataclasses.replace(compiled, chip=dataclasses.replace(compiled.chip, hbm_bytes=2**20))
    monkeypatch.setattr(aot, "compile_step", lambda *_: small)
    assert aot.main(TINY) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and re.search(r"Largest arrays that the step makes\n +[\d.]+ MiB  \w+\[", said)


def test_what_the_compiler_says_of_too_little_memory(compiled):
    """The message of a compile that ran out (libtpu 0.0.42), shortened."""
    problem = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom:
XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 40.75G of 15.75G hbm. Exceeded hbm capacity
by 25.00G.
  Largest program allocations in hbm:

  1. Size: 32.00G
     Operator: op_name="jit(train_step)/jvp()/dot_general"
     Shape: f32[8192,1048576]{1,0:T(8,128)}
     Unpadded size: 32.00G
     XLA label: fusion.7
"""
    refused = dataclasses.replace(compiled, problem=problem, roofline=None)
    assert refused.used == int(40.75 * 2**30) and not refused.fits
    assert "32.00G  f32[8192,1048576]{1,0:T(8,128)}  jit(train_step)/jvp()/dot_general" in aot_report.text(refused, "x")


@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:1x1"])
def test_one_chip_is_a_topology(topology):
    pytest.importorskip("libtpu", reason="pip install 'mser_jax[aot]'")
    devices, chip = aot.devices_of(topology, 1)
    assert [device.device_kind for device in devices] == [chip.kind]


@pytest.mark.parametrize(
    ("topology", "count"), [("v4:2x2x1", 4), ("v5e:2x2", 4), ("v5p:2x2x1", 4), ("v6e:2x2", 4), ("tpu7x:2x2x1", 8)]
)
def test_devices_are_those_of_the_peaks(topology, count):
    """Also on two slices: each is one half of `data`, and only what leaves it is on the network."""
    pytest.importorskip("libtpu", reason="pip install 'mser_jax[aot]'")
    devices, chip = aot.devices_of(topology, 1)
    assert len(devices) == count and {device.device_kind for device in devices} == {chip.kind}
    devices, _ = aot.devices_of(topology, 2)
    mesh = mesh_lib.make_mesh(devices=devices, data=-1, fsdp=count // 2)
    slices = [{device.slice_index for device in row.flat} for row in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    within, between = (hlo.Collective("all-reduce", 8, 1, group, False, "") for group in ((0, 1), (0, count)))
    flat = list(mesh.devices.flat)
    assert roofline.seconds(within, flat, chip)[1] == 0.0 and roofline.seconds(between, flat, chip)[0] == 0.0


def test_what_it_says_of_temporaries_alone(compiled):
    """Its other message: the arguments are to be added."""
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (101.29G) exceeds"
    )
    refused = dataclasses.replace(compiled, kinds=compiled.kinds[:1], problem=said, roofline=None)
    assert refused.used == int(101.29 * 2**30) + compiled.kinds[0].bytes and not refused.fits


def test_search_keeps_the_best_of_each_round(monkeypatch):
    """More rows are faster until memory ends; remat "full" and fsdp 8 are best here by construction."""
    chip = roofline.chips()["v5e"]
    seen = []

    def fake(config, devices, chip):
        seen.append((config.mesh.fsdp, config.speech_encoder.remat, config.train.batch_size))
        seconds = (1.0 if config.mesh.fsdp == 8 else 2.0) * (1.0 if config.speech_encoder.remat == "full" else 2.0)
        line = roofline.Roofline(seconds, 0.0, seconds, 0.0, 0.0, 0.0, 1.0, 1.0, ())
        kinds = (aot_report.Kind("all", config.train.batch_size * 2**28),)
        return aot_report.Prediction(chip, {"data": 1, "fsdp": 16, "tensor": 1}, 1, config.train.batch_size, 1.0, 0.0,
                                     1.0, 0.0, kinds, line)  # fmt: skip

    monkeypatch.setattr(aot, "compile_step", fake)
    config = aot.prepare("configs/stage1.py", ["train.batch_size=16"])
    (name, best), *_ = aot.search(config, [None] * 16, chip)
    assert best.batch_size == 64 and name.endswith("train.batch_size=64")
    assert "mesh.fsdp=8" in name and "speech_encoder.remat=full" in name and seen[-1] == (8, "full", 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/stage1.py", "--topology=v9:2x2"], "expected CHIP:SHAPE"),
        (["--config=configs/stage1.py", "--topology=v5e"], "expected CHIP:SHAPE"),
        (["--config=configs/stage1.py", "--topology=h100:1x8"], r"mser_jax\[gpu\]"),
    ],
)
def test_a_topology_that_cannot_be(arguments, message, monkeypatch, capsys):
    def missing(**_):
        raise RuntimeError("Unknown backend cuda")

    monkeypatch.setattr(aot.topologies, "get_topology_desc", missing)
    assert aot.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_overrides_are_typed_and_named():
    config = config_lib.load("configs/stage1.py")
    aot.set_value(config, "train.batch_size=64")
    aot.set_value(config, "speech_encoder.remat=full")
    aot.set_value(config, "data.length_classes=(2.0,)")
    aot.set_value(config, "loss.supcon=0")
    assert (config.train.batch_size, config.speech_encoder.remat) == (64, "full")
    assert config.data.length_classes == (2.0,) and config.loss.supcon == 0.0
    for wrong, message in (
        ("train.batchsize=1", "Did you mean --config.train.batch_size"),
        ("train.batch_size", "expected section.key=value"),
        ("train.batch_size=many", "expected a whole number"),
    ):
        with pytest.raises(config_lib.ConfigError, match=message):
            aot.set_value(config, wrong)
