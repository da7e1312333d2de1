"""Whether the embedding is agnostic of language and speaker: probes over every utterance of the corpora."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath, epy

from mser_jax.stages.base import Params
from mser_jax.stages.embedding import SpeechEmbedder
from mser_jax.stages.speech_data import SpeechData

# scikit-learn is imported when it is used: half of a program's start is its libraries.
with epy.lazy_imports():
    from mser_jax.evaluation import probes


class ProbeEvaluator:
    """Embeds all utterances, of the languages that were trained on and of those that were not; writes probes.json.

    `language` and `speaker` are balanced accuracies of cross-validated linear probes (evaluation/probes.py): the lower,
    the more the embedding keeps to the emotion. A corpus of one language or one speaker gives no figure.
    """

    name = "probes"

    def __init__(self, embedder: SpeechEmbedder, data: SpeechData) -> None:
        self._embed, self._data = embedder, data

    def run(self, params: Params, step: int, run: epath.Path, folder: epath.Path) -> Iterator[tuple[str, float]]:
        """Yields (`language` | `speaker`, balanced accuracy)."""
        table = self._data.whole_table()
        embeddings, rows = self._embed(params, table)
        language, speaker = (table[name][rows].astype(str) for name in ("primary", "speaker"))
        results: dict[str, dict[str, float]] = {}
        for name, probe in (
            ("language", lambda: probes.language_probe(embeddings, language, speaker)),
            ("speaker", lambda: probes.speaker_probe(embeddings, speaker)),
        ):
            try:
                results[name] = probe()
            except ValueError as error:
                logging.warning("No %s probe: %s", name, error)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "probes.json").write_text(
                json.dumps({"checkpoint": str(run), "step": step, **results}, indent=2, allow_nan=False)
            )
        for name, result in results.items():
            yield name, result["balanced_accuracy"]
