"""The policy for what cannot be read: storage is asked again and then ends the run, bad recordings are counted."""

import re
import threading
import time
from concurrent import futures

import aiohttp
import gcsfs.retry
import numpy as np
import pytest
from fake_corpora import cells, make_corpus

from mser_jax import storage
from mser_jax.corpora import ffmpeg
from mser_jax.corpora.audio_check import BadAudio
from mser_jax.data import audio, mixture, pipeline, sources, unreadable

CLASSES = (0.4,)
TROUBLE = [
    OSError(5, "Input/output error"),
    TimeoutError("timed out"),
    RuntimeError("read() failed: Input/output error"),
    gcsfs.retry.HttpError({"code": 503, "message": "backend"}),
    aiohttp.ClientConnectionError("connection reset"),
]


class Failing:
    """A source that fails at its reads number `first` … `first + times - 1`. Its pauses travel to workers with it."""

    def __init__(self, data, error, first=0, times=10**9):
        self.data, self.error, self.first, self.times, self.reads = data, error, first, times, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, row):
        storage.PAUSES = (0.0, 0.0, 0.0)
        self.reads += 1
        if self.first <= self.reads - 1 < self.first + self.times:
            raise self.error
        return self.data[row]


def table_of(count=24, **failing):
    corpus = make_corpus("a", cells(["en", "de"], ["sad", "angry"], count // 4))
    if failing:
        corpus.source = Failing(corpus.source, **failing)
    return sources.join([(corpus, 1.0)])


def train(table, **read):
    options = pipeline.TrainOptions(
        batch_size=8, mixture=mixture.MixtureOptions(length_classes=CLASSES, pair_languages=False),
        read=pipeline.ReadOptions(**{"num_threads": 0, **read}),
    )  # fmt: skip
    return pipeline.train_batches(table, options, seed=0)


def evaluate(table, **read):
    chosen = pipeline.ReadOptions(**{"num_threads": 0, **read})
    return pipeline.eval_batches(table, batch_size=8, length_classes=CLASSES, read=chosen)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(storage, "_GIVEN_UP", threading.Event())


def test_one_thread_that_gives_up_keeps_no_other_waiting(monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (99.0,))
    asked = []

    def failing():
        asked.append(1)
        raise TROUBLE[0]

    with futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(storage.retried, failing, name) for name in "ab"]
        while len(asked) < 2:
            time.sleep(0.01)
        monkeypatch.setattr(storage, "PAUSES", ())
        with pytest.raises(storage.StorageError, match="c cannot be read, 1 attempts"):
            storage.retried(failing, "c")
        for one in waiting:
            assert isinstance(one.exception(20), storage.StorageError)
    assert storage.retried(lambda: 7, "d") == 7 and not storage._GIVEN_UP.is_set()


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
def test_storage_that_comes_back_changes_nothing(error):
    with train(table_of()) as batches:
        expected = [next(batches) for _ in range(4)]
    with train(table_of(error=error, first=11, times=3)) as batches:
        for batch in expected:
            found = next(batches)
            assert found["valid"].all()
            np.testing.assert_array_equal(found["waveform"], batch["waveform"])


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("read", [{}, {"num_threads": 2}], ids=["", "threads"])
def test_storage_that_stays_away_is_raised_out_of_the_loader(error, read):
    with train(table_of(error=error, first=20), **read) as batches, pytest.raises(storage.StorageError) as raised:
        for _ in range(10):
            assert next(batches)["valid"].all()
    assert re.match(r"Record a-00\d\d of a cannot be read, [1-4] attempts: ", str(raised.value))
    with evaluate(table_of(error=error, first=9), **read) as batches, pytest.raises(storage.StorageError):
        list(batches)


def test_storage_that_stays_away_is_raised_out_of_worker_processes():
    message = r"Record a-00.* cannot be read, 4 attempts"
    table = table_of(error=TROUBLE[0], first=20)
    with train(table, num_workers=1) as batches, pytest.raises(storage.StorageError, match=message):
        for _ in range(10):
            next(batches)


@pytest.mark.parametrize("error", [TypeError("a mistake"), KeyError("audio"), IndexError("9"), NotImplementedError()])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_mistake_of_the_program_is_neither_counted_nor_tried_again(error, threads):
    table = table_of(error=error, first=9)
    with evaluate(table, num_threads=threads) as batches, pytest.raises(type(error)):
        list(batches)


def test_what_waiting_does_not_mend_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(storage, "PAUSES", (99.0,))
    for error, kind in (
        (FileNotFoundError(2, "No such file"), storage.StorageError),
        (PermissionError(13, "Permission denied"), storage.StorageError),
        (OSError(28, "No space left on device"), OSError),
        (ffmpeg.MissingFfmpegError("no ffmpeg"), ffmpeg.MissingFfmpegError),
        (RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch"), storage.StorageError),
        (BadAudio("empty", "0 bytes"), BadAudio),
    ):
        failed = futures.Future()
        failed.set_exception(error)
        with pytest.raises(kind) as raised:
            storage.retried(failed.result, "a.wav")
        assert str(error) in str(raised.value)


@pytest.mark.parametrize("seed", range(40))
def test_mutated_recordings_are_decoded_or_refused_with_one_exception(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(make_corpus("a", [("en", "sad", 0.3)]).source[0]["audio"])
    if seed % 4 == 0:
        data = data[: rng.integers(len(data))]
    for place in rng.integers(0, 60 if seed % 2 else len(data), 1 + seed % 7):
        if place < len(data):
            data[place] = rng.integers(256)
    try:
        samples = audio.decode(bytes(data))
    except BadAudio as bad:
        assert bad.reason in unreadable.CODES
    else:
        assert samples.dtype == np.int16 and len(samples)


def test_what_cannot_be_decoded_is_told_with_its_reason():
    table = table_of()
    data = table.sources[0].data
    data[2]["audio"], data[5]["audio"], data[7]["audio"] = b"", b"RIFF", data[7]["audio"][:300]
    with evaluate(table) as batches:
        found = list(batches)
        assert batches.unreadable == {2: "empty", 5: "unreadable", 7: "truncated"}
    record, reason = (np.concatenate([batch[name] for batch in found]) for name in ("record", "reason"))
    assert sorted(record[reason > 0].tolist()) == [2, 5, 7]


def test_a_share_may_be_unreadable_and_no_more():
    ids = [f"id-{row}" for row in range(300)]
    for count, of, share in ((1, 3, 0.01), (3, 300, 0.01), (300, 300, 1.0), (0, 5, 0.0), (1, 300, 0.0)):
        unreadable.check(dict.fromkeys(range(count), "empty"), ids[:of], share, "the test")
    for count, of, share in ((2, 3, 0.01), (4, 300, 0.01), (2, 300, 0.0), (100, 300, 0.3)):
        with pytest.raises(unreadable.TooManyUnreadableError, match=rf"{count} of {of} records of the test"):
            unreadable.check(dict.fromkeys(range(count), "empty"), ids[:of], share, "the test")
    with pytest.raises(unreadable.TooManyUnreadableError, match=r"\(empty 6\): id-10, id-11, id-12, id-13, id-14, …"):
        unreadable.check(dict.fromkeys(range(10, 16), "empty"), ids, 0.01, "x")
