"""What both stages do alike: towers and data from the config, kept features, LoRA, and facts for the loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import optim, state
from mser_jax.config import DataSize
from mser_jax.data import audio
from mser_jax.models import lora
from mser_jax.models.speech_encoder import SpeechEncoderConfig
from mser_jax.stages import frozen_features, towers
from mser_jax.stages.base import Batch, BatchIterator, Params
from mser_jax.stages.frozen_features import FrozenFeatures
from mser_jax.stages.speech_data import SpeechData


def compute_dtype(config: ConfigDict) -> Any:
    """`precision.compute`, where auto is bfloat16 on accelerators and float32 on CPU."""
    config_lib.choice(config, "precision.compute", ("auto", "float32", "bfloat16"))
    name = config.precision.compute
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def trailing_silence(config: ConfigDict) -> float:
    """Seconds of silence that follow an utterance; runs that are older than the key have none."""
    return config.model.get("trailing_silence", 0.0)


def check_speech(config: ConfigDict, speech: SpeechEncoderConfig) -> None:
    """Raises ConfigError where the speech encoder cannot take what the config would feed it."""
    mix = config.model.layer_mix_init
    if mix and len(mix) != speech.num_layers + 1:
        raise config_lib.ConfigError(
            f"--config.model.layer_mix_init: {len(mix)} logits, but {speech.num_layers + 1} hidden states (layers + 1)"
        )
    longest, silence = max(config.data.length_classes), trailing_silence(config)
    if silence and speech.family == "whisper" and longest + silence > 30:
        raise config_lib.ConfigError(
            f"--config.model.trailing_silence={silence}: after clips of up to {longest} s (data.length_classes) "
            "Whisper would hear more than 30 s"
        )
    masks = config.model.spec_augment
    if speech.family != "whisper" and (masks.time_masks or masks.freq_masks):
        raise config_lib.ConfigError(
            f"--config.model.spec_augment: masks are cut into log-mel features, and {speech.family} has none; use 0"
        )


def batch_facts(batch: Batch) -> dict[str, jax.Array]:
    """The metrics of any batch: valid rows, their seconds of audio, and rows that could not be read."""
    valid = batch["valid"]
    count = valid.sum(dtype=jnp.float32)
    seconds = jnp.where(valid, batch["num_samples"], 0).sum(dtype=jnp.float32) / audio.SAMPLE_RATE
    # Rows of a training batch are invalid only where a record could not be read or decoded.
    return {"examples": count, "audio_seconds": seconds, "unreadable": valid.size - count}


class SpeechStage:
    """Base of the stages (stages/base.py). A subclass sets `_model`, its network's config, and has `_network`."""

    def __init__(self, config: ConfigDict, parts: towers.Towers, data: SpeechData, model: Any) -> None:
        self._config, self._towers, self._data, self._model = config, parts, data, model

    def _network(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network without adapters."""
        raise NotImplementedError

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network, with LoRA where the config asks for it."""
        model, options = self._network(rngs), self._config.lora
        if options.pattern:
            with config_lib.blame("lora.pattern"):
                lora.attach(model, options.pattern, rank=options.rank, alpha=options.alpha, rngs=rngs)
        return model

    def prepare(self, params: Params, mesh: Mesh, stop: Callable[[], bool]) -> None:
        """Computes the features of the frozen speech encoder that are not kept yet, where the config asks for it."""
        if self._config.data.feature_cache:
            definition = state.define(self.build)
            self._data.use_features(FrozenFeatures(self._config, self._model, definition, params, mesh, stop))

    def data_size(self) -> DataSize:
        """Examples and hours in one pass over the training data."""
        return self._data.size()

    def metadata(self) -> dict[str, Any]:
        """What evaluation needs beside the config."""
        started = towers.initialised_from(self._config)
        return {**self._data.metadata(), "architecture": towers.describe(self._towers), "pretrained": started}

    def describe(self) -> str:
        """The training mix as a table."""
        return self._data.describe()

    def batches(self, start: int, mesh: Mesh) -> BatchIterator:
        """Training batches of steps start, start + 1, …"""
        return self._data.batches(start, mesh)

    def batch_spec(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """The largest training batch."""
        return self._data.batch_spec(mesh)

    def names(self, batch: Batch) -> list[str]:
        """Ids of the utterances of a batch."""
        return self._data.names(batch)

    def _check_features(self) -> None:
        """Raises ConfigError where training from kept features would not be training without them."""
        frozen_features.check(self._config, lambda: not self._learning(frozen_features.ENCODER))

    def _learning(self, part: str) -> bool:
        """Whether anything of a part of the network learns, adapters too."""
        return any(multiplier for path, multiplier in self._multipliers.items() if path.partition("/")[0] == part)

    @functools.cached_property
    def _multipliers(self) -> Mapping[str, float]:
        with config_lib.blame("optim"):
            return optim.group_of(list(state.define(self.build).abstract), self._config.optim.groups)
