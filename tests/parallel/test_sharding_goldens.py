"""Where every parameter of every preset lies, as text: what a change of the table does to each is seen in its diff."""

import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import pretrained
from mser_jax import aot, state
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import rules, sharding
from mser_jax.stages import make
from mser_jax.stages.alignment import SYNTHETIC

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "shardings"
PRESETS = [f"stage1:{name}" for name in ("size=mini", *pretrained.PRESETS)]
PRESETS += [f"stage2:{name}" for name in ("size=mini", *pretrained.STAGE2) if not name.startswith("llama")]
# A pod's, and one with tensor parallelism.
MESHES = ((8, 16, 1), (2, 16, 4))


def shardings_of(spec):
    """{path: (shape, its spec on each of MESHES)}, and the share of bytes whole on every fsdp shard, by mesh."""
    file, _, variant = spec.partition(":")
    config = aot.prepare(f"{pathlib.Path(__file__).parents[2]}/configs/{file}.py:{variant}", [])
    if "sequences" in config.data:
        config.data.sequences.update({"short": (1021, 509), "long": (1031, 521)})
    abstract = state.define(make(config, SYNTHETIC).build).abstract
    table, shares = {path: [leaf.shape] for path, leaf in abstract.items()}, []
    for shape in MESHES:
        mesh = AbstractMesh(shape, mesh_lib.AXES, axis_types=(AxisType.Explicit,) * 3)
        where = sharding.infer_shardings(abstract, mesh, rules.RULES)
        shares.append(sharding.replicated_share(abstract, where))
        for path in abstract:
            table[path].append(where[path].spec)
    return table, shares


def shown(spec):
    """'in fsdp, out tensor' is told by dimension: '[-, fsdp, tensor]', '-' for what stays whole, 'whole' for all."""
    names = ["-" if axes is None else axes if isinstance(axes, str) else "+".join(axes) for axes in spec]
    return f"[{', '.join(names)}]" if any(spec) else "whole"


@pytest.mark.parametrize("preset", PRESETS)
def test_shardings(golden, preset):
    table, shares = shardings_of(preset)
    head = [preset, f"path, shape, axes on meshes of data × fsdp × tensor: {'; '.join(map(str, MESHES))}"]
    lines = [f"{path} {list(row[0])}  {'; '.join(map(shown, row[1:]))}" for path, row in sorted(table.items())]
    golden(f"shardings/{preset.replace(':', '.')}.txt", "\n".join([*head, *lines, ""]))
    if "size=" not in preset and "base" not in preset:
        assert max(shares) < 0.02
    for path, (shape, *specs) in table.items():
        assert all(np.prod(shape) < sharding.MIN_SHARDED_ELEMENTS or len(spec) <= len(shape) for spec in specs), path


def test_no_golden_is_stale():
    assert {path.name for path in GOLDENS.iterdir()} == {f"{preset.replace(':', '.')}.txt" for preset in PRESETS}


def test_a_parameter_without_a_rule_is_named():
    mesh = AbstractMesh(MESHES[0], mesh_lib.AXES, axis_types=(AxisType.Explicit,) * 3)
    tree = {"llm/layers/experts/weights": jax.ShapeDtypeStruct((8, 64, 64), "float32")}
    with pytest.raises(ValueError, match=r"\n  llm/layers/experts/weights$"):
        sharding.infer_shardings(tree, mesh, rules.RULES)
