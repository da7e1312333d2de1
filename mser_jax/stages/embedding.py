"""What the speech side of either stage makes of every utterance of a table."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax import state
from mser_jax.data import sources
from mser_jax.evaluation import calibration
from mser_jax.stages import frozen_features, scoring
from mser_jax.stages.base import Params
from mser_jax.stages.speech_data import SpeechData


class SpeechEmbedder:
    """One compiled encoder, shared by the evaluators that look at what it finds."""

    def __init__(self, definition: state.ModelDefinition, data: SpeechData, mesh: Mesh) -> None:
        self._data, self._mesh = data, mesh
        self._encode = jax.jit(
            lambda params, batch: frozen_features.encode_speech(definition.merge(params), batch).embedding,
            out_shardings=NamedSharding(mesh, P()),
        )
        self._means = jax.jit(
            lambda params, batch: frozen_features.layer_means(definition.merge(params), batch),
            out_shardings=NamedSharding(mesh, P()),
        )

    def windows(self, params: Params, table: sources.MixtureTable) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [windows, E] and rows of `table` [windows] of all utterances that could be read."""
        return scoring.over_table(self._encode, params, self._data, table, self._mesh, "embedding")

    def __call__(self, params: Params, table: sources.MixtureTable) -> tuple[np.ndarray, np.ndarray]:
        """The mean over the windows of each utterance, f64 [n, E], and rows of `table` [n], increasing."""
        values, places = self.windows(params, table)
        kept, owner = scoring.by_utterance(places)
        return calibration.averaged(values, owner), kept

    def layer_means(self, params: Params, table: sources.MixtureTable) -> tuple[np.ndarray, np.ndarray]:
        """The time-means of the encoder's hidden states, f64 [n, (L + 1) · D], and rows of `table` [n], likewise.

        A pass of its own: next to nothing from kept features, else the encoder once more.
        """
        values, places = scoring.over_table(self._means, params, self._data, table, self._mesh, "layer means")
        kept, owner = scoring.by_utterance(places)
        return calibration.averaged(values, owner), kept

    def layer_means_of(self, params: Params, table: sources.MixtureTable, rows: np.ndarray) -> np.ndarray:
        """The same of the utterances `rows` of `table`, in their order.

        Raises:
            OSError: one that was read before cannot be read now.
        """
        means, found = self.layer_means(params, table)
        place = np.full(len(table), -1)
        place[found] = np.arange(len(found))
        if (place[rows] < 0).any():
            lost = table["id"][rows[place[rows] < 0]]
            raise OSError(f"{len(lost)} utterances that were read a moment ago cannot be read again, such as {lost[0]}")
        return means[place[rows]]
