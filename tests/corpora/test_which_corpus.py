"""Which corpus a folder is: by content, whatever its path; and two folders of one name are two corpora."""

import json
import os
import pathlib
import shutil

import pytest
import soundfile
from toy_corpus import tone

from mser_jax.corpora import audio_check, registry
from mser_jax.corpora.folder import content
from mser_jax.data import identity, sources
from mser_jax.evaluation import rows as result_rows


def make(folder, count=2, seed=0, **fields):
    """A folder of tones; the speaker is 01, and so is everybody's."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", tone(0.3, seed=seed + number), 16_000)
        lines.append({"path": f"{number}.wav", "language": "de", "emotion": "sad", "speaker": "01", **fields})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def name(folder, data):
    return registry.corpus_builder(f"speech_folder:{folder}", str(data)).short_name


def test_a_folder_is_one_however_it_is_written(tmp_path, monkeypatch):
    folder, data = make(tmp_path / "Mein Korpus"), tmp_path / "data"
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    ways = [folder, f"{folder}/", ".", "../Mein Korpus", f"{folder}/../Mein Korpus/.", tmp_path / "link"]
    names = {name(way, data) for way in ways}
    assert len(names) == 1 and names.pop().startswith("mein_korpus-")
    table = sources.load_table("speech_folder:.", str(data))
    assert set(table["corpus"]) == {"Mein Korpus"} and set(table["speaker"]) == {"Mein Korpus:01"}
    for twice in (f"speech_folder:{folder},speech_folder:{folder}/", "speech_folder:.,speech_folder:../Mein Korpus@2"):
        with pytest.raises(ValueError, match="is given twice"):
            sources.load_table(twice, str(data))
    with pytest.raises(ValueError, match="hold the same recordings"):
        sources.load_table(f"speech_folder:{folder},speech_folder:{tmp_path / 'link'}", str(data))
    shutil.copytree(folder, tmp_path / "copy" / folder.name)
    with pytest.raises(ValueError, match="hold the same recordings"):
        sources.load_table(f"speech_folder:.,speech_folder:{tmp_path / 'copy' / folder.name}", str(data))


def test_a_generated_set_is_named_by_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    names = {registry.corpus_builder(f"m5ser:{way}").short_name for way in (".", "../mine", f"{tmp_path}/mine/")}
    assert names == {"m5ser-mine"}


def test_two_folders_of_one_name_are_two_corpora(tmp_path):
    data = tmp_path / "data"
    one, two = make(tmp_path / "a" / "speech"), make(tmp_path / "b" / "speech", seed=7)
    stated = make(tmp_path / "c" / "speech", seed=20, corpus="mine")
    again = make(tmp_path / "d" / "speech", seed=30, corpus="mine")
    specs = [f"speech_folder:{folder}" for folder in (one, two, stated, again)]
    table = sources.load_table(",".join(specs), str(data))
    assert sorted(set(table["corpus"])) == ["a/speech", "b/speech", "mine"]
    assert sorted(set(table["speaker"])) == ["a/speech:01", "b/speech:01", "mine:01"]
    pairs = result_rows.corpora_by_language({key: table[key] for key in ("corpus", "language")})
    assert [(corpus, len(at)) for corpus, _, at in pairs] == [("a/speech", 2), ("b/speech", 2), ("mine", 4)]
    assert set(sources.load_table(specs[0], str(data))["corpus"]) == {"speech"}, "alone it is called as it is"
    # Whoever trained on one of them under its short name has seen it: unseen would be a guess.
    for corpus, trained, seen in [
        ("speech", "a/speech", True), ("a/speech", "speech", True), ("a/speech", "b/speech", False),
        ("a/speech", "a/speech", True), ("eech", "speech", False),
    ]:  # fmt: skip
        why = result_rows.why_not_zero_shot(corpus, "de", {"corpora": [trained], "languages": ["fr"]})
        assert bool(why) == seen, (corpus, trained, why)


def test_the_namesake_of_a_trained_folder_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(identity.logging, "warning", lambda text, *values: told.append(text % values))
    one, two = make(tmp_path / "a" / "speech"), make(tmp_path / "b" / "speech", seed=7)
    stated = make(tmp_path / "c" / "speech", seed=20, corpus="mine")
    tables = [sources.load_table(f"speech_folder:{folder}", str(tmp_path / "data")) for folder in (one, two, stated)]
    for table in tables:
        identity.warn_of_namesakes(table.sources, tables[0].sources)
    (line,) = told
    assert line.startswith(f"speech_folder:{two} counts as trained on: speech_folder:{one} is called 'speech' as well")


def test_a_folder_called_like_a_published_corpus():
    class Corpus:
        def __init__(self, spec, place="", own_corpus=""):
            self.spec, self.folder, self.place, self.own_corpus = spec, spec, place, own_corpus

    def columns(corpus):
        values = sources.np.array([corpus], object)
        return {"corpus": values, "speaker": sources.np.array([f"{corpus}:1"], object)}

    parts = [columns("emodb"), columns("emodb"), columns("emodb")]
    there = [Corpus("emodb"), Corpus("speech_folder:/x/emodb", "/x/emodb", "emodb")]
    there.append(Corpus("speech_folder:/y/x/emodb", "/y/x/emodb", "emodb"))
    identity.separate(there, parts)
    assert [part["corpus"][0] for part in parts] == ["emodb", "/x/emodb", "y/x/emodb"]
    assert [part["speaker"][0] for part in parts] == ["emodb:1", "/x/emodb:1", "y/x/emodb:1"]


def test_folders_whose_names_differ_in_letters_that_are_no_ascii(tmp_path):
    data = tmp_path / "data"
    names = [name(make(tmp_path / folder), data) for folder in ("данные", "資料")]
    assert names[0] != names[1]
    table = sources.load_table(",".join(f"speech_folder:{tmp_path / f}" for f in ("данные", "資料")), str(data))
    assert sorted(set(table["corpus"])) == ["данные", "資料"]


def test_other_recordings_of_equal_size_are_noticed_and_touched_ones_are_not(tmp_path, monkeypatch):
    folder, data = make(tmp_path / "f"), tmp_path / "data"
    path = folder / "0.wav"
    os.utime(path, (1e9, 1e9))
    first, before = name(folder, data), path.stat()
    other = tmp_path / "other.wav"
    soundfile.write(other, tone(0.3, seed=99), 16_000)
    original = path.read_bytes()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert name(folder, data) != first
    path.write_bytes(original)
    os.utime(path)
    assert name(folder, data) == first
    shutil.move(folder, tmp_path / "moved" / "f")
    assert name(tmp_path / "moved" / "f", data) == first


def test_digests_are_read_once(tmp_path, monkeypatch):
    folder, data = make(tmp_path / "f", count=5), tmp_path / "data"
    monkeypatch.setattr(content, "_YOUNG", 0)
    first, read = name(folder, data), []
    digest = content._digest
    monkeypatch.setattr(content, "_digest", lambda path: read.append(path) or digest(path))
    assert (name(folder, data), read) == (first, [])
    os.utime(folder / "3.wav")
    assert name(folder, data) == first
    assert [pathlib.Path(path).name for path in read] == ["3.wav"]
    (memory,) = (data / "speech_folder").glob(".content-*.json")
    for damaged in ("", "[1, 2]", '{"/x": 3}', "{"):
        memory.write_text(damaged)
        assert name(folder, data) == first
    memory.unlink()
    memory.mkdir()  # cannot be written: costs time, not the run
    assert name(folder, data) == first
    os.utime(folder / "0.wav", (1e9, 1e9))
    monkeypatch.setattr(audio_check, "load", None)  # nothing is decoded for a name
    assert name(folder, data) == first


def build(folder, data):
    corpus = registry.corpus_builder(f"speech_folder:{folder}", str(data))
    corpus.prepare()
    return json.loads(corpus.report_path.read_text())


def test_equal_recordings_are_told_and_refused_across_splits(tmp_path):
    folder = make(tmp_path / "f", count=4)
    samples, rate = soundfile.read(folder / "0.wav", dtype="int16")
    shutil.copy(folder / "0.wav", folder / "1.wav")
    soundfile.write(folder / "2.flac", samples, rate)  # other bytes, the same samples

    def listed(*changes):
        files = ("0.wav", "1.wav", "2.flac", "3.wav")
        lines = [{"path": file, "language": "de", "emotion": "sad", "speaker": "a"} | change
                 for file, change in zip(files, changes, strict=True)]  # fmt: skip
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))

    listed({}, {"emotion": "angry"}, {"speaker": "b"}, {})
    report = build(folder, tmp_path / "data")
    counts = {"recordings that came before": 2, "with another label": 1, "with another speaker": 1}
    assert report["repeats"] == counts
    assert report["repeats_examples"][0] == "1.wav = 0.wav: label 'angry' against 'sad'"
    listed({"split": "train"}, {"split": "train"}, {"split": "train"}, {"split": "test"})
    assert build(folder, tmp_path / "data")["repeats"] == {"recordings that came before": 2}
    refused = r"manifest.jsonl, line 2: '1.wav' \({}\) .* '0.wav' \(train\) of line 1"
    for split in ("test", "validation"):
        listed({"split": "train"}, {"split": split}, {"split": split}, {"split": "test"})
        with pytest.raises(ValueError, match=refused.format(split)):
            build(folder, tmp_path / "data")
        listed({"split": "train"}, {}, {"split": split}, {"split": "test"})
        with pytest.raises(ValueError, match=rf"'2.flac' \({split}\) is the same recording as '0.wav' \(train\)"):
            build(folder, tmp_path / "data")
    assert not list((tmp_path / "data" / "speech_folder").glob("*/incomplete*"))


def test_facts_of_speakers_are_read_by_table(tmp_path):
    folder = make(tmp_path / "f", count=6)
    said = [("mujer", "30.0"), ("w", -1), ("HOMBRE", 300), ("mariposa", "20-29"), ("divers", "adult"), (None, "")]
    lines = [{"path": f"{n}.wav", "language": "es", "emotion": "sad", "gender": gender, "age": age}
             for n, (gender, age) in enumerate(said)]  # fmt: skip
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    index = registry.open_corpus(f"speech_folder:{folder}", str(tmp_path / "data")).index
    assert index["gender"].to_pylist() == ["female", "female", "male", "", "other", ""]
    assert index["age"].to_pylist() == ["30", "", "", "20-29", "adult", ""]
    report = build(folder, tmp_path / "data")
    assert report["not_understood"] == {"age '-1'": 1, "age '300'": 1, "gender 'mariposa'": 1}


def test_names_of_files_that_are_not_utf8_are_stored_or_counted(tmp_path):
    folder = make(tmp_path / "f", count=25)
    odd = os.fsencode(folder) + b"/\xe9t\xe9.wav"
    (folder / "0.wav").rename(os.fsdecode(odd))
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines[0]["path"], lines[1]["path"] = "\udce9t\udce9.wav", "gone\udce9.wav"
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    corpus = registry.corpus_builder(f"speech_folder:{folder}", str(tmp_path / "data"))
    corpus.prepare()
    report = json.loads(corpus.report_path.read_text())
    assert (report["built"], report["skipped"]) == (24, 1)
    assert report["skipped_items"][0]["path"] == "gone\\xe9.wav"
    assert corpus.index()["id"][0].as_py() == "\\xe9t\\xe9.wav"


def test_one_recording_in_two_folders_is_told_and_refused_across_splits(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(identity.logging, "warning", lambda text, *values: told.append(text % values))
    data, one, two = tmp_path / "data", tmp_path / "one", tmp_path / "two"

    def table(split, others, count=3):
        for folder, of, seed in ((one, split, 0), (two, others, 2)):  # 2.wav of the one is 0.wav of the other
            shutil.rmtree(folder, ignore_errors=True)
            make(folder, count=count, seed=seed, **({"split": of} if of else {}))
        return sources.load_table(f"speech_folder:{one},speech_folder:{two}", str(data))

    mixed = table("train", "train")
    assert "hold the same 1 recordings, 0 of them in different splits, such as 2.wav" in told[0]
    assert len(table("", "test")) == 6
    with pytest.raises(
        ValueError, match=r"hold 1 recordings in two splits, such as '2.wav' \(train\) and '0.wav' \(test\)"
    ):
        table("train", "test")
    parts = [mixed.of_source(number).columns for number in (0, 1)]
    assert identity.warn_of_trained(parts[1], parts[0]) == 1
    assert "1 of the 3 scored recordings are trained on as well" in told[-1] and "0.wav of two is in one" in told[-1]
    assert identity.warn_of_trained(parts[0], parts[0]) == 0
