"""Corpora by name: from a spec in the config to records that can be read."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet

# Imported when first used: `corpora` does not depend on what makes a corpus.
BUILDERS = {
    "m5ser_mini": "mser_jax.m5ser.mini:M5serMini",
    "speech_folder": "mser_jax.corpora.speech_folder:SpeechFolder",
}


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """A corpus on disk, ready to be read.

    name: short, for tables and file names. spec: what it was opened by. folder: where the records lie.
    index: one row a record, in the order of `source`: all Utterance fields but audio, and pitch_hz,
      loudness_db, rate.
    source: TFDS data source, len() and [row] -> dict for `record.Utterance.from_example`. Of a corpus on `gs://`
      its `data_source` is a shard_cache.RemoteRecords.
    """

    name: str
    spec: str
    folder: str
    index: pa.Table
    source: Any


def open_corpus(spec: str, data_dir: str = "") -> PreparedCorpus:
    """Opens a corpus, and builds it first where it is not on disk yet (progress on stderr).

    Args:
      spec: a name of BUILDERS, with ":argument" where it takes one: "m5ser_mini", "speech_folder:DIR".
      data_dir: where records are kept; "" = TFDS's default ($TFDS_DATA_DIR, else ~/tensorflow_datasets).

    Raises:
      ValueError: unknown name (nearest valid one and all of them named), or a wrong argument.
      FileNotFoundError, TooManySkippedError, RuntimeError: as the builder says.
    """
    corpus = corpus_builder(spec, data_dir)
    corpus.prepare()
    source = corpus.data_source()
    index = pa.parquet.read_table(pa.BufferReader(corpus.index_path.read_bytes()), pre_buffer=False)
    if len(source) != len(index):
        raise RuntimeError(
            f"{corpus.data_dir}: {len(source)} records but {len(index)} rows in the index. Delete the folder"
            " and build again"
        )
    return PreparedCorpus(corpus.short_name, spec, str(corpus.data_dir), index, source)


def corpus_builder(spec: str, data_dir: str = "") -> Any:
    """The CorpusBuilder of a spec, nothing built yet. Errors as in `open_corpus`."""
    name, _, argument = spec.partition(":")
    module, _, attribute = _import_path(name).partition(":")
    return getattr(importlib.import_module(module), attribute).from_argument(argument, data_dir)


def parse_specs(specs: str) -> list[tuple[str, float]]:
    """ "a,b@2.5,speech_folder:/x" -> [("a", 1.0), ("b", 2.5), ("speech_folder:/x", 1.0)].

    Weights are relative. A folder's name may hold an @ that no number follows, but no comma.

    Raises:
      ValueError: nothing given, an unknown name, a weight that is not a positive number, or a corpus twice.
    """
    parsed: list[tuple[str, float]] = []
    for text in filter(None, (part.strip() for part in specs.split(","))):
        spec, weight = _split_weight(text)
        _import_path(spec.partition(":")[0])
        if spec in dict(parsed):
            raise ValueError(f"corpora {specs!r}: {spec!r} is given twice; give it once with a weight, as {spec}@2")
        parsed.append((spec, weight))
    if not parsed:
        raise ValueError(f"corpora {specs!r}: expected at least one of {', '.join(sorted(BUILDERS))}")
    return parsed


def _split_weight(text: str) -> tuple[str, float]:
    spec, at, tail = text.rpartition("@")
    if not at:
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        if ":" in spec:  # an @ in a folder's name
            return text, 1.0
        raise ValueError(f"corpus {text!r}: weight {tail!r} is not a number; write {spec}@2.5") from None
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"corpus {text!r}: weight {tail} must be a positive number")
    return spec, weight


def _import_path(name: str) -> str:
    if name in BUILDERS:
        return BUILDERS[name]
    near = difflib.get_close_matches(name, BUILDERS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(sorted(BUILDERS))
    raise ValueError(f"unknown corpus {name!r}.{hint} Known: {known} (your recordings: speech_folder:DIR)")
