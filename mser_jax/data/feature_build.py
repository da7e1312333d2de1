"""Writes the folders that feature_cache.py reads: shard by shard, so that an interrupted build goes on where it was."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from tqdm import tqdm

from mser_jax.corpora.build_lock import build_lock
from mser_jax.corpora.shards import OPTIONS
from mser_jax.data import audio, feature_cache, mixture, pipeline, unreadable
from mser_jax.data.feature_cache import FeatureSpec
from mser_jax.data.sources import MixtureTable

SHARD_BYTES = 256 * 2**20  # about; a shard is what an interrupted build loses at most
_PLAN_FILE = "plan.json"

# Host batch -> states [n, T, L + 1, D] of any float dtype, and valid frames [n].
Encode = Callable[[pipeline.Batch], tuple[np.ndarray, np.ndarray]]


class Stopped(Exception):
    """The build was asked to stop; complete shards are kept."""


def estimate_bytes(table: MixtureTable, spec: FeatureSpec, num_frames: Callable[[int], int]) -> int:
    """Bytes that the features of all records of `table` take; `num_frames` is the encoder's."""
    samples = np.minimum(np.rint(table["duration_s"] * audio.SAMPLE_RATE), spec.max_samples).astype(int)
    lengths, counts = np.unique(samples, return_counts=True)
    return spec.frame_bytes * sum(num_frames(int(n)) * int(count) for n, count in zip(lengths, counts, strict=True))


def length_classes(durations: np.ndarray, longest: float) -> tuple[float, ...]:
    """Lengths in seconds that recordings of `durations` seconds [n] are padded to, the last being `longest`.

    The quartiles, rounded up to a quarter of a second: what is kept is the same whatever an utterance is padded to,
    but the encoder runs over the padding too; each length more is one compilation more.
    """
    durations = np.minimum(durations, longest)
    quartiles = np.quantile(durations, (0.25, 0.5, 0.75)) if len(durations) else ()
    steps = {float(np.ceil(seconds * 4) / 4) for seconds in quartiles}
    return (*sorted(step for step in steps if 0 < step < longest), longest)


def build(
    table: MixtureTable,
    folder: epath.Path,
    key: Mapping[str, Any],
    encode: Encode,
    *,
    num_bytes: int,
    batch_size: int,
    length_classes: tuple[float, ...],
    read: pipeline.ReadOptions,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Computes and writes the features of every record of `table`, which is one whole corpus.

    Of two processes at once the second waits and finds them. Where a record cannot be decoded the reason is kept. What
    a build that ended early had finished is used when everything that decides its shards is as it was.

    Args:
        table: all records of one source, in their order.
        folder: `feature_cache.folder_of`.
        key: `FeatureSpec.key`.
        encode: the encoder.
        num_bytes: `estimate_bytes`.
        batch_size: utterances that are encoded at once.
        length_classes: seconds, increasing; the last is where recordings are cut.
        read: as of the evaluation pipeline.
        stop: asked between batches.

    Raises:
        Stopped: `stop` said so.
        ValueError: the disk has not that much free.
        OSError: it became full, or the recordings cannot be read (StorageError).
    """
    plan = mixture.evaluation_plan(table, mixture.MixtureOptions(length_classes=length_classes), batch_size=batch_size)
    batch_rows = [plan[i].rows[plan[i].rows >= 0] for i in range(len(plan))]
    per_shard = max(1, round(SHARD_BYTES * len(batch_rows) / max(num_bytes, 1)))
    facts = {"key": dict(key), "batch_size": batch_size, "length_classes": list(length_classes), "batches": per_shard}
    with build_lock(folder):
        if feature_cache.is_complete(folder, key):  # by the process that held the lock
            return
        shards = _Shards(folder.parent / f"incomplete_{folder.name}", facts, batch_rows)
        _check_space(shards.folder, num_bytes - shards.num_bytes())
        with tqdm(
            total=sum(map(len, batch_rows)), initial=sum(map(len, batch_rows[: shards.start])),
            desc=f"features of {table.sources[0].name}", unit="utt",
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        ) as bar:  # fmt: skip
            if shards.start < len(batch_rows):
                with pipeline.eval_batches(
                    table, batch_size=batch_size, length_classes=length_classes, read=read, start=shards.start
                ) as batches:
                    shards.write(_records(batches, encode, key["dtype"], bar, stop))
                if batches.unreadable:
                    logging.warning(
                        "%s: %d recordings cannot be decoded (%s); kept as such", folder, len(batches.unreadable),
                        unreadable.by_reason(batches.unreadable.values()),
                    )  # fmt: skip
        shards.finish(folder, key)


def _records(
    batches: pipeline.Batches, encode: Encode, dtype: str, bar: tqdm, stop: Callable[[], bool]
) -> Iterator[list[bytes]]:
    """The records of each batch."""
    for batch in batches:
        if stop():
            raise Stopped
        states, num_frames = encode(batch)
        rows = np.flatnonzero(batch["record"] >= 0)
        yield [
            feature_cache.pack(states[i, : num_frames[i]], batch["num_samples"][i], dtype)
            if batch["valid"][i]
            else feature_cache.pack_reason(unreadable.CODES[batch["reason"][i]])
            for i in rows
        ]
        bar.update(len(rows))


class _Shards:
    """The folder under construction: complete shards, what they were planned as, and the one that is being written."""

    def __init__(self, folder: epath.Path, facts: Mapping[str, Any], batch_rows: Sequence[np.ndarray]) -> None:
        self.folder, self._rows, self._per_shard = folder, batch_rows, int(facts["batches"])
        if folder.exists() and (not (folder / _PLAN_FILE).exists() or _read(folder / _PLAN_FILE) != facts):
            folder.rmtree()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _PLAN_FILE).write_text(json.dumps(facts))
        self.done = 0
        while self._path(self.done).exists():
            self.done += 1
        if self.done:
            logging.info("%s: going on after %d shards of an earlier build", folder, self.done)

    @property
    def start(self) -> int:
        """The batch to go on with."""
        return min(self.done * self._per_shard, len(self._rows))

    def num_bytes(self) -> int:
        """Bytes of the shards that are complete."""
        return sum(self._path(number).stat().length for number in range(self.done))

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"features-{number:05d}.array_record"

    def write(self, batches: Iterator[list[bytes]]) -> None:
        """Writes what is missing; a shard takes its name when it is closed."""
        for _ in range(self.start, len(self._rows), self._per_shard):
            temporary = self.folder / "unfinished.tmp"
            try:
                writer = ArrayRecordWriter(os.fspath(temporary), OPTIONS)
                for records in itertools.islice(batches, self._per_shard):
                    for record in records:
                        writer.write(record)
                writer.close()
            except RuntimeError as error:  # array_record's for a full disk too
                raise OSError(f"{temporary}: {error}. The same command goes on after the last whole shard") from error
            temporary.rename(self._path(self.done))
            self.done += 1

    def finish(self, folder: epath.Path, key: Mapping[str, Any]) -> None:
        """Writes rows.npy and key.json, and gives the folder its name."""
        order = np.concatenate(self._rows)
        rows = np.empty(len(order), np.int64)
        rows[order] = np.arange(len(order))
        shards = {}
        for number in range(self.done):
            path = self._path(number)
            shards[path.name] = [len(ArrayRecordDataSource(os.fspath(path))), path.stat().length]
        written = sum(count for count, _ in shards.values())
        if written != len(order):
            raise OSError(f"{self.folder}: {written} records in its files, expected {len(order)}. Delete the folder")
        with (self.folder / feature_cache.ROWS_FILE).open("wb") as file:
            np.save(file, rows)
        told = {"key": dict(key), "records": len(order), "shards": shards}
        (self.folder / feature_cache.KEY_FILE).write_text(json.dumps(told, indent=1))
        self.folder.rename(folder)


def _read(path: epath.Path) -> Any:
    return json.loads(path.read_text())


def _check_space(folder: epath.Path, num_bytes: int) -> None:
    logging.info("%s: %.2f GB to write", folder, num_bytes / 1e9)
    free = shutil.disk_usage(Path(folder)).free
    if num_bytes > free:
        raise ValueError(
            f"{folder}: the features take {num_bytes / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free. Name "
            "another directory, or train without: feature_cache=''"
        )
