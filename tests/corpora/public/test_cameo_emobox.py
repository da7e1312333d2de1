"""Two collections: CAMEO's parquet files, and EmoBox's lists, alone as an index and as folds of a corpus."""

import json
import subprocess
import sys
from pathlib import Path

import miniature
import pyarrow as pa
import pyarrow.parquet
import pytest

from mser_jax.corpora import completeness, emobox_lists, registry
from mser_jax.data import sources

ROOT = Path(__file__).parents[3]


def cameo_row(file_id, dataset, emotion, language, **more):
    audio = {"bytes": miniature.sound(file_id), "path": f"{file_id}.wav"}
    row = {"file_id": f"{file_id}.wav", "audio": audio, "emotion": emotion, "transcription": "Words.", "gender": "Male"}
    row |= {"speaker_id": "07", "age": None, "dataset": dataset, "language": language, "license": "CC0"}
    return row | more


def test_cameo(tmp_path):
    """More rows than are read at a time, thirteen corpora's spellings, one recording without bytes."""
    emotions = ("anger", "disgust", "fear", "happiness", "neutral", "sadness")
    crema = [cameo_row(f"10{n:02}_IEO_X", "CREMA-D", emotions[n % 6], "English") for n in range(40)]
    crema[3]["audio"] = None
    rest = [
        cameo_row("07-C-2-5", "CaFE", "surprise", "French", age="15"),
        cameo_row("a", "Oréau", "calm", "French", speaker_id=None, gender=None),
        cameo_row("b", "JL-Corpus", "encouragement", "English"),
        cameo_row("c", "nEMO", "happiness", "Polish"),
        cameo_row("d", "EMNS", "sarcasm", "English"),
        cameo_row("e", "SUBESCO", "fear", "Bengali"),
    ]
    for name, rows in (("crema_d-00000-of-00001", crema), ("test-00000-of-00001", rest)):
        (tmp_path / "source" / "data").mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows)
        pa.parquet.write_table(table, tmp_path / "source" / "data" / f"{name}.parquet", row_group_size=16)
    records, index, report = miniature.build("cameo", tmp_path / "source", tmp_path / "data")
    assert len(records) == 45 and report["skipped_by_reason"] == {"empty": 1}
    first = records["cremad/1001_IEO_X"]
    assert (first.corpus, first.speaker, first.language, first.gender) == ("cremad", "cremad:07", "en", "male")
    assert (first.emotion, first.emotion_native, first.transcript) == ("disgust", "disgust", "Words.")
    cafe = records["cafe/07-C-2-5"]
    assert (cafe.language, cafe.emotion, cafe.age, cafe.license) == ("fr-CA", "surprise", "15", "CC0")
    assert records["oreau/a"].speaker == "" and records["jl_corpus/b"].emotion == ""
    assert records["emns/d"].corpus == "emns" and records["jl_corpus/b"].language == "en-NZ"
    assert report["merges"] == {"calm→neutral": 1}
    assert {row["split"] for row in index if row["corpus"] == "cremad"} == {""} and cafe.split == "test"
    pa.parquet.write_table(pa.table({"audio": [b""]}), tmp_path / "source" / "data" / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet: no columns \['dataset'"):
        miniature.build("cameo", tmp_path / "source", tmp_path / "more")


def test_cameo_without_one_of_its_files(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    path = source / "ravdess-00001-of-00002.parquet"
    rows = [cameo_row(f"{n}", "RAVDESS", "anger", "English") for n in range(30)]
    pa.parquet.write_table(pa.Table.from_pylist([*rows, cameo_row("x", "RAVDESS", "anger", None)]), path)
    with pytest.raises(completeness.PartialCorpusError, match=r"no ravdess-00000-of-00002\.parquet"):
        miniature.build("cameo", source, tmp_path / "data", allow_partial=False)
    records, _, report = miniature.build("cameo", source, tmp_path / "data")
    assert len(records) == 30 and report["partial"].endswith("no ravdess-00000-of-00002.parquet")
    assert report["skipped_by_reason"] == {"table": 1} and "['language']" in report["skipped_items"][0]["detail"]
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"<html>", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ravdess-00001-of-00002\.parquet") as caught:
            miniature.build("cameo", source, tmp_path / "more")
        assert "\n" not in str(caught.value)


def lists(clone, corpus, folds, labels=None):
    """A miniature clone of EmoBox: {fold: {part: [(path, emotion, more)]}}."""
    for fold, parts in folds.items():
        for part, rows in parts.items():
            path = clone / "data" / corpus / f"fold_{fold}" / f"{corpus}_{part}_fold_{fold}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                {"key": f"{corpus}-{name}", "dataset": corpus, "wav": f"downloads/{corpus}/{wav}", "emo": emo, **more}
                for name, wav, emo, more in rows
            ]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if labels:
        (clone / "data" / corpus / "label_map.json").write_text(json.dumps(labels))
    return clone


EMODB = {f"{s}a{t}{e}a": e for s in ("03", "08", "09") for t in ("01", "02") for e in "WLEAFTN"}


def emodb_lists(clone):
    def rows(chosen):
        return [(name, f"wav/{name}.wav", EMODB.get(name, "W"), {}) for name in chosen]

    names, absent = list(EMODB), "16b10Wa"
    folds = {
        1: {"test": rows([*names[:10], absent]), "train": rows(names[10:])},
        2: {"test": rows(names[10:15]), "train": rows([*names[:10], *names[15:]])},
    }
    # As in the original, fold 1 is there under an older name too.
    old = clone / "data" / "emodb" / "fold_1" / "emodb_test_fold1.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"key": "emodb-old", "wav": "downloads/emodb/wav/old.wav", "emo": "W"}) + "\n")
    return lists(clone, "emodb", folds)


def test_folds_of_a_corpus_by_file(tmp_path):
    """One file of the lists is not there, and one that is there is in no list."""
    miniature.write(tmp_path / "source", [f"download/wav/{name}.wav" for name in [*EMODB, "10b01Na"]])
    clone = emodb_lists(tmp_path / "EmoBox")
    command = [sys.executable, str(ROOT / "tools" / "prepare_corpus.py"), "emodb", "--source", tmp_path / "source"]
    command += ["--emobox", clone, "--data_dir", tmp_path / "data", "--allow_partial"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = "EmoBox: {'listed': 43, 'found': 42, 'unlisted': 1, 'tested in fold 1': 10, 'tested in fold 2': 5}"
    assert counts in done.stdout and "emobox" in done.stdout
    index = {row["id"]: row for row in registry.open_corpus("emodb:emobox-2", str(tmp_path / "data")).index.to_pylist()}
    assert {name for name in index if index[name]["emobox_fold"] == 1} == set(list(EMODB)[:10])
    assert {name for name in index if index[name]["split"] == "test"} == set(list(EMODB)[10:15])
    assert (index["10b01Na"]["emobox_fold"], index["10b01Na"]["split"]) == (-1, "left out")
    table = sources.load_table("emodb:emobox-2", str(tmp_path / "data"))
    for part, count in (("train", 37), ("test", 5), ("train,validation,test", 42)):
        assert "10b01Na" not in table.filter(split=part, emotions=None)["id"].tolist()
        assert len(table.filter(split=part, emotions=None)) == count
    again = registry.corpus_builder("emodb", str(tmp_path / "data"), str(tmp_path / "source"), str(clone), True)
    again.prepare()
    other = emodb_lists(tmp_path / "other" / "EmoBox")
    (other / "data" / "emodb" / "fold_1" / "emodb_test_fold_1.jsonl").unlink()
    with pytest.raises(ValueError, match=r"was not built with the lists of EmoBox in .*other"):
        registry.corpus_builder("emodb", str(tmp_path / "data"), str(tmp_path / "source"), str(other), True).prepare()
    miniature.build("emodb", tmp_path / "source", tmp_path / "without")
    with pytest.raises(ValueError, match="prepared without EmoBox's folds"):
        registry.corpus_builder("emodb", str(tmp_path / "without"), "", str(clone)).prepare()
    with pytest.raises(FileNotFoundError, match=r"no lists of 'shemo'; it has \['emodb'\]"):
        registry.corpus_builder("shemo", str(tmp_path / "without"), str(tmp_path / "source"), str(clone)).prepare()
    with pytest.raises(ValueError, match="takes no source"):
        registry.corpus_builder("m5ser_mini", emobox=str(clone))


def test_a_file_is_found_by_the_end_of_its_path_that_is_its_alone(tmp_path):
    one, two = ("x", "s1/a/01.wav", "n", {}), ("y", "s2/a/01.wav", "n", {})
    cut = ("u1", "long.flac", "n", {"start_time": 0.5, "end_time": 1.0})
    clone = lists(tmp_path, "savee", {1: {"test": [one, cut], "train": [two]}})
    found = emobox_lists.Lists(clone, "savee")

    def fold(name, origin):
        return found.fold(registry.corpus_class("savee")(data_dir=str(tmp_path)).raw(
            id=name, speaker="", origin=origin
        ))  # fmt: skip

    assert fold("1", "AudioData/S1/a/01.flac") == 1 and fold("2", "s2/a/01.wav") == 0
    assert found.found == {"x", "y"}
    assert (
        fold("SavEE/S1/a/01", "typo.wav") == 1
        and fold("3", "a/01.wav") == -1
        and fold("4", "other/long.flac") == -1
        and found.found == {"x", "y"}
    )
    assert fold("u1", "long.flac 0.5–1.0 s") == 1 and found.counts()["found"] == 3
    (tmp_path / "data" / "savee" / "fold_2").mkdir()
    (tmp_path / "data" / "savee" / "fold_2" / "savee_test_fold_2.jsonl").write_text('{"wav": 1}\n')
    with pytest.raises(ValueError, match=r"savee_test_fold_2.jsonl:1: no line of EmoBox \(KeyError"):
        emobox_lists.Lists(clone, "savee").entries["x"]


def test_emobox_as_an_index(tmp_path):
    """Speakers by our builder's grammar, EmoBox's labels with the merges it made, folds; a corpus we do not have."""
    names = [f"Ses0{s}{g}_impro01_{g}00{n}" for s in (1, 2) for g in "FM" for n in range(6)]
    emotions = ("neu", "hap", "ang", "sad", "exc", "neu")
    rows = [
        (n, f"Session{n[4]}/sentences/wav/{n[:-5]}/{n}.wav", e, {}) for n, e in zip(names, emotions * 4, strict=True)
    ]
    folds = {1: {"test": rows[:12], "train": rows[12:]}, 2: {"test": rows[12:], "train": rows[:12]}}
    words = {"neu": "Neutral", "hap": "Happy", "ang": "Angry", "sad": "Sad", "exc": "Happy"}
    clone = lists(tmp_path / "EmoBox", "iemocap", folds, words)
    miniature.write(clone / "downloads" / "iemocap", [wav for _, wav, *_ in rows])
    records, index, report = miniature.build("emobox:iemocap", clone, tmp_path / "data")
    assert list(records) == names and report["merges"] == {"excited→happy": 4}
    assert {u.corpus for u in records.values()} == {"iemocap"} and {u.language for u in records.values()} == {"en"}
    assert records[names[0]].speaker == "iemocap:Ses01F" and records[names[18]].gender == "male"
    assert records[names[1]].emotion_native == "Happy" and records[names[4]].emotion_native == "exc"
    assert [row["emobox_fold"] for row in index] == [1] * 12 + [2] * 12 and report["emobox"]["found"] == 24
    for name in names[::2]:
        next((clone / "downloads").rglob(f"{name}.wav")).unlink()
    with pytest.raises(
        completeness.PartialCorpusError, match=r"12 of 24 utterances.*at least 12 recordings are missing"
    ):
        miniature.build("emobox:iemocap", clone, tmp_path / "half", allow_partial=False)
    half, *_ = miniature.build("emobox:iemocap", clone, tmp_path / "half")
    assert list(half) == names[1::2]
    opened = registry.open_corpus("emobox:iemocap:emobox-2", str(tmp_path / "data"))
    assert opened.index["split"].to_pylist() == ["train"] * 12 + ["test"] * 12 and opened.name == "emobox_iemocap"


def test_emobox_over_recordings_elsewhere(tmp_path):
    """Official split by its validation part; utterances cut out of a long recording; no builder for Polish."""
    cut = [
        (f"u{n}-poker", "pavoque-poker.flac", "poker", {"start_time": n / 2, "end_time": n / 2 + 0.4}) for n in range(4)
    ]
    clone = lists(tmp_path / "EmoBox", "pavoque", {1: {"test": cut[:1], "train": cut[1:]}}, {"poker": "Poker"})
    (tmp_path / "sound").mkdir()
    long = miniature.sound("long", seconds=2.0, rate=44_100, audio_format="FLAC")
    (tmp_path / "sound" / "pavoque-poker.flac").write_bytes(long)

    def build(name, source):
        builder = registry.corpus_builder(f"emobox:{name}", str(tmp_path / "data"), str(source), str(clone))
        builder.prepare()
        return builder.index().to_pylist()

    index = build("pavoque", tmp_path / "sound")
    assert [round(row["duration_s"], 3) for row in index] == [0.4] * 4
    assert [row["emobox_fold"] for row in index] == [1, 0, 0, 0] and {row["split"] for row in index} == {""}
    polish = [(f"m{n}.s_to_5", f"m{n}.s_to_5.wav", "s", {}) for n in range(6)]
    parts = {"test": polish[:2], "train": polish[2:4], "valid": polish[4:]}
    lists(clone, "polish", {1: parts}, {"s": "Fear"})
    miniature.write(tmp_path / "all" / "polish", [wav for _, wav, *_ in polish])
    index = build("polish", tmp_path / "all")
    assert {row["language"] for row in index} == {"pl"} and {row["emotion"] for row in index} == {"fear"}
    splits = {row["id"]: row["split"] for row in index}
    assert splits["m0.s_to_5"] == "test" and splits["m3.s_to_5"] == "train" and splits["m5.s_to_5"] == "validation"
    with pytest.raises(
        FileNotFoundError, match=r"prepare_corpus.py emobox:ravdess --source=DIR where DIR holds data/NAME"
    ):
        registry.open_corpus("emobox:ravdess", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="emobox:NAME"):
        registry.corpus_builder("emobox", str(tmp_path / "data"))
