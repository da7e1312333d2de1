"""Kept features against an encoder made of numpy, on corpora with a folder of their own."""

import dataclasses
import json
import logging
import threading
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from fake_corpora import cells, make_corpus

from mser_jax import storage
from mser_jax.corpora.audio_check import BadAudio
from mser_jax.data import audio, feature_build, feature_cache, mixture, pipeline, sources

CLASSES = (0.2, 0.4, 0.6)
FRAME = (3, 4)
HOP = 320


def num_frames(samples):
    return -(-samples // HOP)


def encode(batch):
    """States that tell samples apart: a frame's mean times layer, plus channel."""
    n, length = batch["waveform"].shape
    frames = num_frames(length)
    padded = np.pad(batch["waveform"], ((0, 0), (0, frames * HOP - length)))
    means = padded.reshape(n, frames, HOP).mean(-1, dtype=np.float64)
    states = means[..., None, None] / 100 * np.array([1.0, 2.0, 3.0])[:, None] + np.arange(4.0)
    return states.astype(np.float32), -(-batch["num_samples"] // HOP)


def spec(**changes):
    base = {"weights": "w", "encoder": {"family": "fake", "conv_strides": (1, 2)}, "compute": "float32"}
    return feature_cache.FeatureSpec(**{**base, "max_samples": 9600, "frame": FRAME, "dtype": "float32", **changes})


class Broken(list):
    """A source some of whose records fail when they are read, once for each error that they are given."""

    def __init__(self, data, errors):
        super().__init__(data)
        self.errors = errors

    def __getitem__(self, row):
        found = super().__getitem__(row)
        if errors := self.errors.get(found["id"]):
            raise errors.pop()
        return found


def write_index(corpus):
    pa.parquet.write_table(corpus.index, f"{corpus.folder}/index.parquet")


@pytest.fixture
def table(tmp_path):
    """Two corpora; the second has clips that are too long."""
    lengths = (0.15, 0.25, 0.35, 0.55, 0.7)
    a = [("en", e, lengths[i % 3]) for i in range(20) for e in ("angry", "sad")]
    b = [("de", e, lengths[i % 5]) for i in range(20) for e in ("angry", "sad", "")]
    corpora = [make_corpus("a", a), make_corpus("b", b)]
    for corpus in corpora:
        corpus.folder = str(tmp_path / corpus.name)
        (tmp_path / corpus.name).mkdir()
        write_index(corpus)
    return sources.join([(corpus, 1.0) for corpus in corpora])


def build(table, number=0, encode=encode, chosen=None, **kwargs):
    """Builds one source; returns its folder and key."""
    chosen = chosen or spec()
    one = table.of_source(number)
    key = chosen.key(one.sources[0])
    folder = feature_cache.folder_of(one.sources[0], "auto", key)
    defaults = {"batch_size": 8, "length_classes": CLASSES, "read": pipeline.ReadOptions(num_threads=0)}
    feature_build.build(
        one, folder, key, encode, num_bytes=feature_build.estimate_bytes(one, chosen, num_frames), **defaults | kwargs
    )
    return folder, key


def features_of(table, chosen=None):
    folders = [build(table, number, chosen=chosen)[0] for number in range(len(table.sources))]
    frames = {round(s * 16_000): num_frames(round(s * 16_000)) for s in CLASSES}
    return lambda rows: feature_cache.CachedFeatures(rows, folders, FRAME, frames)


def counting(encode=encode, fail_at=None):
    """An encoder that counts its batches in `.calls` and breaks at one of them."""

    def wrapped(batch):
        if wrapped.calls == fail_at:
            raise KeyboardInterrupt
        wrapped.calls += 1
        return encode(batch)

    wrapped.calls = 0
    return wrapped


def test_every_record_is_the_middle_of_its_recording(table):
    """Whatever rows a table has: filters do not reach the features."""
    make = features_of(table)
    some = table.filter(include_languages="de", emotions=("sad",))
    records = sources.RecordSource(some)
    cut = 0
    for row in range(len(some)):
        whole = audio.decode(records.audio(row))
        wave = audio.crop(whole, 9600, None)
        expected, frames = encode({"waveform": wave[None], "num_samples": np.array([len(wave)])})
        states, samples = make(some)[row]
        np.testing.assert_array_equal(states, expected[0, : frames[0]])
        assert samples == len(wave)
        cut += len(whole) > 9600
    assert cut > 2


@pytest.mark.parametrize(
    ("dtype", "tolerance", "workers"), [("float32", 0.0, 0), ("float16", 2.0**-11, 0), ("float32", 0.0, 1)]
)
def test_training_batches_differ_in_nothing_but_speech(table, dtype, tolerance, workers):
    """float16 rounds to 2⁻¹¹ of a value."""
    rows = table.filter()
    features = features_of(table, spec(dtype=dtype))(rows)
    options = pipeline.TrainOptions(
        batch_size=8,
        mixture=mixture.MixtureOptions(length_classes=CLASSES),
        augmentation=audio.Augmentation(random_crop=False),
        read=pipeline.ReadOptions(num_workers=workers, prefetch=2),
    )
    with (
        pipeline.train_batches(rows, options, seed=3, start=2) as plain,
        pipeline.train_batches(rows, options, seed=3, start=2, features=features) as cached,
    ):
        shapes = set()
        for _ in range(12):
            one, other = next(plain), next(cached)
            states, frames = encode(one)
            assert other["states"].dtype == np.dtype(dtype) and other["states"].shape == states.shape
            np.testing.assert_allclose(other["states"], masked(states, frames), rtol=tolerance, atol=tolerance)
            np.testing.assert_array_equal(other["num_frames"], frames)
            assert other["num_frames"].dtype == np.int32
            del one["waveform"], other["states"], other["num_frames"]
            assert set(one) == set(other)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
            shapes.add(states.shape)
    assert len(shapes) == 3


def masked(states, frames):
    return np.where(np.arange(states.shape[1])[:, None, None] < frames[:, None, None, None], states, 0.0)


def test_a_class_that_was_merged_into_a_shorter_one_gets_the_middle_frames(table):
    features = features_of(table)(table)
    with pipeline.eval_batches(table, batch_size=8, length_classes=CLASSES[:1], features=features) as batches:
        batch = next(batches)
    assert batch["states"].shape[1] == 10 and (batch["num_frames"] <= 10).all()
    row = int(np.flatnonzero(batch["num_frames"] == 10)[0])
    whole = features[int(batch["record"][row])][0]
    start = (len(whole) - 10) // 2
    np.testing.assert_array_equal(batch["states"][row], whole[start : start + 10])


@pytest.mark.parametrize("how", ["interrupted", "stopped"])
def test_an_interrupted_build_goes_on_and_never_reads_as_complete(table, monkeypatch, how):
    monkeypatch.setattr(feature_build, "SHARD_BYTES", 2500)
    clean, _ = build(table, 1, chosen=spec(weights="other"))
    batches = len(list((clean).glob("features-*"))), counting()
    build(table, 1, batches[1], chosen=spec(weights="third"))
    total = batches[1].calls
    assert batches[0] > 3 and total > 6
    first = counting(fail_at=5 if how == "interrupted" else None)
    error = KeyboardInterrupt if how == "interrupted" else feature_build.Stopped
    with pytest.raises(error):
        build(table, 1, first, stop=lambda: how == "stopped" and first.calls == 5)
    one = table.of_source(1)
    key = spec().key(one.sources[0])
    folder = feature_cache.folder_of(one.sources[0], "auto", key)
    assert first.calls == 5 and not feature_cache.is_complete(folder, key)
    second = counting()
    build(table, 1, second)
    assert feature_cache.is_complete(folder, key)
    assert 0 < total - 5 <= second.calls < total, "whole shards are not computed again"
    names = sorted(path.name for path in clean.glob("features-*"))
    assert names == sorted(path.name for path in folder.glob("features-*"))
    for name in (*names, feature_cache.ROWS_FILE):
        assert (folder / name).read_bytes() == (clean / name).read_bytes()


def test_an_interrupted_build_with_other_batches_starts_anew(table, monkeypatch):
    monkeypatch.setattr(feature_build, "SHARD_BYTES", 2500)
    with pytest.raises(KeyboardInterrupt):
        build(table, 1, counting(fail_at=5))
    again = counting()
    build(table, 1, again, batch_size=4)
    rows = mixture.evaluation_plan(table.of_source(1), mixture.MixtureOptions(length_classes=CLASSES), batch_size=4)
    assert again.calls == len(rows)


def test_of_two_builders_one_waits(table):
    encoder = counting()
    threads = [threading.Thread(target=build, args=(table, 0, encoder)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = counting()
    build(table, 0, alone, chosen=spec(weights="other"))
    assert encoder.calls == alone.calls > 0


def test_an_unreadable_recording_is_kept_as_such_and_counted(table, caplog):
    one = table.of_source(0)
    one.sources[0].data[3]["audio"] = b"no audio"
    with caplog.at_level(logging.WARNING, "absl"):
        folder, _ = build(table)
    assert "1 recordings cannot be decoded (unreadable 1)" in caplog.text and "a-0003" in caplog.text
    features = feature_cache.CachedFeatures(one, [folder], FRAME, {n: num_frames(n) for n in (3200, 6400, 9600)})
    with pytest.raises(BadAudio, match="unreadable: found when its features were made"):
        features[3]
    with pipeline.eval_batches(one, batch_size=8, length_classes=CLASSES, features=features) as batches:
        found = [row for batch in batches for row in batch["record"][batch["valid"]].tolist()]
        assert batches.unreadable == {3: "unreadable"}
    assert sorted(found) == [row for row in range(40) if row != 3]


@pytest.mark.parametrize("error", [TimeoutError("timed out"), RuntimeError("open() failed: Input/output error")])
def test_storage_that_fails_while_features_are_built_loses_nothing(table, monkeypatch, error):
    monkeypatch.setattr(storage, "PAUSES", ())
    monkeypatch.setattr(feature_build, "SHARD_BYTES", 1)
    one, expected = table.of_source(0), features_of(table)(table.of_source(0))
    data, chosen = one.sources[0].data, spec(weights="other")
    broken = dataclasses.replace(table.sources[0], data=Broken(data, {data[20]["id"]: [error]}))
    table = dataclasses.replace(table, sources=(broken, *table.sources[1:]))
    with pytest.raises(storage.StorageError, match=f"Record {data[20]['id']} of a cannot be read"):
        build(table, chosen=chosen)
    calls = counting()
    folder, _ = build(table, chosen=chosen, encode=calls)
    assert 0 < calls.calls < 6  # whole shards were kept
    features = feature_cache.CachedFeatures(one, [folder], FRAME, expected.frames)
    for row in range(len(one)):
        np.testing.assert_array_equal(features[row][0], expected[row][0])


def test_what_changes_a_key(table):
    """Weights, architecture, precision, crop, storage; recordings, but not their labels."""
    source = table.sources[0]
    folder = feature_cache.epath.Path(source.folder)
    keys = {json.dumps(spec().key(source), sort_keys=True)}
    keys.add(json.dumps(spec().key(dataclasses.replace(source, weight=2.0)), sort_keys=True))
    assert len(keys) == 1
    changes = {"weights": "v", "encoder": {"family": "other"}, "compute": "bfloat16", "max_samples": 3200}
    for name, value in {**changes, "dtype": "float16"}.items():
        keys.add(json.dumps(spec(**{name: value}).key(source), sort_keys=True))
    assert len(keys) == 6
    index = make_corpus("a", cells(["en"], ["sad"], 40)).index
    write = types.SimpleNamespace(folder=source.folder)
    for name, value, is_new in (
        ("emotion", "happy", False), ("loudness_db", -3.0, True), ("duration_s", 9.0, True), ("id", "x", True),
    ):  # fmt: skip
        column = index[name].to_pylist()
        write.index = index
        write_index(write)
        before = feature_cache.corpus_fingerprint(source)
        write.index = index.set_column(index.column_names.index(name), name, pa.array([value, *column[1:]]))
        write_index(write)
        assert (feature_cache.corpus_fingerprint(source) != before) == is_new, name
    before = feature_cache.corpus_fingerprint(source)
    (folder / "a-full.array_record-00000-of-00001").write_bytes(b"x")
    assert feature_cache.corpus_fingerprint(source) != before


def test_features_of_another_key_are_named_with_what_differs(table):
    old, key = build(table)
    changed = spec(weights="new", dtype="float16").key(table.sources[0])
    folder = feature_cache.folder_of(table.sources[0], "auto", changed)
    assert folder != old and not feature_cache.is_complete(folder, changed)
    assert feature_cache.others(folder, changed) == [f"{old}: dtype float32 → float16, weights w → new"]
    assert feature_cache.others(old, key) == []
    elsewhere = feature_cache.folder_of(table.sources[0], "/somewhere", changed)
    assert str(elsewhere.parent) == "/somewhere/a" and elsewhere.name == folder.name
    # A folder under a name that is not its own is never read.
    old.rename(folder)
    with pytest.raises(ValueError, match=r"made for another key .*weights w → new.*Delete the folder"):
        feature_cache.is_complete(folder, changed)


def test_damaged_features_are_refused(table):
    folder, key = build(table)
    shard = folder / "features-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"features-00000.*bytes, expected.*Delete the folder"):
        feature_cache.is_complete(folder, key)
    shard.unlink()
    with pytest.raises(ValueError, match=r"cannot be used.*Delete the folder"):
        feature_cache.is_complete(folder, key)


def test_no_room(table, monkeypatch):
    """Known before the build, or found out by it."""
    with pytest.raises(OSError, match=r"No space left on device.*goes on after the last whole shard"):
        monkeypatch.setattr(feature_build, "ArrayRecordWriter", lambda _, how: ArrayRecordWriter("/dev/full", how))
        build(table)
    monkeypatch.undo()
    monkeypatch.setattr(feature_build.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    encoder = counting()
    with pytest.raises(ValueError, match=r"take 0\.00 GB more, and 0\.00 GB are free"):
        build(table, 0, encoder)
    assert encoder.calls == 0


def test_recordings_are_padded_to_quartiles_of_their_lengths():
    seconds = np.random.default_rng(0).uniform(1.0, 9.0, 1000)
    classes = feature_build.length_classes(seconds, 8.0)
    assert len(classes) == 4 and classes[-1] == 8.0
    for share, length in zip((0.25, 0.5, 0.75), classes[:-1], strict=True):
        assert share <= (seconds <= length).mean() < share + 0.04  # a quarter of a second of the eight
    assert feature_build.length_classes(np.full(5, 12.0), 4.5) == (4.5,)
    assert feature_build.length_classes(np.array([3.0]), 30.0) == (3.0, 30.0)
    assert feature_build.length_classes(np.array([]), 4.5) == (4.5,)


def test_the_estimate_is_what_is_written(table):
    chosen = spec()
    for number in (0, 1):
        folder, _ = build(table, number)
        one = table.of_source(number)
        written = sum(len(feature_cache.CachedFeatures(one, [folder], FRAME, {})[row][0]) for row in range(len(one)))
        estimate = feature_build.estimate_bytes(one, chosen, num_frames)
        assert estimate == written * chosen.frame_bytes == written * 3 * 4 * 4


def test_a_corpus_without_a_folder_cannot_keep_features():
    corpus = sources.join([(make_corpus("a", cells(["en"], ["sad"], 2)), 1.0)])
    with pytest.raises(ValueError, match="kept for corpora on disk"):
        spec().key(corpus.sources[0])
