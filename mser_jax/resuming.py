"""Where a run starts: from its own newest checkpoint, if model and data are still those, or from the beginning."""

from __future__ import annotations

from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from mser_jax import compatibility, state
from mser_jax import config as config_lib
from mser_jax.checkpoint import Checkpoints
from mser_jax.compatibility import CheckpointMismatch
from mser_jax.data import fingerprint


def start(checkpoints: Checkpoints, program: Any, config: ConfigDict, metadata: dict[str, Any]) -> state.TrainState:
    """Restore the own checkpoint if there is one, else pretrained weights where the config names them, else scratch.

    Args:
        checkpoints: of the run.
        program: a `train.Program`.
        config: of the run.
        metadata: what its checkpoints remember from now on.

    Raises:
        CheckpointMismatch: the checkpoint is of another model; names the keys of the config that changed.
        CheckpointError: none can be read.
        ConfigError: the data changed since, and that is not allowed.
    """
    abstract, stage = program.abstract, program.stage
    if checkpoints.latest is None:
        logging.info("Creating parameters and optimiser state")
        return state.create(program.init, abstract, stage.pretrained(abstract.params))

    def frozen(wanted: dict[str, jax.ShapeDtypeStruct]) -> state.Flat:
        return state.initial(program.definition, config.seed, wanted, stage.pretrained(abstract.params))

    told: dict[str, Any] = {}

    def check(saved: dict[str, Any]) -> None:
        told.update(saved)
        _refuse_changed_data(checkpoints, config, saved, metadata)

    try:
        restored = checkpoints.resume(abstract, frozen, check)
    except CheckpointMismatch as error:
        raise compatibility.explained(error, told, metadata) if told else error from error
    before = config_lib.from_dict(told["config"])
    for change in config_lib.changes(before, config_lib.from_dict(config.to_dict())):
        logging.warning("The checkpoint was written with another config.%s", change)
    logging.info("Resuming at step %d of %d", int(restored.step), program.total_steps)
    return restored


def _refuse_changed_data(
    checkpoints: Checkpoints, config: ConfigDict, saved: dict[str, Any], metadata: dict[str, Any]
) -> None:
    changed = fingerprint.changes(saved.get("fingerprints", {}), metadata.get("fingerprints", {}))
    if changed and not config.train.allow_changed_data:
        raise config_lib.ConfigError(
            f"The data changed since {checkpoints.directory} was written: {'; '.join(changed)}. Bring the data of then "
            "back, begin in another --workdir, or go on with --config.train.allow_changed_data=True"
        )
    for line in changed:
        logging.warning("The data changed since the checkpoint was written. %s", line)
