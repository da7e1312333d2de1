"""tools/inspect_checkpoint.py: what is there, and what differs."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from mser_jax.checkpoint import Checkpoints
from mser_jax.state import TrainState

TOOL = pathlib.Path(__file__).parents[1] / "tools" / "inspect_checkpoint.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("inspect_checkpoint", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with steps 1, 2 and 3; the third has another head and another config."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder / "checkpoints", keep_latest=9)
    for step, width in ((1, 4), (2, 4), (3, 5)):
        params = {"head/kernel": jnp.full((1024, width), float(step)), "same": jnp.ones(3)}
        state = TrainState(jnp.int32(step), params, {}, {"mu": params}, jax.random.key(3))
        checkpoints.save(state, {"config": {"seed": 5 if step < 3 else 6}})
    checkpoints.close()
    return folder


def test_describes_the_newest(tool, run, capsys):
    assert tool.main([str(run), "--values"]) == 0
    out = capsys.readouterr().out
    assert "checkpoints @ 3   (there are steps [1, 2, 3])" in out
    row = next(line for line in out.splitlines() if "params/head/kernel" in line)
    assert row.split() == ["params/head/kernel", "(1024,", "5)", "float32", "20.0", "KiB", "rms", "3.000e+00"]
    assert "training/optimizer/mu/head/kernel" in out and '"seed": 6' in out and '"jax":' in out
    sums = {line.split()[0]: line.split()[1:] for line in out.splitlines()[out.splitlines().index("sums") + 1 :][:6]}
    assert sums["params/head"] == ["20.0", "KiB"] and sums["training/optimizer"] == sums["params/head"]
    assert sums["all"] == ["40.0", "KiB"]


def test_finds_values_that_differ(tool, run, capsys):
    assert tool.main([f"{run}@1", f"{run}@2"]) == 0
    assert "nothing differs" in capsys.readouterr().out
    assert tool.main([f"{run}@1", f"{run}@2", "--values"]) == 1
    out = capsys.readouterr().out
    assert "value    head/kernel: relative distance 1.000e+00, at most 1.000e+00" in out
    assert "same" not in out


def test_finds_shapes_and_config_that_differ(tool, run, capsys):
    assert tool.main([f"{run}@2", str(run / "checkpoints")]) == 1
    out = capsys.readouterr().out
    assert "leaf     params/head/kernel: first (1024, 4) float32, second (1024, 5) float32" in out
    assert "config   seed: 5 → 6" in out
    assert "params/same" not in out


def test_says_what_is_not_there(tool, run, capsys):
    assert tool.main([f"{run}@7"]) == 2
    assert "No checkpoint of step 7" in capsys.readouterr().err
    assert tool.main([str(run / "nowhere")]) == 2
    assert "no checkpoint below" in capsys.readouterr().err
