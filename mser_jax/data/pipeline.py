"""Batches of numpy arrays, from the plan of mixture.py: read, decode, augment, put into words, tokenise.

Batch (n = this process's rows, samples = the length class of the step):
  waveform int16 [n, samples] · num_samples int32 [n] · emotion, language, speaker, domain, parallel_id int32
  [n] (-1 unknown) · record int32 [n] (row of the table, -1 padding) · valid bool [n]; in training also what
  TrainOptions.text makes: captions (prompts.Captions), or questions and answers (instructions.Instructions).
With features (feature_cache.py) instead of waveform: states [n, T, layers + 1, D] (T = the frames of the class),
  num_frames int32 [n]. What is longer than the class is cut to its middle, in samples or in frames; where it is scored,
  it has a row for every window of it (audio.windows), always of waveform.
Rows with valid False (padding, or a record that could not be decoded) are silence of full length and carry no
label: nothing downstream then averages over an empty row. `reason` int8 [n] says why (unreadable.CODES), 0 elsewhere.
Storage that cannot be read is another matter: it raises StorageError, out of workers and threads.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import grain
import numpy as np
from absl import logging

from mser_jax import storage
from mser_jax.corpora.audio_check import BadAudio
from mser_jax.data import audio, mixture, prompts, unreadable
from mser_jax.data.feature_cache import CachedFeatures
from mser_jax.data.sources import MixtureTable, RecordSource, Vocabularies

Batch = dict[str, np.ndarray]
# Puts the speech of row i of a plan into row i of a batch; BadAudio says what is wrong with the record.
Fill = Callable[[mixture.Plan, int], None]


class TextMaker(Protocol):
    """Makes the text part of a training batch. Travels to workers by pickle; safe in threads."""

    def __call__(
        self, facts: Sequence[prompts.Facts], rngs: Sequence[np.random.Generator], step_rng: np.random.Generator
    ) -> Batch:
        """Arrays [n, …] for n utterances. `rngs`: one a row; `step_rng`: the same on every process of a step."""

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """{name: (shape of a row, dtype)} of the longest batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Where the work is done; never changes what is read.

    num_workers: processes (0 = none), for a host whose accelerators are faster than one Python process.
    num_threads: threads of each process (workers, or this one); 0 = batches are made when asked for. More of
      them hide the latency of remote storage.
    prefetch: batches kept ready by each process.
    """

    num_workers: int = 0
    num_threads: int = 2
    prefetch: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a training batch is. batch_size is global."""

    batch_size: int
    mixture: mixture.MixtureOptions = dataclasses.field(default_factory=mixture.MixtureOptions)
    text: TextMaker = dataclasses.field(default_factory=prompts.Captions)
    augmentation: audio.Augmentation = dataclasses.field(default_factory=audio.Augmentation)
    read: ReadOptions = dataclasses.field(default_factory=ReadOptions)


class Batches(Iterator[Batch]):
    """Iterator of host batches. Close it (or use `with`): workers and threads live until then.

    unreadable: {row of the table: why} of the records so far that this process could not decode.
    """

    def __init__(self, dataset: grain.IterDataset, length: int | None) -> None:
        self._iterator = iter(dataset)
        self._length = length
        self.unreadable: dict[int, str] = {}

    def __next__(self) -> Batch:
        try:
            batch = next(self._iterator)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise storage.StorageError(
                f"A process that reads data ended by itself ({error}). Mostly that is memory: take fewer of them "
                "(data.num_workers), or less ahead (data.prefetch)"
            ) from error
        for row in np.flatnonzero(batch["reason"]):
            self.unreadable[int(batch["record"][row])] = unreadable.CODES[batch["reason"][row]]
        return batch

    def __len__(self) -> int:
        """Number of batches of an evaluation epoch. Raises TypeError in training, which has no end."""
        if self._length is None:
            raise TypeError("training batches have no end, hence no length")
        return self._length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops workers and threads."""
        self._iterator.close()


def train_batches(
    table: MixtureTable,
    options: TrainOptions,
    *,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    features: CachedFeatures | None = None,
) -> Batches:
    """Endless batches from step `start` on; each is a pure function of (table, options, seed, step).

    `features` of `table` are given instead of audio.

    Raises:
        ValueError: as `mixture.training_plan`, or records without an emotion to caption.
    """
    unlabelled = int((table["emotion_id"] < 0).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(table)} records have no canonical emotion: filter them out of the table"
        )
    plan = mixture.training_plan(
        table,
        options.mixture,
        batch_size=options.batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    loader = _TrainLoader(table, options, seed, features)
    return Batches(_iterate(plan[start:].map(loader), options.read), None)


def eval_batches(
    table: MixtureTable,
    *,
    batch_size: int,
    length_classes: tuple[float, ...],
    vocabularies: Vocabularies | None = None,
    read: ReadOptions | None = None,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    features: CachedFeatures | None = None,
    windows: bool = False,
) -> Batches:
    """One epoch: every record once over all processes, by length class; of what is too long, the middle or all windows.

    The last batch of a class is padded (valid False); every process gets the same number of batches. Label
    ids are those of `vocabularies` (the training mix's; default: the table's own). `start` leaves out so many
    batches; `features` of `table` are given instead of audio.

    Raises:
        ValueError: as `mixture.evaluation_plan`.
    """
    plan = mixture.evaluation_plan(
        table,
        mixture.MixtureOptions(length_classes=length_classes),
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        windows=windows,
    )
    loader = _Loader(table, length_classes, vocabularies, features)
    return Batches(_iterate(plan[start:].map(loader), read or ReadOptions()), len(plan) - start)


def _iterate(dataset: grain.MapDataset, read: ReadOptions) -> grain.IterDataset:
    threads = min(read.num_threads, read.prefetch)
    iterable = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read.prefetch if threads else 0)
    )
    if not read.num_workers:
        return iterable
    _check_main_is_a_file()
    workers = grain.MultiprocessingOptions(num_workers=read.num_workers, per_worker_buffer_size=max(1, read.prefetch))
    return iterable.mp_prefetch(workers, worker_init_fn=keep_off_accelerators)


def _check_main_is_a_file() -> None:
    """Raises RuntimeError where worker processes would hang at their start: each runs the main module once more."""
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if path and not getattr(main, "__spec__", None) and not Path(path).exists():
        raise RuntimeError(
            f"num_workers > 0 needs a main program that worker processes can import, and {path} is not a file. Save "
            "it as one, or set num_workers=0."
        )


def keep_off_accelerators(worker: int, workers: int) -> None:
    """Runs first in every worker: no device can be seen from it, and Ctrl-C is left to the main process.

    Grain imports jax, so the platform is set in its configuration too; no backend has started at this point.
    """
    del worker, workers
    os.environ.update(
        JAX_PLATFORMS="cpu",
        CUDA_VISIBLE_DEVICES="",
        ROCR_VISIBLE_DEVICES="",
        TPU_VISIBLE_CHIPS="",
        TPU_VISIBLE_DEVICES="",
    )
    os.environ.update(TPU_SKIP_MDS_QUERY="1", XLA_PYTHON_CLIENT_PREALLOCATE="false")
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Loader:
    """Plan -> evaluation batch. Travels to workers by pickle; safe in threads."""

    def __init__(
        self,
        table: MixtureTable,
        length_classes: tuple[float, ...],
        vocabularies: Vocabularies | None,
        features: CachedFeatures | None,
    ) -> None:
        self._records = RecordSource(table)
        self._features = features
        self._labels = table.labels(vocabularies)
        self._samples = [round(seconds * audio.SAMPLE_RATE) for seconds in length_classes]
        self._told: set[int] = set()

    def __call__(self, plan: mixture.Plan) -> Batch:
        """Reads and decodes the rows of `plan`; what cannot be decoded is logged once and becomes an invalid row.

        Raises:
            StorageError: a record cannot be read, attempt after attempt.
        """
        length, n = self._samples[plan.length_class], len(plan.rows)
        # What was kept of a long recording is its middle.
        heard = self._features is None or plan.windows is not None
        batch, fill = self._waveforms(n, length) if heard else self._states(n, length)
        valid, reason = plan.rows >= 0, np.zeros(n, np.int8)
        for i in np.flatnonzero(valid):
            try:
                fill(plan, i)
            except BadAudio as bad:  # One damaged recording must not end a run of days.
                if plan.rows[i] not in self._told:
                    self._told.add(int(plan.rows[i]))
                    logging.error("Record %s left out: %s", self._records.name(plan.rows[i]), bad)
                valid[i], reason[i] = False, unreadable.CODES.index(bad.reason)
        batch |= {"record": plan.rows, "valid": valid, "reason": reason}
        for name, ids in self._labels.items():
            batch[name] = np.where(valid, ids[plan.rows], -1).astype(np.int32)
        return batch

    def _waveforms(self, n: int, length: int) -> tuple[Batch, Fill]:
        """Silence of full length, and what puts a recording into row i of it."""
        waveform, num_samples = np.zeros((n, length), np.int16), np.full(n, length, np.int32)

        def decode(row: int) -> np.ndarray:
            return audio.decode(self._records.audio(row))

        again = functools.lru_cache(maxsize=1)(decode)

        def fill(plan: mixture.Plan, i: int) -> None:
            samples = self._cut((decode if plan.windows is None else again)(plan.rows[i]), length, plan, i)
            waveform[i, : len(samples)] = samples
            num_samples[i] = len(samples)

        return {"waveform": waveform, "num_samples": num_samples}, fill

    def _states(self, n: int, length: int) -> tuple[Batch, Fill]:
        """As `_waveforms`, with features."""
        frames = self._features.frames[length]
        states = np.zeros((n, frames, *self._features.frame), self._features.dtype)
        num_frames, num_samples = np.full(n, frames, np.int32), np.full(n, length, np.int32)

        def fill(plan: mixture.Plan, i: int) -> None:
            whole, samples = self._features[plan.rows[i]]
            kept = self._features.cut(whole, frames)
            states[i, : len(kept)] = kept
            num_frames[i], num_samples[i] = len(kept), min(samples, length)

        return {"states": states, "num_frames": num_frames, "num_samples": num_samples}, fill

    def _cut(self, samples: np.ndarray, length: int, plan: mixture.Plan, i: int) -> np.ndarray:
        """int16 [n] -> int16 [at most `length`]."""
        if plan.windows is None:
            return audio.crop(samples, length, None)
        starts = audio.windows(len(samples), length)
        start = starts[min(int(plan.windows[i]), len(starts) - 1)]
        return samples[start : start + length]


class _TrainLoader(_Loader):
    """Plan -> training batch: augmented, with text."""

    def __init__(self, table: MixtureTable, options: TrainOptions, seed: int, features: CachedFeatures | None) -> None:
        super().__init__(table, options.mixture.length_classes, None, features)
        self._options, self._seed = options, seed
        self._columns = {name: table[name] for name in ("emotion", "language", "gender", "age", "transcript")}
        # Loudness and pitch are told relative to the recordings of a corpus; characters a second mean
        # something only within one script, hence also within the language.
        source = table["source"]
        corpus = _codes(source.astype(str).astype(object) + "/" + table["corpus"])
        script = _codes(source.astype(str).astype(object) + "/" + table["corpus"] + "/" + table["primary"])
        self._pitch = prompts.levels(table["pitch_hz"], corpus)
        self._loudness = prompts.levels(table["loudness_db"], corpus)
        self._rate = prompts.levels(table["rate"], script)

    def __call__(self, plan: mixture.Plan) -> Batch:
        """As `_Loader`, with text (also for rows that failed)."""
        batch = super().__call__(plan)
        rows = range(len(plan.rows))
        # A batch takes so many positions of its class: which of its class's batches it is says which step it is.
        number = int(plan.positions[0]) // self._options.batch_size
        text = self._options.text(
            [self._facts(plan.rows[i]) for i in rows],
            [self._rng(mixture.Stream.TEXT, plan, int(plan.positions[i])) for i in rows],
            self._rng(mixture.Stream.STEP, plan, number),
        )
        return batch | text

    def _cut(self, samples: np.ndarray, length: int, plan: mixture.Plan, i: int) -> np.ndarray:
        return audio.augment(
            samples, length, self._options.augmentation, self._rng(mixture.Stream.AUDIO, plan, int(plan.positions[i]))
        )

    def _facts(self, row: int) -> prompts.Facts:
        return prompts.Facts(
            pitch=int(self._pitch[row]),
            loudness=int(self._loudness[row]),
            rate=int(self._rate[row]),
            **{name: column[row] for name, column in self._columns.items()},
        )

    def _rng(self, stream: mixture.Stream, plan: mixture.Plan, number: int) -> np.random.Generator:
        return mixture.generator(self._seed, stream, plan.length_class, number)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values.astype(str), return_inverse=True)[1]
