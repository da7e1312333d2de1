"""Several corpora as one frozen table of records, and the way from a row of it to the stored example."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow
from tensorflow_datasets.proto import tf_example_pb2

from mser_jax import storage
from mser_jax.corpora import label_map
from mser_jax.corpora.emotions import EMOTIONS
from mser_jax.corpora.shard_cache import RemoteRecords
from mser_jax.data import identity
from mser_jax.data.text import hash31

TEXT_COLUMNS = (
    *("id", "language", "corpus", "speaker", "gender", "age", "emotion_native", "emotion"),
    *("transcript", "parallel_id", "domain", "split"),
)
# Primary subtags that name no language: none given, undetermined, several, none at all (ISO 639-2).
UNKNOWN_LANGUAGES = {"", "und", "mul", "zxx", "mis"}
# As records call them (corpora/record.py).
_SPLITS = ("train", "validation", "test")
# Of what is scored: whatever a corpus holds out for it.
AUTO_SPLIT = "auto"
NUMBER_COLUMNS = ("duration_s", "pitch_hz", "loudness_db", "rate")


class Prepared(Protocol):
    """A corpus on disk, as `corpora.registry.open_corpus` returns it."""

    name: str
    spec: str
    folder: str
    index: pyarrow.Table
    source: Any
    place: str
    own_corpus: str


@dataclasses.dataclass(frozen=True)
class Source:
    """One corpus of a mixture: its name, the spec it came from, its weight, its folder and its data source.

    own_corpus: as of corpora.registry.PreparedCorpus.
    """

    name: str
    spec: str
    weight: float
    folder: str
    data: Any = dataclasses.field(repr=False, compare=False)
    own_corpus: str = ""


@dataclasses.dataclass(frozen=True)
class Vocabularies:
    """Integer ids of a run: the position in each sorted tuple, -1 for what is not in it, as what is unknown."""

    languages: tuple[str, ...]
    speakers: tuple[str, ...]
    domains: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MixtureTable:
    """Every record of a mixture; row = `record` in the batches.

    columns: numpy [n] each. TEXT_COLUMNS (object arrays of str), NUMBER_COLUMNS (float64, NaN unknown), and
      `source` (int32, index in `sources`), `position` (int64, row in that source), `primary` (primary
      language subtag, lower case), `emotion_id` (int32, -1 unknown), `parallel` (int32 hash of corpus and
      parallel_id, -1 none).
    removed: (filter, number of records it removed), in the order the filters were applied.
    """

    sources: tuple[Source, ...]
    columns: dict[str, np.ndarray] = dataclasses.field(repr=False)
    removed: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.columns["position"])

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return float(np.nansum(self["duration_s"])) / 3600

    def relabelled(self, labels: Mapping[str, str]) -> MixtureTable:
        """Return the table with the emotions that `labels` (of label_map.read) gives to its native labels."""
        pairs = zip(self["emotion_native"].tolist(), self["emotion"].tolist(), strict=True)
        decided = {pair: label_map.emotion(pair[0], labels, pair[1]) for pair in set(pairs)}
        pairs = zip(self["emotion_native"].tolist(), self["emotion"].tolist(), strict=True)
        emotion = np.array([decided[pair] for pair in pairs], object)
        return dataclasses.replace(
            self, columns=self.columns | {"emotion": emotion, "emotion_id": _ids(emotion, EMOTIONS)}
        )

    def of_source(self, number: int) -> MixtureTable:
        """The rows of source `number` alone; all of its records where nothing was filtered."""
        columns = {name: values[self["source"] == number] for name, values in self.columns.items()}
        columns["source"] = np.zeros_like(columns["source"])
        return MixtureTable((self.sources[number],), columns)

    def unlabelled(self) -> list[dict[str, Any]]:
        """Count the records without a canonical emotion: {"corpus", "language", "n", "labels": {native label: count}}.

        One entry a corpus × language that has any, most frequent label first ("" where a record has none).
        """
        counts: dict[tuple[str, str], collections.Counter[str]] = {}
        names = (self[name][self["emotion_id"] < 0].tolist() for name in ("corpus", "language", "emotion_native"))
        for corpus, language, native in zip(*names, strict=True):
            counts.setdefault((corpus, language), collections.Counter())[native] += 1
        return [
            {"corpus": corpus, "language": language, "n": labels.total(), "labels": dict(labels.most_common())}
            for (corpus, language), labels in sorted(counts.items())
        ]

    @functools.cached_property
    def vocabularies(self) -> Vocabularies:
        """Languages (primary subtags), speakers and domains of this table, sorted; what is unknown is in none.

        Else all that is unknown would be one language, or one person, to whoever learns to tell them.
        """
        names = [
            tuple(sorted(set(self[name].tolist()) - unknown))
            for name, unknown in (("primary", UNKNOWN_LANGUAGES), ("speaker", {""}), ("domain", {""}))
        ]
        return Vocabularies(*names)

    def filter(
        self,
        *,
        include_languages: str = "",
        exclude_languages: str = "",
        split: str = "",
        emotions: Sequence[str] | None = EMOTIONS,
    ) -> MixtureTable:
        """The rows that pass every filter.

        include_languages, exclude_languages: comma lists of BCP-47 ranges ("zh" matches "zh-TW", "zh-TW" only
          itself and what refines it; RFC 4647 basic filtering); "" = all, none.
        split: comma list; records of corpora without splits pass any. AUTO_SPLIT is "test", and "validation" of the
          corpora that have no test split.
        emotions: canonical names kept; None keeps all, unlabelled records too.

        Raises:
            ValueError: an emotion is not canonical, or nothing is left (tells what each filter removed).
        """
        if wrong := [name for name in emotions or () if name not in EMOTIONS]:
            raise ValueError(f"emotions {wrong}: expected some of {EMOTIONS}")
        wanted, unwanted, splits = (_items(text) for text in (include_languages, exclude_languages, split))
        tests: list[tuple[str, np.ndarray]] = []
        if wanted:
            tests.append((f"include_languages={include_languages}", _matches(self["language"], wanted)))
        if unwanted:
            tests.append((f"exclude_languages={exclude_languages}", ~_matches(self["language"], unwanted)))
        if splits:
            tests.append((f"split={split}", self._of_splits(splits)))
        if emotions is not None:
            ids = [EMOTIONS.index(name) for name in emotions]
            tests.append((f"emotions={','.join(emotions)}", np.isin(self["emotion_id"], ids)))
            if unknown := label_map.label_counts(self.unlabelled()):
                unknown = f"no canonical emotion ({unknown}; map them in a labels.toml, see data.labels)"
                tests.insert(-1, (unknown, self["emotion_id"] >= 0))
        keep = np.ones(len(self), bool)
        removed = list(self.removed)
        for name, passed in tests:
            removed.append((name, int((keep & ~passed).sum())))
            keep &= passed
        if not keep.any():
            counts = "\n".join(f"  {name}: removed {count}" for name, count in removed)
            raise ValueError(
                f"No records left of {len(self)} in {[source.spec for source in self.sources]}:\n{counts}\n"
                f"Languages there: {sorted(set(self['language']))}; splits: {sorted(set(self['split']))}."
            )
        columns = {name: values[keep] for name, values in self.columns.items()}
        return dataclasses.replace(self, columns=columns, removed=tuple(removed))

    def lacking(self, ranges: str) -> list[str]:
        """List those of a comma list of language ranges that no record is in."""
        tags = np.array(sorted(set(self["language"].tolist())), object)
        return [item for item in _items(ranges) if not _matches(tags, [item]).any()]

    def check_names(self, *, include_languages: str = "", split: str = "") -> None:
        """Refuse what is probably a slip: a language or a split that is not there.

        The three usual splits need not be there, nor any split in corpora that have none.

        Raises:
            ValueError: names it, and what there is.
        """
        if lacking := self.lacking(include_languages):
            raise ValueError(
                f"include_languages={include_languages}: no record is in {', '.join(lacking)}; {self.languages_there()}"
            )
        there = set(self["split"].tolist())
        if unknown := [name for name in _items(split) if name not in {*there, *_SPLITS, AUTO_SPLIT}]:
            found = ", ".join(sorted(there - {""})) or "none"
            raise ValueError(f"split={split}: no record is in {', '.join(unknown)}; splits there: {found}")

    def languages_there(self) -> str:
        """Say which languages the records are in, for messages."""
        return f"languages there: {', '.join(sorted(set(self['language'].tolist())))}"

    def _of_splits(self, splits: Sequence[str]) -> np.ndarray:
        """bool [n]: which records are of one of the splits, or of a corpus without splits."""
        mine = self["split"].astype(str)
        if splits != [AUTO_SPLIT]:
            return np.isin(mine, ["", *splits])
        tested = self["source"][mine == "test"]
        return (mine == "") | (mine == "test") | ((mine == "validation") & ~np.isin(self["source"], tested))

    def labels(self, vocabularies: Vocabularies | None = None) -> dict[str, np.ndarray]:
        """int32 [n] columns of the batch: emotion, language, speaker, domain, parallel_id.

        Ids are positions in `vocabularies` (default: this table's own); pass those of the training mix when
        evaluating.
        """
        vocabularies = vocabularies or self.vocabularies
        return {
            "emotion": self["emotion_id"],
            "language": _ids(self["primary"], vocabularies.languages),
            "speaker": _ids(self["speaker"], vocabularies.speakers),
            "domain": _ids(self["domain"], vocabularies.domains),
            "parallel_id": self["parallel"],
        }


def load_table(specs: str, data_dir: str, labels: str = "") -> MixtureTable:
    """Opens (on first use: builds) every corpus of a comma list of specs and joins them, unfiltered.

    `labels`: path of a labels.toml that decides over the emotions stored in the records ("": none).
    """
    from mser_jax.corpora import registry  # Workers import this module and never build a corpus.

    own = label_map.read(storage.absolute(labels)) if labels else {}
    table = join([(registry.open_corpus(spec, data_dir), weight) for spec, weight in registry.parse_specs(specs)])
    return table.relabelled(own) if own else table


def join(corpora: Sequence[tuple[Prepared, float]]) -> MixtureTable:
    """One table over (corpus, weight) pairs, rows in the order of the corpora.

    Raises:
        ValueError: an index lacks a column, or does not have one row a record, or one folder is given twice.
    """
    identity.refuse_twice([prepared for prepared, _ in corpora])
    parts = []
    for number, (prepared, _) in enumerate(corpora):
        missing = [name for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS) if name not in prepared.index.column_names]
        if missing or len(prepared.index) != len(prepared.source):
            raise ValueError(
                f"{prepared.spec}: index with {len(prepared.index)} rows, columns missing: {missing}; data "
                f"source with {len(prepared.source)} records. The corpus on disk is damaged or of an older "
                "version: delete it and it is built again."
            )
        columns: dict[str, np.ndarray] = {name: _strings(prepared.index[name]) for name in TEXT_COLUMNS}
        for name in NUMBER_COLUMNS:
            columns[name] = prepared.index[name].to_numpy().astype(np.float64)
        columns["source"] = np.full(len(prepared.index), number, np.int32)
        columns["position"] = np.arange(len(prepared.index))
        parts.append(columns)
    identity.separate([prepared for prepared, _ in corpora], parts)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    own = [bool(prepared.place) for prepared, _ in corpora]
    identity.check_mix(joined, [prepared.spec for prepared, _ in corpora], own)
    joined["primary"] = _map_unique(joined["language"], lambda tag: tag.split("-")[0].lower(), object)
    joined["emotion_id"] = _ids(joined["emotion"], EMOTIONS)
    # Corpora number their sentences alike, so a parallel_id means something within its corpus only.
    keys = np.where(joined["parallel_id"] == "", "", joined["corpus"] + "\0" + joined["parallel_id"])
    joined["parallel"] = _map_unique(keys, lambda key: hash31(key) if key else -1, np.int32)
    sources = (Source(p.name, p.spec, weight, p.folder, p.source, p.own_corpus) for p, weight in corpora)
    return MixtureTable(tuple(sources), joined)


class RecordSource:
    """Random access from a row of a MixtureTable to what is stored. Picklable; safe in threads."""

    def __init__(self, table: MixtureTable) -> None:
        self._data = [source.data for source in table.sources]
        self._names = [source.name for source in table.sources]
        # TFDS parses and decodes all 23 fields (200 µs a record); all but the audio are in the table already,
        # so the ArrayRecord below it is read, and one field parsed (8 µs).
        self._raw = [
            getattr(data, "data_source", None) if hasattr(data, "dataset_info") else None for data in self._data
        ]
        self._source, self._position = table["source"], table["position"]
        self._ids = table["id"]
        for number, raw in enumerate(self._raw):
            if isinstance(raw, RemoteRecords):
                self._raw[number] = raw.local(self._position[self._source == number])

    def __len__(self) -> int:
        return len(self._source)

    def __getstate__(self) -> dict[str, Any]:
        # A worker only reads audio: the TFDS object above a raw source stays here.
        state = dict(self.__dict__)
        state["_data"] = [None if raw is not None else data for raw, data in zip(self._raw, self._data, strict=True)]
        return state

    def name(self, row: int) -> str:
        """The record's id, for messages."""
        return str(self._ids[row])

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The whole stored example (in the process that opened the corpora)."""
        return self._data[self._source[row]][int(self._position[row])]

    def audio(self, row: int) -> bytes:
        """The encoded audio of one record.

        One at a time: reading a batch at once takes array_record twice the CPU time on a local disk, and one
        bad record spoils it. Threads (ReadOptions) hide the latency of remote storage.

        Raises:
            StorageError: it cannot be read, attempt after attempt.
        """
        number, position = int(self._source[row]), int(self._position[row])
        data = self._data[number] if self._raw[number] is None else self._raw[number]
        found = storage.retried(lambda: data[position], f"Record {self.name(row)} of {self._names[number]}")
        return found["audio"] if self._raw[number] is None else _audio_field(found)


def _audio_field(record: bytes) -> bytes:
    """The encoded audio of a serialised example; empty where it has none."""
    value = tf_example_pb2.Example.FromString(record).features.feature["audio"].bytes_list.value
    return value[0] if value else b""


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _matches(tags: np.ndarray, ranges: Sequence[str]) -> np.ndarray:
    """bool [n]: RFC 4647 basic filtering of language tags by ranges."""
    lower = [item.lower() for item in ranges]
    return _map_unique(tags, lambda tag: any(f"{tag.lower()}-".startswith(f"{item}-") for item in lower), bool)


def _strings(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Object array of str in which equal values are one object: small when pickled to workers."""
    coded = column.combine_chunks().dictionary_encode()
    return np.array(coded.dictionary.to_pylist(), object)[coded.indices.to_numpy(zero_copy_only=False)]


def _map_unique(values: np.ndarray, function: Any, dtype: Any) -> np.ndarray:
    """`function` of every value, called once for each distinct one."""
    table = {value: function(value) for value in set(values.tolist())}
    return np.array([table[value] for value in values.tolist()], dtype)


def _ids(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    index = {name: i for i, name in enumerate(names)}
    return np.array([index.get(value, -1) for value in values.tolist()], np.int32)
