"""Zero-shot scoring of a checkpoint: its stage and config are rebuilt from what it remembers; nothing trains."""

from __future__ import annotations

import collections
import difflib

import jax
from etils import epath
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import stages, state
from mser_jax.checkpoint import Checkpoints
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding


def merged_config(config: ConfigDict, trained: ConfigDict) -> ConfigDict:
    """The config a checkpoint was trained with, under what `config` (configs/evaluate.py) says of data and scoring.

    Empty values of `config` keep what the run was trained with; its corpora become the corpora that are scored.
    """
    out = trained.copy_and_resolve_references()
    out.mesh, out.precision = config.mesh, config.precision
    out.evaluate.corpora = config.data.corpora or trained.evaluate.corpora or trained.data.corpora
    out.data.data_dir = config.data.data_dir or trained.data.data_dir
    for key in ("num_threads", "feature_cache", "feature_dtype"):
        out.data[key] = config.data[key]
    # What was kept from training is what this is for: the filters of training do not apply.
    for key, value in config.evaluate.items():
        if value != "" or key in ("include_languages", "exclude_languages"):
            out.evaluate[key] = value
    return out


def run(config: ConfigDict, workdir: str) -> None:
    """Scores `config.checkpoint` (a training workdir) and writes results.json and plots below `workdir`.

    An empty `workdir` is `CHECKPOINT/evaluation`.

    Raises:
        ConfigError: no checkpoint is named, or there is none.
    """
    if not config.checkpoint:
        raise config_lib.ConfigError("--config.checkpoint=DIR is missing: the workdir of a training run")
    source = epath.Path(config.checkpoint)
    folder = source / "checkpoints"
    if not folder.exists():
        near = difflib.get_close_matches(
            source.name, [p.name for p in source.parent.iterdir()] if source.parent.exists() else [], n=1
        )
        hint = f" Did you mean {source.parent / near[0]}?" if near else ""
        raise config_lib.ConfigError(f"--config.checkpoint={config.checkpoint}: no {folder}.{hint}")
    checkpoints = Checkpoints(folder)
    number = checkpoints.latest if config.step < 0 else config.step
    metadata = checkpoints.metadata(number)
    merged = merged_config(config, config_lib.from_dict(metadata["config"]))
    with config_lib.blame("mesh"):
        mesh = mesh_lib.make_mesh(merged.mesh.data, merged.mesh.fsdp, merged.mesh.tensor, mode=merged.mesh.mode)
    with jax.set_mesh(mesh):
        stage = stages.make(merged, metadata)
        abstract = state.define(stage.build).abstract
        shardings = sharding.infer_shardings(abstract, mesh)
        abstract = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
            for path, leaf in abstract.items()
        }
        params = checkpoints.restore_params(abstract, number)
        stage.prepare(params, mesh, lambda: False)
        target = epath.Path(workdir) if workdir else source / "evaluation"
        for evaluator in stage.evaluators(mesh):
            # What it yields is for metric writers; the table it prints is for people.
            collections.deque(evaluator.run(params, number, source, target), maxlen=0)
