"""Embeddings of every utterance of a table, by the speech tower of stage 1."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax import state
from mser_jax.data import sources
from mser_jax.stages import frozen_features, scoring
from mser_jax.stages.base import Params
from mser_jax.stages.speech_data import SpeechData


class SpeechEmbedder:
    """One compiled encoder, shared by the evaluators that look at its embeddings."""

    def __init__(self, definition: state.ModelDefinition, data: SpeechData, mesh: Mesh) -> None:
        self._data, self._mesh = data, mesh
        self._encode = jax.jit(
            lambda params, batch: frozen_features.encode_speech(definition.merge(params), batch).embedding,
            out_shardings=NamedSharding(mesh, P()),
        )

    def __call__(self, params: Params, table: sources.MixtureTable) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [n, E] and rows of `table` [n] of all utterances that could be read."""
        return scoring.over_table(self._encode, params, self._data, table, self._mesh, "embedding")
