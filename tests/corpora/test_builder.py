import dataclasses
import json
import math
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from toy_corpus import ToneCorpus, item, tone

from mser_jax import storage
from mser_jax.corpora import audio_check, builder, conversion, emotions, record, shards


def corpus(folder, items):
    built = ToneCorpus(data_dir=folder)
    built.items = items
    return built


def utterances(built):
    source = built.as_data_source(split=shards.SPLIT)
    return [record.Utterance.from_example(source[row]) for row in range(len(source))]


@pytest.fixture
def mixed(tmp_path):
    """Forty good items of several kinds and two bad ones."""
    soundfile.write(tmp_path / "a.wav", np.stack([tone(rate=44_100)] * 2, axis=1), 44_100)
    soundfile.write(tmp_path / "quiet.wav", np.zeros(8_000), 16_000)
    items = [item(number) for number in range(36)]
    items += [
        item(36, audio=tmp_path / "a.wav", sampling_rate=0, emotion_native="excited"),
        item(37, audio=(tmp_path / "a.wav").read_bytes(), language="en", emotion_native="excited"),
        item(38, emotion_native="bored", speaker="tones:s1", transcript=""),
        item(39, emotion_native="x", emotion="sad", split="test", valence=2.5, age="30"),
    ]
    items.insert(5, item(99, audio=tmp_path / "quiet.wav"))
    items.insert(20, item(98, audio=tmp_path / "gone.wav", origin="row 21"))
    return items


def test_records_and_index_agree_and_keep_the_order(tmp_path, mixed):
    built = corpus(tmp_path / "data", mixed)
    built.prepare()
    got = utterances(built)
    assert [u.id for u in got] == [raw.id for raw in mixed if raw.id not in ("u98", "u99")]
    index = builder.pa.parquet.read_table(built.index_path)
    names = [f.name for f in dataclasses.fields(record.Utterance) if f.name != "audio"]
    assert index.column_names == [*names, "emobox_fold", *builder.ACOUSTIC_COLUMNS]
    for row, utterance in zip(index.to_pylist(), got, strict=True):
        for name in names:
            np.testing.assert_equal(row[name], getattr(utterance, name), err_msg=name)
    by_id = {u.id: u for u in got}
    assert by_id["u0"].emotion == "angry"
    assert by_id["u36"].emotion == "happy"
    assert by_id["u38"].emotion == ""
    assert by_id["u39"].emotion == "sad"
    assert {u.speaker for u in got} == {"tones:s0", "tones:s1", "tones:s2"}  # no prefix twice
    assert (by_id["u39"].valence, by_id["u39"].age, by_id["u39"].split) == (2.5, "30", "test")
    assert math.isnan(by_id["u0"].valence)
    rows = {row["id"]: row for row in index.to_pylist()}
    assert rows["u0"]["pitch_hz"] == pytest.approx(200, rel=0.01)
    assert rows["u0"]["loudness_db"] == pytest.approx(20 * math.log10(0.3 / math.sqrt(2)), abs=0.1)
    assert rows["u0"]["rate"] == pytest.approx(8 / 0.5)
    assert math.isnan(rows["u38"]["rate"])


def test_stored_audio_is_what_the_check_returned(tmp_path, mixed):
    built = corpus(tmp_path / "data", mixed)
    built.prepare()
    by_id = {raw.id: raw for raw in mixed}
    for utterance in utterances(built):
        raw = by_id[utterance.id]
        expected, _ = audio_check.load(raw.audio, raw.sampling_rate)
        stored, info = audio_check.load(utterance.audio)
        np.testing.assert_array_equal(stored, expected)
        assert (info.sampling_rate, info.channels, utterance.sampling_rate) == (16_000, 1, 16_000)
        assert utterance.duration_s == pytest.approx(len(expected) / 16_000)


def test_report(tmp_path, mixed):
    built = corpus(tmp_path / "data", mixed)
    built.prepare()
    report = json.loads(built.report_path.read_text())
    assert (report["built"], report["skipped"]) == (40, 2)
    assert report["skipped_by_reason"] == {"missing": 1, "silent": 1}
    assert [(i["path"], i["reason"]) for i in report["skipped_items"]] == [
        (str(tmp_path / "quiet.wav"), "silent"),
        ("row 21", "missing"),
    ]
    assert report["merges"] == {"excited→happy": 2, "x→sad": 1}
    assert report["unlabelled"] == {"bored": 1}
    assert (report["resampled_from_hz"], report["downmixed"], report["speakers"]) == ({"44100": 2}, 2, 3)
    assert report["utterances"]["language"] == {"de": 39, "en": 1}
    assert report["by_language_and_emotion"]["de"] == {"": 1, "angry": 36, "happy": 1, "sad": 1}
    assert report["hours"]["emotion"]["angry"] == pytest.approx(36 * 0.5 / 3600, abs=1e-4)
    assert report["hours_total"] == pytest.approx(40 * 0.5 / 3600, abs=1e-4)
    assert report["build_seconds"] > 0


def test_reuse_does_not_ask_the_source_again(tmp_path):
    first = corpus(tmp_path, [item(0), item(1)])
    first.prepare()
    first.prepare()
    second = corpus(tmp_path, [item(number) for number in range(5)])
    second.prepare()
    assert (first.asked, second.asked) == (1, 0)
    assert len(utterances(second)) == 2


def test_too_many_skipped(tmp_path):
    good, bad = [item(n) for n in range(38)], [item(100 + n, audio=np.zeros(8_000)) for n in range(3)]
    corpus(tmp_path / "a", good + bad[:2]).prepare()  # 2 of 40 are 5 %
    built = corpus(tmp_path / "b", good[:19] + bad + good[19:])
    with pytest.raises(builder.TooManySkippedError) as caught:
        built.prepare()
    message = str(caught.value)
    assert "silent: 3" in message
    assert "u100" in message
    assert "manifest" in message
    assert not built.data_path.exists()
    assert not list(tmp_path.glob("b/**/*.tmp"))
    built.items = good
    built.prepare()
    assert len(utterances(built)) == 38


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "u0"}, "id 'u0' comes twice"),
        ({"split": "dev"}, "split 'dev', expected one of 'train'"),
        ({"emotion": "joy"}, "Did you mean 'happy'"),
    ],
)
def test_items_against_the_schema(tmp_path, change, message):
    built = corpus(tmp_path, [item(0), item(1, **change)])
    with pytest.raises(ValueError, match=message):
        built.prepare()
    assert not built.data_path.exists()


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(5, "Input/output error")])
def test_storage_that_fails_is_no_damaged_recording(tmp_path, mixed, monkeypatch, error):
    monkeypatch.setattr(storage, "PAUSES", (0.0, 0.0))
    errors, load = [error] * 2, audio_check.load

    def flaky(audio, sampling_rate=0):
        if errors and str(audio) == str(tmp_path / "a.wav"):
            raise errors.pop()
        return load(audio, sampling_rate)

    monkeypatch.setattr(audio_check, "load", flaky)
    built = corpus(tmp_path / "once", mixed)
    built.prepare()
    assert len(utterances(built)) == 40 and not errors
    errors[:] = [error] * 99
    built = corpus(tmp_path / "always", mixed)
    with pytest.raises(storage.StorageError, match=r"a\.wav.* cannot be read, 3 attempts"):
        built.prepare()
    assert not built.data_path.exists() and not list(tmp_path.glob("always/**/incomplete*"))


def test_nothing_at_all_and_a_folder_without_index(tmp_path):
    with pytest.raises(ValueError, match="no utterance at all"):
        corpus(tmp_path, []).prepare()
    built = corpus(tmp_path, [item(0)])
    built.data_path.mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"without its index\.parquet"):
        built.prepare()


def test_damaged_files_of_a_prepared_corpus_are_named(tmp_path):
    built = corpus(tmp_path, [item(0)])
    built.prepare()
    kept = built.index_path.read_bytes()
    for content in (b"", b"hi", kept[:-9]):
        built.index_path.write_bytes(content)
        with pytest.raises(ValueError, match=r"index\.parquet is damaged .*Delete its folder and build again"):
            built.index()
    (built.data_path / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .*Delete its folder"):
        corpus(tmp_path, [item(0)])


def test_same_bytes_whatever_the_threads(tmp_path, mixed, monkeypatch):
    contents = []
    for threads in (1, 4):
        monkeypatch.setattr(conversion, "MAX_THREADS", threads)
        built = corpus(tmp_path / str(threads), mixed)
        built.prepare()
        files = [built.index_path, *sorted(built.data_path.glob("*.array_record*"))]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    built = corpus(tmp_path, [item(number) for number in range(20)])
    built.prepare()
    files = sorted(file.name for file in built.data_path.glob("*.array_record*"))
    assert len(files) > 3
    assert files[0].endswith(f"-00000-of-{len(files):05d}")
    again = ToneCorpus(data_dir=tmp_path)
    assert [u.id for u in utterances(again)] == [f"u{number}" for number in range(20)]
    assert again.info.splits[shards.SPLIT].num_examples == 20


def test_data_source_can_be_sent_to_a_worker_process(tmp_path):
    built = corpus(tmp_path, [item(0), item(1)])
    built.prepare()
    source = pickle.loads(pickle.dumps(built.as_data_source(split=shards.SPLIT)))
    assert source[1]["id"] == b"u1"


def test_items_are_converted_in_a_bounded_window(tmp_path):
    """A large corpus is never held in memory: the source is read only a little ahead of what is written."""
    drawn = []

    def source():
        for number in range(200):
            drawn.append(number)
            yield item(number, audio=tone(0.1), transcript="")

    for count, _ in enumerate(conversion.in_order(source()), start=1):
        assert len(drawn) - count <= 4 * conversion.MAX_THREADS
    assert count == 200


def test_no_tensorflow_and_no_jax(tmp_path):
    code = (
        "import sys, toy_corpus\n"
        f"c = toy_corpus.ToneCorpus(data_dir={str(tmp_path)!r})\n"
        "c.items = [toy_corpus.item(0)]\n"
        "c.prepare()\n"
        "c.as_data_source(split='full')[0]\n"
        "sys.exit(', '.join({'tensorflow', 'jax', 'torch'} & set(sys.modules)) or 0)"
    )
    done = run_python(code)
    assert done.wait(60) == 0, done.stderr.read()


SLOW_BUILD = """
import signal, sys, time, toy_corpus
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit "ignore"
from mser_jax.corpora import audio_check
load = audio_check.load
audio_check.load = lambda *args: (time.sleep({delay}), load(*args))[1]
corpus = toy_corpus.ToneCorpus(data_dir={folder!r})
corpus.items = [toy_corpus.item(number) for number in range(60)]
corpus.prepare()
print(corpus.asked)
"""


def run_python(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{sys.path[0]}:{_root()}:{_here()}", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _here():
    return __file__.rpartition("/")[0]


def _root():
    return builder.__file__.rpartition("/mser_jax/")[0]


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_build_leaves_nothing_that_looks_complete(tmp_path, kind):
    built = corpus(tmp_path, [item(number) for number in range(60)])
    process = run_python(SLOW_BUILD.format(folder=str(tmp_path), delay=0.2))
    while not (parts := list(tmp_path.glob("**/*.tmp"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(kind)
    process.wait(30)
    assert process.returncode != 0
    assert not built.data_path.exists()
    assert not list(tmp_path.glob("**/index.parquet"))
    assert parts[0].exists() == (kind == signal.SIGKILL)
    built.prepare()
    assert [u.id for u in utterances(built)] == [f"u{number}" for number in range(60)]
    assert not list(tmp_path.glob("**/incomplete*"))


def test_two_processes_build_once(tmp_path):
    processes = [run_python(SLOW_BUILD.format(folder=str(tmp_path), delay=0.05)) for _ in range(2)]
    output = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    assert sorted(out.strip() for out, _ in output) == ["0", "1"]
    built = corpus(tmp_path, [])
    assert len(utterances(built)) == 60
    assert {u.emotion for u in utterances(built)} == {emotions.canonical("Wut")[0]}
