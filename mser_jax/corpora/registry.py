"""Corpora by name: from a spec in the config to records that can be read."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import os
from typing import Any

import pyarrow as pa

from mser_jax import storage
from mser_jax.corpora import public

# Imported when first used: `corpora` does not depend on what makes a corpus. A public corpus is a module of its name.
BUILDERS = {
    "m5ser": "mser_jax.m5ser.dataset:M5ser",
    "m5ser_mini": "mser_jax.m5ser.mini:M5serMini",
    "speech_folder": "mser_jax.corpora.speech_folder:SpeechFolder",
    **{name: f"{public.__name__}.{name}:" for name in public.NAMES},
}


# Corpora that are a folder of the user's.
_IN_PLACE = ("speech_folder:", "m5ser:")


@dataclasses.dataclass(frozen=True)
class PreparedCorpus:
    """A corpus on disk, ready to be read.

    name: short, for tables and file names. spec: what it was opened by. folder: where the records lie.
    index: one row a record, in the order of `source`: all Utterance fields but audio, and pitch_hz,
      loudness_db, rate.
    source: TFDS data source, len() and [row] -> dict for `record.Utterance.from_example`. Of a corpus on `gs://`
      its `data_source` is a shard_cache.RemoteRecords.
    place: the folder that was opened, absolute and without links; "" of corpora that have a name instead.
    own_corpus: the corpus that recordings are of which the folder gave its name; "" where there are none.
    """

    name: str
    spec: str
    folder: str
    index: pa.Table
    source: Any
    place: str = ""
    own_corpus: str = ""


def open_corpus(spec: str, data_dir: str = "") -> PreparedCorpus:
    """Opens a corpus, and builds it first where it is not on disk yet (progress on stderr).

    Args:
      spec: a name of BUILDERS, with ":argument" where it takes one: "m5ser_mini", "speech_folder:DIR", or
        "ravdess:speaker-1" for another split of a public corpus (folds.py).
      data_dir: where records are kept; "" = TFDS's default ($TFDS_DATA_DIR, else ~/tensorflow_datasets).

    Raises:
      ValueError: unknown name (nearest valid one and all of them named), or a wrong argument.
      FileNotFoundError, TooManySkippedError, RuntimeError: as the builder says; a public corpus is not built here but
        by tools/prepare_corpus.py, and the first of them says how.
    """
    corpus = corpus_builder(spec, data_dir)
    corpus.prepare()
    source = corpus.data_source()
    index = corpus.index()
    if len(source) != len(index):
        raise RuntimeError(
            f"{corpus.data_dir}: {len(source)} records but {len(index)} rows in the index. Delete the folder"
            " and build again"
        )
    return PreparedCorpus(corpus.short_name, spec, str(corpus.data_dir), index, source, corpus.place, corpus.own_corpus)


def corpus_builder(
    spec: str, data_dir: str = "", source: str = "", emobox: str = "", allow_partial: bool = False
) -> Any:
    """The CorpusBuilder of a spec, nothing built yet. Errors as in `open_corpus`.

    source: the original download of a public corpus (public_corpus.py), which building needs. emobox: a clone of
    EmoBox's repository, for its folds. allow_partial: a part of the corpus will do.
    """
    name, _, argument = spec.partition(":")
    builder_class = corpus_class(name)
    given = {"source": source, "emobox": emobox, "allow_partial": allow_partial}
    given = {key: value for key, value in given.items() if value}
    if given and name not in public.NAMES:
        raise ValueError(f"corpus {name!r} takes no source, got {given}: it is made by this program or is a folder")
    data_dir = os.fspath(storage.absolute(data_dir)) if data_dir else ""
    return builder_class.from_argument(argument, data_dir, **given)


def corpus_class(name: str) -> Any:
    """The CorpusBuilder subclass of a name of BUILDERS. ValueError: unknown name."""
    module_name, _, attribute = _import_path(name).partition(":")
    module = importlib.import_module(module_name)
    if attribute:
        return getattr(module, attribute)
    return next(
        value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module_name
        and getattr(value, "name", "") == name
    )  # fmt: skip


def parse_specs(specs: str) -> list[tuple[str, float]]:
    """ "a,b@2.5,speech_folder:/x" -> [("a", 1.0), ("b", 2.5), ("speech_folder:/x", 1.0)].

    Weights are relative. A folder's name may hold an @ that no number follows (else a weight must: run@2@1), but no
    comma.

    Raises:
      ValueError: nothing given, an unknown name, a weight that is not a positive number, or a corpus twice.
    """
    parsed: dict[str, tuple[str, float]] = {}
    for text in filter(None, (part.strip() for part in specs.split(","))):
        spec, weight = _split_weight(text)
        try:
            _import_path(spec.partition(":")[0])
        except ValueError as error:
            folder = next((before for before, _ in parsed.values() if before.startswith(_IN_PLACE)), "")
            hint = f" (A comma ends a spec: no folder with one in its name can be given, {folder!r} ended there.)"
            raise ValueError(f"{error}{hint if folder else ''}") from error
        key = _key(spec)
        if key in parsed:
            raise ValueError(
                f"corpora {specs!r}: {parsed[key][0]!r} is given twice; give it once with a weight, as {spec}@2"
            )
        parsed[key] = (spec, weight)
    if not parsed:
        raise ValueError(f"corpora {specs!r}: expected at least one; `python -m mser_jax.corpora` lists them")
    return list(parsed.values())


def _key(spec: str) -> str:
    """The same for a folder however its path is written."""
    name, _, folder = spec.partition(":")
    return f"{name}:{storage.absolute(folder)}" if spec.startswith(_IN_PLACE) and folder else spec


def _split_weight(text: str) -> tuple[str, float]:
    spec, at, tail = (part.strip() for part in text.rpartition("@"))
    if not at:
        return text, 1.0
    try:
        weight = float(tail.replace("_", "?"))  # float reads 1_0 as 10
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
    raise ValueError(
        f"unknown corpus {name!r}.{hint} `python -m mser_jax.corpora` lists all {len(BUILDERS)}; your own recordings"
        " are speech_folder:DIR"
    )
