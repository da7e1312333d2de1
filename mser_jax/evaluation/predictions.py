"""predictions.parquet: what every utterance was answered, beside the results.json whose figures it explains.

One record an utterance × adaptation: id, corpus, language, speaker, reference (canonical emotion, "" unknown), adapt,
answer ("" names no label) and probabilities (float32 list in the order of the label space, as they were scored). The
file's metadata hold `label_space`, `scoring`, `checkpoint` and `step` as JSON under the key b"mser_jax".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from mser_jax import storage

FILE = "predictions.parquet"
_TEXT = ("id", "corpus", "language", "speaker", "reference", "adapt", "answer")
_KEY = b"mser_jax"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a file holds.

    columns: str arrays [n] of id, corpus, language, speaker, reference, adapt, answer.
    probabilities: float32 [n, labels]. facts: `label_space`, `scoring`, `checkpoint`, `step`.
    """

    columns: Mapping[str, np.ndarray]
    probabilities: np.ndarray
    facts: Mapping[str, Any]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def where(self, keep: np.ndarray) -> Predictions:
        """Those of the positions or bools `keep`."""
        columns = {name: values[keep] for name, values in self.columns.items()}
        return Predictions(columns, self.probabilities[keep], self.facts)


def write(
    directory: epath.PathLike,
    answers: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
) -> epath.Path:
    """Write `directory`/predictions.parquet whole or not at all; return its path.

    Args:
      directory: local or gs://.
      answers: {adaptation: probabilities [n, labels]}; a row of zeros names no label.
      columns: id, corpus, language, speaker and emotion, str [n].
      facts: with `label_space`; see Predictions.
    """
    labels = np.array([*facts["label_space"], ""])
    parts: dict[str, list[Any]] = {name: [] for name in (*_TEXT, "probabilities")}
    for adapt, probabilities in answers.items():
        best = np.where(probabilities.any(-1), probabilities.argmax(-1), len(labels) - 1)
        told = {name: columns[name] for name in ("id", "corpus", "language", "speaker")}
        told |= {"reference": columns["emotion"], "adapt": np.full(len(best), adapt), "answer": labels[best]}
        for name, values in told.items():
            parts[name].extend(values.tolist())
        parts["probabilities"].extend(probabilities.astype(np.float32).tolist())
    schema = pa.schema(
        [*((name, pa.string()) for name in _TEXT), ("probabilities", pa.list_(pa.float32()))],
        metadata={_KEY: json.dumps(dict(facts), ensure_ascii=False)},
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(parts, schema=schema), sink, compression="zstd")
    path = epath.Path(directory) / FILE
    storage.replace(path, sink.getvalue().to_pybytes())
    return path


def read(directory: epath.PathLike) -> Predictions:
    """Read what `write` wrote below `directory`.

    Raises:
      ValueError: there is none, or it is no such file.
    """
    path = epath.Path(directory) / FILE
    if not path.exists():
        raise ValueError(f"{path} is not there: an evaluation of this version writes it beside results.json")
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        facts = json.loads(table.schema.metadata[_KEY])
        columns = {name: np.array(table[name].to_pylist(), str) for name in _TEXT}
        values = np.array(table["probabilities"].to_pylist(), np.float32).reshape(-1, len(facts["label_space"]))
        if len(values) != table.num_rows:
            raise ValueError(f"{values.size} probabilities for {table.num_rows} utterances")
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no {FILE} of an evaluation ({type(error).__name__}: {error})") from error
    return Predictions(columns, values, facts)


def label_ids(names: Sequence[str], label_space: Sequence[str]) -> np.ndarray:
    """The index int [n] of each name in the label space, -1 outside."""
    ids = {label: i for i, label in enumerate(label_space)}
    return np.array([ids.get(str(name), -1) for name in names], np.int64)
