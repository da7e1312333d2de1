"""Embeddings of every utterance of a table, by the speech tower of stage 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from mser_jax import state
from mser_jax.data import device, sources
from mser_jax.stages import frozen_features
from mser_jax.stages.base import Params
from mser_jax.stages.speech_data import SpeechData


class SpeechEmbedder:
    """One compiled encoder, shared by the evaluators that look at its embeddings."""

    def __init__(self, definition: state.ModelDefinition, data: SpeechData, mesh: Mesh) -> None:
        self._data, self._mesh = data, mesh
        self._whole = NamedSharding(mesh, P())
        self._encode = jax.jit(
            lambda params, batch: frozen_features.encode_speech(definition.merge(params), batch).embedding,
            out_shardings=self._whole,
        )

    def __call__(self, params: Params, table: sources.MixtureTable) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [n, E] and rows of `table` [n] of all utterances that could be read."""
        parts: list[np.ndarray] = []
        places: list[np.ndarray] = []
        wanted = ("record", "valid", *frozen_features.INPUTS)
        with self._data.evaluation_batches(table, self._mesh) as batches:
            progress = tqdm(batches, total=len(batches), desc="embedding", unit="batch", disable=None, leave=False)
            for host in progress:
                batch = device.to_device({key: value for key, value in host.items() if key in wanted}, self._mesh)
                record = jax.device_put(jnp.where(batch["valid"], batch["record"], -1), self._whole)
                record = np.asarray(jax.device_get(record))
                parts.append(np.asarray(self._encode(params, batch))[record >= 0])
                places.append(record[record >= 0])
        return np.concatenate(parts), np.concatenate(places)
