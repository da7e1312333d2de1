"""The speech side of a stage 1 run, from which stage 2 starts (`config.init_from`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.checkpoint import Checkpoints, difference
from mser_jax.compatibility import shown
from mser_jax.evaluation import zero_shot
from mser_jax.models import lora
from mser_jax.models.speech_reader import SpeechReader
from mser_jax.parallel import sharding
from mser_jax.run import locate
from mser_jax.stages import exposure
from mser_jax.stages.alignment import Alignment
from mser_jax.stages.base import Params

# What decides the meaning of those parameters beside their shapes.
_SAME = ("num_layers", "num_queries", "width", "num_heads", "mlp_width")


def is_taken(path: str) -> bool:
    """Whether a parameter of this path comes from stage 1."""
    return path.partition("/")[0] in SpeechReader.PARTS


class Stage1Run:
    """A checkpoint of a stage 1 run: the one that is named, else its newest."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError where there is none, or it is of another stage; CheckpointError where it is damaged."""
        where = locate(path, what="--config.init_from")
        self._checkpoints = Checkpoints(where.checkpoints)
        if self._checkpoints.latest is None:
            raise config_lib.ConfigError(f"--config.init_from={path}: no checkpoint below {where.checkpoints}")
        self.workdir = os.fspath(where.run)
        self.step = self._checkpoints.latest if where.step is None else where.step
        self._metadata = self._checkpoints.metadata(self.step)
        self._config = config_lib.from_dict(self._metadata["config"])
        if self._config.stage != "alignment":
            raise config_lib.ConfigError(
                f"--config.init_from={path}: a run of {self._config.stage!r}, expected one of stage 1, 'alignment'"
            )

    @property
    def architecture(self) -> Mapping[str, Any]:
        """Of its speech encoder (towers.describe)."""
        return {"speech_encoder": self._metadata["architecture"]["speech_encoder"]}

    @property
    def trained_on(self) -> Mapping[str, list[str]]:
        """Corpora and languages that it heard."""
        return self._metadata["trained_on"]

    @property
    def pretrained_models(self) -> Mapping[str, str]:
        """What its own towers started from (exposure.models)."""
        known = self._metadata.get("pretrained_models")
        return exposure.models(self._config) if known is None else known

    def load(self, config: ConfigDict, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """Its values of the leaves in `abstract` {path: shape, dtype, sharding}.

        Adapters that stage 1 did not have are not among them.

        Raises:
            ConfigError: names every option that differs, and the first leaves that do not fit.
        """
        saved = {path: leaf for path, leaf in self._shapes().items() if is_taken(path)}
        wanted = {
            path: leaf
            for path, leaf in abstract.items()
            if is_taken(path) and (path in saved or not lora.is_adapter(path))
        }
        leaves, options = difference(wanted, saved), self._options(config)
        if leaves or options:
            # Where leaves differ, any of these may be why.
            options += [line for line in self._differing(config) if leaves and line not in options]
            hint = ""
            if any(lora.is_adapter(path) for path in saved.keys() - wanted.keys()):
                hint = f"\nIt has adapters: lora.pattern must match them too, its own was {self._config.lora.pattern!r}"
            raise config_lib.ConfigError(
                f"--config.init_from={self.workdir} (step {self.step}) does not fit this network:"
                + "".join(f"\n  {line}" for line in options)
                + shown(leaves)
                + hint
            )
        logging.info("%d leaves from %s, step %d", len(wanted), self.workdir, self.step)
        if "frozen" not in self._metadata:
            return self._checkpoints.restore_params(wanted, self.step, partial=True)
        stage = Alignment(self._config, self._metadata)
        params = self._whole(stage, next(iter(wanted.values())).sharding.mesh)
        return {path: jax.device_put(params[path], leaf.sharding) for path, leaf in wanted.items()}

    def anchors(self, labels: Sequence[str], languages: Sequence[str], mesh: Mesh) -> np.ndarray:
        """Where its text tower puts the prompts of each label: unit-norm f64 [labels, embed_dim]."""
        stage = Alignment(self._config, self._metadata)
        prompted = stage.scorer(labels, languages=languages, mesh=mesh).embed_prompts(self._whole(stage, mesh))
        return zero_shot.label_anchors(prompted, labels)

    def _options(self, config: ConfigDict) -> list[str]:
        """A line for each option that differs, of those that parameters' shapes do not tell."""
        ours, theirs = config.model, self._config.model
        pairs = {f"model.qformer.{name}": (ours.qformer[name], theirs.qformer[name]) for name in _SAME}
        pairs["model.frame_pool"] = ours.frame_pool, theirs.frame_pool
        pairs["model.trailing_silence"] = tuple(model.get("trailing_silence", 0.0) for model in (ours, theirs))
        if any(lora.is_adapter(path) for path in self._shapes() if is_taken(path)):
            # What an adapter adds is multiplied with it, so another one would change what stage 1 learned.
            scales = (c.lora.alpha / max(c.lora.rank, 1) if c.lora.pattern else None for c in (config, self._config))
            pairs["lora.alpha / lora.rank"] = tuple(scales)
        return [f"{name}: {a!r} here, {b!r} in stage 1" for name, (a, b) in pairs.items() if a != b]

    def _differing(self, config: ConfigDict) -> list[str]:
        """A line for each key of `model` and `lora` that both configs have with another value."""
        pairs = [(f"{name}.{key}", value, dict(config_lib.leaves(self._config[name])))
                 for name in ("model", "lora") for key, value in config_lib.leaves(config[name])]  # fmt: skip
        return [f"{key}: {value!r} here, {theirs[key.partition('.')[2]]!r} in stage 1" for key, value, theirs in pairs
                if theirs.get(key.partition(".")[2], value) != value]  # fmt: skip

    def _shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        if "frozen" not in self._metadata:
            return self._checkpoints.shapes(self.step)
        return state.define(Alignment(self._config, self._metadata).build).abstract

    def _whole(self, stage: Alignment, mesh: Mesh) -> Params:
        """All parameters, of an adapters-only checkpoint too."""
        definition = state.define(stage.build)
        abstract = sharding.placed(definition.abstract, mesh)

        def frozen(wanted: dict[str, jax.ShapeDtypeStruct]) -> state.Flat:
            return state.initial(definition, self._config.seed, wanted, stage.pretrained(abstract))

        return self._checkpoints.restore_params(abstract, self.step, frozen)
