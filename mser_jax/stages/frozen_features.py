"""Features of a frozen speech encoder: computed on the mesh where they are not kept yet (data/feature_cache.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.data import audio, device, feature_build, feature_cache, pipeline
from mser_jax.data.sources import MixtureTable
from mser_jax.models.dual_encoder import DualEncoderConfig
from mser_jax.models.speech_llm import SpeechLLM
from mser_jax.models.speech_reader import Reading, SpeechReader
from mser_jax.parallel import preemption, sharding
from mser_jax.stages import towers
from mser_jax.stages.base import Batch, Params

ENCODER = "speech_encoder"
# Keys of a batch that speech is encoded from.
INPUTS = ("waveform", "states", "num_frames", "num_samples")


def encode_speech(model: SpeechReader, batch: Batch, rng: jax.Array | None = None) -> Reading:
    """Of what the batch has: kept states, else waveforms."""
    if "states" in batch:
        return model.encode_states(batch["states"], batch["num_frames"], rng=rng)
    return model.encode_speech(batch["waveform"], batch["num_samples"], rng=rng)


def layer_means(model: SpeechReader, batch: Batch) -> jax.Array:
    """The time-means of all hidden states of the encoder, normalised, side by side: f32 [B, K · (L + 1) · D].

    K as of `SpeechReader.layer_means`.
    """
    if "states" in batch:
        states = batch["states"], batch["num_frames"]
    else:
        states = model.hidden_states(batch["waveform"], batch["num_samples"])
    means = model.layer_means(*states)
    return means.reshape(means.shape[0], -1)


def soft_tokens(model: SpeechLLM, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
    """Likewise, what the LLM reads of it: [B, N, llm.width]."""
    return model.soft_tokens(encode_speech(model, batch, rng))


def check(config: ConfigDict, encoder_is_frozen: Callable[[], bool]) -> None:
    """Raises ConfigError where training from kept features would not be training without them."""
    config_lib.choice(config, "data.feature_dtype", feature_cache.DTYPES)
    if not config.data.feature_cache:
        return
    data, masks = config.data, config.model.spec_augment
    wrong = [
        name
        for name, is_wrong in {
            "data.augment.speed": data.augment.speed,
            "data.augment.gain_db": data.augment.gain_db,
            "data.augment.noise_probability": data.augment.noise_probability,
            "data.augment.random_crop": data.augment.random_crop,
            "model.spec_augment.time_masks": masks.time_masks,
            "model.spec_augment.freq_masks": masks.freq_masks,
            "speech_encoder.dropout": config.speech_encoder.dropout,
        }.items()
        if is_wrong
    ]
    if wrong:
        raise config_lib.ConfigError(
            "--config.data.feature_cache: a kept utterance is always the same, so these must be 0 (False): "
            f"{', '.join(wrong)}. configs/stage1.py:NAME,cache=auto sets them all"
        )
    if not encoder_is_frozen():
        raise config_lib.ConfigError(
            "--config.data.feature_cache: the speech encoder learns, so what it says of an utterance changes with "
            "every step. Freeze all of it, adapters too, with optim.groups=(('^speech_encoder/', 0.0), …), or train "
            "without: --config.data.feature_cache="
        )


def fingerprint(params: Params, mesh: Mesh) -> str:
    """16 hex digits over paths, shapes and values of the encoder's parameters; one of them at a time is on the host."""
    digest = hashlib.sha256()
    whole = NamedSharding(mesh, P())
    for path in sorted(params):
        if path.startswith(f"{ENCODER}/"):
            value = np.asarray(jax.device_put(params[path], whole))
            digest.update(f"{path} {value.dtype} {value.shape};".encode())
            digest.update(np.ascontiguousarray(value))
    return digest.hexdigest()[:16]


class FrozenFeatures:
    """The features of one encoder: what is kept, and the encoder to compute what is not."""

    def __init__(
        self,
        config: ConfigDict,
        model: DualEncoderConfig,
        definition: state.ModelDefinition,
        params: Params,
        mesh: Mesh,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`stop` is asked between batches while features are computed; True ends the run as a preemption does."""
        self._config, self._num_frames, self._params, self._mesh, self._stop = (
            config,
            model.num_frames,
            params,
            mesh,
            stop,
        )
        dtype = config.data.feature_dtype
        encoder = {**towers.describe({ENCODER: model.speech})[ENCODER], "frame_pool": model.frame_pool}
        if model.trailing_silence:
            encoder["trailing_silence"] = model.trailing_silence
        self._spec = feature_cache.FeatureSpec(
            weights=fingerprint(params, mesh),
            encoder=encoder,
            compute=jnp.dtype(model.dtype).name,
            max_samples=round(max(config.data.length_classes) * audio.SAMPLE_RATE),
            frame=(model.speech.num_layers + 1, model.speech.width),
            dtype=dtype,
        )

        def states(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
            states, num_frames = definition.merge(params).hidden_states(batch["waveform"], batch["num_samples"])
            return states.astype(dtype), num_frames

        self._states = jax.jit(states)

    def folder(self, table: MixtureTable, number: int) -> epath.Path:
        """Where the features of source `number` of `table` (unfiltered) are kept; computes them if they are not.

        Raises:
            ConfigError: they cannot be kept there: no room, damaged files, several processes.
            Preempted: `stop` said so; finished shards are kept.
        """
        source = table.sources[number]
        with config_lib.blame("data.feature_cache"):
            key = self._spec.key(source)
            folder = feature_cache.folder_of(source, self._config.data.feature_cache, key)
            if not feature_cache.is_complete(folder, key):
                for line in feature_cache.others(folder, key):
                    logging.warning("Features of %s, but not those of this run: %s", source.name, line)
                if jax.process_count() > 1:
                    raise config_lib.ConfigError(
                        f"--config.data.feature_cache: no features of {source.name} for this encoder in "
                        f"{folder.parent}. One process computes them and many read them: start the run once as one"
                    )
                self._build(table.of_source(number), folder, key)
        logging.info("Features of %s: %s", source.name, folder)
        return folder

    def _build(self, table: MixtureTable, folder: epath.Path, key: Mapping[str, Any]) -> None:
        parts = sharding.batch_parts(self._mesh)
        data = self._config.data
        try:
            feature_build.build(
                table, folder, key, self._encode,
                num_bytes=feature_build.estimate_bytes(table, self._spec, self._num_frames),
                batch_size=-(-self._config.evaluate.batch_size // parts) * parts,
                length_classes=feature_build.length_classes(table["duration_s"], max(data.length_classes)),
                read=pipeline.ReadOptions(num_threads=data.num_threads, prefetch=2),
                stop=self._stop,
            )  # fmt: skip
        except feature_build.Stopped:
            logging.warning("Stopped while computing features; the same command goes on from here.")
            raise preemption.Preempted(0) from None

    def _encode(self, batch: pipeline.Batch) -> tuple[np.ndarray, np.ndarray]:
        inputs = {name: batch[name] for name in ("waveform", "num_samples")}
        states, num_frames = self._states(self._params, device.to_device(inputs, self._mesh))
        return np.asarray(states), np.asarray(num_frames)
