"""Zero-shot scoring of a checkpoint: its stage and config are rebuilt from what it remembers; nothing trains."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import lease, stages, state, storage
from mser_jax.checkpoint import Checkpoints
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding
from mser_jax.run import locate
from mser_jax.stages.base import Params, Stage


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened to be used: config, stage, parameters on the mesh, step, workdir of the run."""

    config: ConfigDict
    stage: Stage
    params: Params
    mesh: Mesh
    step: int
    run: epath.Path


def open_checkpoint(run: str, step: int, change: Callable[[ConfigDict], ConfigDict]) -> Checkpoint:
    """The checkpoint that `run` names, or of `step` (negative: the newest) of that training workdir, without its data.

    `change` makes the config that is used of the one it was trained with; the mesh is made of that.

    Raises:
        ConfigError: there is no such run; CheckpointError: it cannot be read.
    """
    where = locate(run, step)
    checkpoints = Checkpoints(where.checkpoints)
    number = checkpoints.latest if where.step is None else where.step
    metadata = checkpoints.metadata(number)
    config = change(config_lib.from_dict(metadata["config"]))
    with config_lib.blame("mesh"):
        mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, mode=config.mesh.mode)
    with jax.set_mesh(mesh):
        stage = stages.make(config, metadata)
        definition = state.define(stage.build)
        abstract = sharding.placed(definition.abstract, mesh)

        def frozen(wanted: dict[str, jax.ShapeDtypeStruct]) -> state.Flat:
            return state.initial(definition, config.seed, wanted, stage.pretrained(abstract))

        params = checkpoints.restore_params(abstract, number, frozen)
    return Checkpoint(config, stage, params, mesh, number, where.run)


# Values for runs that are older than the key.
_OLDER = {
    "closed_set": False,
    "adapt": "none",
    "probes": False,
    "encoder_probe": False,
    "dev_utterances": 0,
    "paraphrases": 1,
    "prior": "none",
    "extractors": "exact,levenshtein",
}


def merged_config(config: ConfigDict, trained: ConfigDict) -> ConfigDict:
    """The config a checkpoint was trained with, under what `config` (configs/evaluate.py) says of data and scoring.

    Values that `config` leaves None, and empty texts, are taken from the run: data, filters and protocol of its
    evaluation. Its corpora become the corpora that are scored. An empty filter of languages keeps all of them.
    """
    out = trained.copy_and_resolve_references()
    out.mesh = config.mesh
    out.evaluate.corpora = config.data.corpora or trained.evaluate.corpora or trained.data.corpora
    out.data.data_dir = config.data.data_dir or trained.data.data_dir
    out.data.labels = config.data.labels or trained.data.get("labels", "")
    out.data.num_threads = config.data.num_threads
    for section, no_filter in (
        ("precision", ()),
        ("data", ("feature_cache",)),
        ("evaluate", ("include_languages", "exclude_languages")),
    ):
        for key, value in config[section].items():
            given = value is not None and (value != "" or key in no_filter)
            if given and (section, key) not in (("data", "corpora"), ("data", "data_dir")):
                out[section][key] = value
    for key, value in _OLDER.items():
        if key not in out.evaluate:
            out.evaluate[key] = value
    return out


def run(config: ConfigDict, workdir: str) -> None:
    """Scores `config.checkpoint` (a training workdir) and writes results.json and plots below `workdir`.

    An empty `workdir` is `CHECKPOINT/evaluation`.

    Raises:
        ConfigError: no checkpoint is named, or there is none.
        LeaseError: another evaluation writes there.
    """
    config = config_lib.with_absolute_paths(config)
    if not config.checkpoint:
        raise config_lib.ConfigError("--config.checkpoint=DIR is missing: the workdir of a training run")
    target = storage.absolute(workdir) if workdir else locate(config.checkpoint, config.step).run / "evaluation"
    config_lib.check_output("workdir", target)
    found = open_checkpoint(config.checkpoint, config.step, lambda trained: merged_config(config, trained))
    with jax.set_mesh(found.mesh), lease.held(target, "evaluate"):
        found.stage.prepare(found.params, found.mesh, lambda: False)
        for evaluator in found.stage.evaluators(found.mesh):
            # What it yields is for metric writers; the table it prints is for people.
            collections.deque(evaluator.run(found.params, found.step, found.run, target), maxlen=0)
