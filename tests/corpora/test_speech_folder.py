import collections
import json

import numpy as np
import pytest
import soundfile
from toy_corpus import tone

from mser_jax.corpora import audio_check, emotions, record, registry, speech_folder


def make_folder(folder, rows, raw_lines=()):
    """Writes a tone for every row that has a path below the folder, and the manifest."""
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        path = folder / row["path"]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, tone(seed=number), 16_000)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] + list(raw_lines)
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def opened(folder, data_dir):
    return registry.open_corpus(f"speech_folder:{folder}", str(data_dir))


def utterances(corpus):
    return [record.Utterance.from_example(corpus.source[row]) for row in range(len(corpus.source))]


def test_minimal_and_full_rows(tmp_path):
    full = {
        "path": "anna/2.wav",
        "corpus": "mine",
        "language": "pt-BR",
        "speaker": "mine:anna",
        "gender": "f",
        "age": 31,
        "emotion": "Ps",
        "emotion_norm": "angry",  # ignored: the canonical label comes from emotions.py
        "transcript": "bom dia\u2028amigo",
        "parallel_id": "p7",
        "split": "validation",
        "valence": 3,
        "votes": {"ps": 2, "angry": 1},
        "license": "CC0",
        "sentence_id": "17",
        "duration_s": 99.0,
        "arousal": None,
    }
    minimal = {"path": "1.wav", "language": "de", "emotion": "", "gender": None}
    corpus = opened(make_folder(tmp_path / "My Folder!", [minimal, full]), tmp_path / "data")
    first, second = utterances(corpus)
    assert (first.id, first.corpus, first.speaker) == ("1.wav", "My Folder!", "")
    assert (first.gender, first.emotion, first.emotion_native, first.domain) == ("", "", "", "real")
    assert (second.speaker, second.age, second.valence, second.language) == ("mine:anna", "31", 3.0, "pt-BR")
    assert (second.emotion, second.emotion_native, second.split) == ("surprise", "Ps", "validation")
    assert second.parallel_id == "p7"
    assert first.parallel_id == ""
    assert second.transcript == full["transcript"]
    assert json.loads(second.votes) == full["votes"]
    assert np.isnan(second.arousal)
    assert second.duration_s == pytest.approx(0.5)
    assert corpus.name.startswith("my_folder-")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "1.wav", "language": "de"', "line 2: not JSON"),
        ("[1, 2]", "line 2: expected a JSON object"),
        ('{"path": "2.wav", "language": "de"}', "line 2: required field 'emotion' is missing"),
        ('{"path": "2.wav", "emotion": "sad"}', "line 2: required field 'language' is missing"),
        ('{"path": "", "language": "de", "emotion": "sad"}', "line 2: required field 'path'"),
        (
            '{"path": "1.wav", "language": "de", "emotion": "sad"}',
            "line 2: path '1.wav' was already listed in line 1",
        ),
        (
            '{"path": "2.wav", "language": "German", "emotion": "sad"}',
            "line 2: language 'German' is not BCP-47",
        ),
        ('{"path": "2.wav", "language": "DE", "emotion": "sad"}', "line 2: language 'DE' is not BCP-47"),
        ('{"path": "2.wav", "language": "de", "emotion": "sad", "split": "dev"}', "line 2: split 'dev'"),
        (
            '{"path": "2.wav", "language": "de", "emotion": "sad", "valence": "high"}',
            "valence: expected a number",
        ),
        ('{"path": "2.wav", "language": "de", "emotion": "sad", "speaker": [1]}', "speaker: expected text"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    folder = make_folder(tmp_path / "f", [{"path": "1.wav", "language": "de", "emotion": "sad"}], [line])
    with pytest.raises(ValueError, match=message) as caught:
        opened(folder, tmp_path / "data")
    assert str(folder / "manifest.jsonl") in str(caught.value)


def test_not_a_speech_folder(tmp_path):
    for folder, message in [(tmp_path / "no", "no folder"), (tmp_path, "no manifest.jsonl in")]:
        with pytest.raises(FileNotFoundError, match=message) as caught:
            opened(folder, tmp_path)
        assert "A speech folder holds a manifest.jsonl" in str(caught.value)
    with pytest.raises(ValueError, match="speech_folder:DIR"):
        registry.open_corpus("speech_folder", str(tmp_path))
    (tmp_path / "manifest.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="is empty"):
        opened(tmp_path, tmp_path / "data")


def test_reused_without_reading_audio_and_rebuilt_when_the_source_changed(tmp_path, monkeypatch):
    rows = [{"path": f"{n}.wav", "language": "de", "emotion": "sad"} for n in range(3)]
    folder, data = make_folder(tmp_path / "f", rows), tmp_path / "data"
    first = opened(folder, data)

    def never(*args):
        raise AssertionError(f"read {args}")

    with monkeypatch.context() as patch:
        patch.setattr(audio_check, "load", never)
        assert opened(folder, data).folder == first.folder
    make_folder(folder, [rows[0] | {"emotion": "angry"}, *rows[1:]])
    relabelled = opened(folder, data)
    assert [u.emotion for u in utterances(relabelled)] == ["angry", "sad", "sad"]
    soundfile.write(folder / "1.wav", tone(0.7), 16_000)
    longer = opened(folder, data)
    assert utterances(longer)[1].duration_s == pytest.approx(0.7)
    assert len({first.folder, relabelled.folder, longer.folder}) == 3
    assert [u.emotion for u in utterances(first)] == ["sad"] * 3  # the old one stays readable


def test_real_recordings(shared, tmp_path):
    """Every sixtieth real recording: counts per corpus, language and emotion, words and samples."""
    speech = shared / "speech"
    lines = (speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][::60]
    folder = tmp_path / "real"
    folder.mkdir()
    moved = [row | {"path": str(speech / row["path"])} for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in moved), encoding="utf-8")
    corpus = opened(f"{folder}?outside={speech}", tmp_path / "data")
    index = corpus.index.to_pylist()
    assert len(index) == len(rows) == 61
    for name, theirs in [("corpus", "corpus"), ("language", "language"), ("emotion", "emotion_norm")]:
        ours = collections.Counter(row[name] for row in index)
        assert ours == collections.Counter(row[theirs] for row in rows), name
    for row, ours in zip(rows, index, strict=True):
        assert ours["speaker"] == row["speaker"]
        assert ours["transcript"] == (row["transcript"] or "")
        assert ours["duration_s"] == pytest.approx(row["duration_s"], abs=1e-3)
        assert -60 < ours["loudness_db"] < -3
    pitches = np.array([row["pitch_hz"] for row in index])
    assert np.isfinite(pitches).mean() > 0.95
    for number in (0, 30, 60):
        theirs, rate = soundfile.read(speech / rows[number]["path"], dtype="int16")
        assert rate == 16_000
        np.testing.assert_array_equal(audio_check.load(corpus.source[number]["audio"])[0], theirs)


def test_fingerprint_follows_files_and_labels_not_the_place(tmp_path, monkeypatch):
    rows = [{"path": "a.wav", "language": "de", "emotion": "sad"}]
    one, two = make_folder(tmp_path / "one", rows), make_folder(tmp_path / "two", rows)
    path = speech_folder.epath.Path
    first = speech_folder.fingerprint(path(one))
    assert first == speech_folder.fingerprint(path(two))
    with monkeypatch.context() as patch:
        patch.setattr(emotions, "canonical", lambda native: ("", None))
        assert first != speech_folder.fingerprint(path(one))
    (two / "a.wav").unlink()
    assert first != speech_folder.fingerprint(path(two))
