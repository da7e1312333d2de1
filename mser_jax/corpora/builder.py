"""The TFDS builder every corpus extends: audio checked, converted once, written with its index and report."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format
from tqdm import tqdm

from mser_jax import storage
from mser_jax.corpora import acoustics, audio_check, conversion, emotions, folds, persons, record, scratch, shard_cache
from mser_jax.corpora.build_lock import build_lock, remove_leftovers, temporary_folder
from mser_jax.corpora.build_report import BuildReport
from mser_jax.corpora.raw import SPLITS, LeftOut, RawUtterance
from mser_jax.corpora.shards import SPLIT, ShardWriter

INDEX_FILE = "index.parquet"
REPORT_FILE = "report.json"
ACOUSTIC_COLUMNS = ("pitch_hz", "loudness_db", "rate")


def default_data_dir() -> str:
    """Where TFDS keeps data sets: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return os.fspath(storage.absolute(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


class TooManySkippedError(RuntimeError):
    """More of a corpus is unusable than MAX_SKIPPED allows."""


class CorpusBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC):
    """Base of every corpus.

    A subclass (named in registry.py; never defined in `__main__`: TFDS looks its module up) states

        class M5serMini(CorpusBuilder):            # TFDS name: m5ser_mini
            VERSION = tfds.core.Version("1.0.0")   # raise it when the recordings or labels change
            DESCRIPTION = "one line"

            def raw_utterances(self) -> Iterator[RawUtterance]: ...
            def expected_count(self) -> int: ...   # for the time left; 0 = unknown

    `raw_utterances` is iterated once, in one thread, in the process that builds; its order is the order of
    the records. Checks, resampling, FLAC, index, report and locking happen here, decoding and encoding in
    threads. `prepare()` leaves, in `data_path`: ArrayRecord shards, TFDS's json files, index.parquet and
    report.json. The folder takes its name only when all of them are complete.
    """

    DESCRIPTION = ""
    MAX_SKIPPED = 0.05  # share of items; above it a corpus is not what its builder takes it for
    tolerated: frozenset[str] = frozenset()  # reasons to leave an item out that do not count towards MAX_SKIPPED

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("file_format", "array_record")
        try:
            super().__init__(**kwargs)
        except json_format.ParseError as error:
            folder = kwargs.get("data_dir") or default_data_dir()
            raise ValueError(
                f"{self.name}: a json file of what is prepared below {folder} is damaged ({error}). Delete its folder"
                " and build again"
            ) from error

    @classmethod
    def from_argument(cls, argument: str, data_dir: str = "") -> CorpusBuilder:
        """Builder for `name:argument` of a corpus spec, data in `data_dir` ("" = TFDS's default).

        Raises:
          ValueError: an argument, where this corpus takes none.
        """
        if argument:
            raise ValueError(f"corpus {cls.name!r} takes no argument, got {argument!r}: write just {cls.name!r}")
        return cls(data_dir=data_dir or None)

    @abc.abstractmethod
    def raw_utterances(self) -> Iterable[RawUtterance | LeftOut]:
        """Yields every item of the corpus, in a fixed order."""

    def opened(self) -> contextlib.AbstractContextManager[Any]:
        """Entered before `raw_utterances` is called, left when the last item has been read."""
        return contextlib.nullcontext()

    def expected_count(self) -> int:
        """Number of items to come, 0 when unknown (progress then shows no time left)."""
        return 0

    def outdated(self) -> bool:
        """Tell whether what is prepared is to be built again."""
        return False

    def accept(self, report: BuildReport) -> None:
        """Refuse a build, when the last item was written, that is not the corpus; nothing of it is kept.

        Raises:
          TooManySkippedError: more than MAX_SKIPPED of the items are unusable.
          ValueError: no item.
        """
        if report.unusable > self.MAX_SKIPPED * (report.built + report.unusable):
            raise TooManySkippedError(report.explain_skipped(self.MAX_SKIPPED))
        if not report.built:
            raise ValueError(f"corpus {self.info.full_name}: no utterance at all, so nothing to train on")

    def complete(self, report: BuildReport) -> None:
        """Called when the last item was written, for what only this corpus knows of the build."""

    @property
    def short_name(self) -> str:
        """For tables and file names."""
        return self.name

    @property
    def place(self) -> str:
        """The user's folder that this corpus is, absolute, without links; "" for corpora that have a name instead."""
        return ""

    @property
    def own_corpus(self) -> str:
        """The `corpus` of utterances whose folder gave it its name; "" where there are none."""
        return ""

    @property
    def index_path(self) -> epath.Path:
        """index.parquet: a row a record, in the order of the data source."""
        return self.data_path / INDEX_FILE

    def index(self) -> pa.Table:
        """The rows of index.parquet: all Utterance fields but audio, `emobox_fold`, and ACOUSTIC_COLUMNS."""
        try:
            return pa.parquet.read_table(pa.BufferReader(self.index_path.read_bytes()), pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.index_path} is damaged ({error}). Delete its folder and build again") from error

    @property
    def report_path(self) -> epath.Path:
        """report.json of the build (see build_report.py)."""
        return self.data_path / REPORT_FILE

    def prepare(self) -> None:
        """Builds the corpus unless it is there already. Of two processes at once the second waits and reuses.

        Raises:
          TooManySkippedError: more than MAX_SKIPPED of the items are unusable.
          ValueError: an item against the schema (an id twice, an unknown split or emotion), or no item.
          Whatever `outdated` and `accept` raise.
          RuntimeError: the folder is there but incomplete.
        """
        if self.is_complete() and not self.outdated():
            return
        with build_lock(self.data_path) as check:
            if not self.is_complete() or self.outdated():  # else the process that held the lock has built it
                self._build(check)
        self.info.read_from_directory(self.data_path)

    def download_and_prepare(self, **kwargs: Any) -> None:
        """TFDS's name for `prepare`; its download and format options have no meaning here and are ignored."""
        del kwargs
        self.prepare()

    def data_source(self) -> Any:
        """The prepared records, as a TFDS data source: len() and [row] -> dict."""
        source = self.as_data_source(split=SPLIT)
        if storage.is_remote(self.data_path):
            source.data_source = shard_cache.RemoteRecords(self.info.splits[SPLIT].file_instructions)
        return source

    def is_complete(self) -> bool:
        """Whether records and index are there (the folder is renamed into place last)."""
        return self.index_path.exists()

    def _info(self) -> tfds.core.DatasetInfo:
        # Not dataset_info_from_configs: it looks for files beside the module.
        description = self.DESCRIPTION or self.name
        return tfds.core.DatasetInfo(builder=self, features=record.features(), description=description)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        raise NotImplementedError("prepare() writes the records")

    def _generate_examples(self, **kwargs: Any) -> Iterator[Any]:
        raise NotImplementedError("subclasses implement raw_utterances")

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        if isinstance(builder_config, tfds.core.BuilderConfig):
            return builder_config  # TFDS warns of every config that the class does not list
        return super()._create_builder_config(builder_config, version)

    def _build(self, check: Callable[[], None]) -> None:
        """Writes everything into a temporary folder beside the final one and renames it.

        Our own writer, as TFDS's keeps the corpus in memory, needs TensorFlow above 1 GB, and shuffles (which
        the pipeline does): here the order of the records is the order of `raw_utterances`. For `gs://`, where
        array_record cannot write and no folder has a name to take, it is built on this host and the index, by which
        it is known to be complete, uploaded last.
        """
        if storage.is_remote(self.data_path):
            storage.check(self.data_path.parent)
            self._build_remotely(check)
            return
        if self.data_path.exists() and not self.is_complete():
            raise RuntimeError(
                f"{self.data_path} is there without its {INDEX_FILE}: damaged, or not built by this program."
                " Delete the folder and build again"
            )
        temporary = temporary_folder(self.data_path)
        temporary.mkdir(parents=True)
        try:
            self._write(temporary)
            if self.data_path.exists():  # outdated
                self.data_path.rename(temporary_folder(self.data_path))
            temporary.rename(self.data_path)
        finally:
            remove_leftovers(self.data_path)

    def _build_remotely(self, check: Callable[[], None]) -> None:
        with scratch.folder(shard_cache.local_folder(self.data_path).parent, scratch.BUILDING) as temporary:
            self._write(epath.Path(temporary))
            check()
            if self.data_path.exists():  # outdated, or of an upload that did not end
                self.data_path.rmtree()
            shard_cache.publish(temporary, self.data_path, last=INDEX_FILE)

    def _write(self, folder: epath.Path) -> None:
        report = BuildReport(corpus=self.info.full_name, started=time.time(), tolerated=self.tolerated)
        rows: list[dict[str, Any]] = []
        with ShardWriter(folder, self.name, self.info.features) as writer:
            for utterance, columns in self._utterances(report):
                writer.write(utterance.to_example())
                rows.append(columns)
        self.info.set_splits(tfds.core.splits.SplitDict([writer.split_info()]))
        self.info.write_to_directory(folder)
        table, buffer = index_table(rows), pa.BufferOutputStream()
        pa.parquet.write_table(table, buffer)
        (folder / INDEX_FILE).write_bytes(buffer.getvalue().to_pybytes())
        report.bytes = writer.bytes
        report.folds = folds.summary({name: table[name].to_pylist() for name in ("speaker", "split", "emobox_fold")})
        self.complete(report)
        (folder / REPORT_FILE).write_text(report.to_json())

    def _utterances(self, report: BuildReport) -> Iterator[tuple[record.Utterance, dict[str, Any]]]:
        """Converted utterances in source order with their index rows; what is skipped goes to `report`."""
        expected = self.expected_count()
        seen: set[str] = set()
        bar = tqdm(
            total=expected or None,
            desc=f"building {self.name}",
            unit="utt",
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )
        with bar, self.opened():
            for raw, outcome in conversion.in_order(self.raw_utterances()):
                bar.update()
                if isinstance(raw, LeftOut):
                    report.leave_out(raw.name, raw.reason, raw.detail, on_purpose=raw.on_purpose)
                    if self._is_hopeless(report, expected):
                        break
                    continue
                if raw.id in seen:
                    raise ValueError(f"corpus {self.name}: id {raw.id!r} comes twice ({raw.name}); ids must be unique")
                seen.add(raw.id)
                if isinstance(outcome, audio_check.BadAudio):
                    report.leave_out(raw.name, str(outcome.reason), outcome.detail)
                    if self._is_hopeless(report, expected):
                        break
                    continue
                utterance, merge = _describe(raw, outcome, report)
                report.add(utterance, merge, outcome.info, raw.correction)
                yield utterance, _index_row(utterance, outcome) | {"emobox_fold": raw.emobox_fold}
        self.accept(report)

    def _is_hopeless(self, report: BuildReport, expected: int) -> bool:
        """Whether there is no need to read the rest."""
        return bool(expected) and report.unusable > self.MAX_SKIPPED * max(expected, report.built)


def _describe(
    raw: RawUtterance, converted: conversion.Converted, report: BuildReport
) -> tuple[record.Utterance, str | None]:
    """The record of an item, and the merge its label underwent; what is not understood of it goes to `report`."""
    if raw.split not in SPLITS:
        raise ValueError(f"{raw.name}: split {raw.split!r}, expected one of {', '.join(map(repr, SPLITS))}")
    emotion = emotions.canonical(raw.emotion_native)[0] if raw.emotion is None else raw.emotion
    emotions.emotion_id(emotion)  # refuses what is not canonical
    speaker = raw.speaker
    if speaker and not speaker.startswith(f"{raw.corpus}:"):
        speaker = f"{raw.corpus}:{speaker}"
    taken = {f.name for f in dataclasses.fields(record.Utterance)} & {f.name for f in dataclasses.fields(raw)}
    fields = {name: getattr(raw, name) for name in taken} | {
        "audio": converted.flac,
        "sampling_rate": audio_check.SAMPLING_RATE,
        "emotion": emotion,
        "speaker": speaker,
    }
    for name, known in {"gender": persons.gender(raw.gender), "age": persons.age(raw.age)}.items():
        if known is None:
            report.not_understood[record.storable(f"{name} {fields[name][:40]!r}")] += 1
        fields[name] = known or ""
    fields |= {name: record.storable(fields[name]) for name in record.text_fields()}
    utterance = record.Utterance(duration_s=converted.duration_s, **fields)
    return utterance, emotions.merge(raw.emotion_native, emotion)


def _index_row(utterance: record.Utterance, converted: conversion.Converted) -> dict[str, Any]:
    row = dataclasses.asdict(utterance)
    del row["audio"]
    row["pitch_hz"] = converted.pitch_hz
    row["loudness_db"] = converted.loudness_db
    row["rate"] = acoustics.speaking_rate(utterance.transcript, utterance.duration_s)
    return row


def index_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Index rows as a table: string, int32 and float32 columns in schema order (the types of the records)."""
    kinds = {"str": pa.string(), "int": pa.int32(), "float": pa.float32()}
    fields = [(f.name, kinds[str(f.type)]) for f in dataclasses.fields(record.Utterance) if f.name != "audio"]
    schema = pa.schema([*fields, ("emobox_fold", pa.int32()), *((name, pa.float32()) for name in ACOUSTIC_COLUMNS)])
    return pa.Table.from_pylist(rows, schema=schema)
