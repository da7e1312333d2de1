"""EMOVO, Emozionalmente, AESDD, CaFE, Oréau and MESD, from miniatures with the true names, tables and defects."""

import csv
import json
import unicodedata

import miniature
import pytest


def test_emovo(tmp_path):
    """Stereo at 48 kHz."""
    expected = {"dis": "disgust", "gio": "happy", "neu": "neutral", "pau": "fear", "rab": "angry", "sor": "surprise"}
    expected["tri"] = "sad"
    names = [
        f"EMOVO/{speaker}/{code}-{speaker}-{sentence}.wav"
        for speaker in ("f1", "f2", "f3", "m1", "m2", "m3")
        for code in expected
        for sentence in ("b1", "d2")
    ]
    miniature.write(tmp_path / "emovo", names, rate=48_000, channels=2, seconds=0.15)
    miniature.write(tmp_path / "emovo", ["EMOVO/f1/rab-f1-l1.wav"], rate=48_000)
    records, index, report = miniature.build("emovo", tmp_path / "emovo", tmp_path / "data")
    assert len(records) == 85 and report["downmixed"] == 84 and report["skipped_items"] == []
    assert report["merges"] == {} and report["unlabelled"] == {}
    for code, emotion in expected.items():
        assert {records[f"{code}-{speaker}-b1"].emotion for speaker in ("f2", "m3")} == {emotion}
    question = records["sor-m2-d2"]
    assert (question.transcript, question.emotion_native) == ("Porti con te quella cosa?", "sorpresa")
    assert (question.gender, question.age, question.language) == ("male", "27", "it")
    folds = {row["speaker"].partition(":")[2]: row["emobox_fold"] for row in index}
    assert folds == {"f2": 1, "m3": 2, "m2": 3, "f3": 4, "f1": 5, "m1": 6}


EMOZIONALMENTE = [
    # file, actor, emotion, what five heard
    ("1613655062436", "ada", "joy", ["joy", "joy", "surprise", "joy", "neutrality"]),
    ("1613655062437", "ada", "neutrality", ["neutrality"] * 5),
    ("1613655062438", "bea", "anger", ["anger"] * 5),
    ("1613655062439", "bea", "disgust", ["anger", "disgust", "disgust", "sadness", "fear"]),
    ("1613655062440", "ciro", "fear", ["fear"] * 5),
    ("1613655062441", "ciro", "sadness", ["sadness"] * 5),
    ("1613655062442", "ciro", "surprise", ["surprise"] * 5),
]
SENTENCE = "La cascata fa molto rumore"


def _emozionalmente(folder, first_edition):
    tables = {
        "samples": [["file_name", "sentence", "sentence_language", "actor", "emotion_expressed"]]
        + [[f"{name}.wav", SENTENCE, "italian", actor, emotion] for name, actor, emotion, _ in EMOZIONALMENTE],
        "users": [
            ["username", "gender", "age", "mother_tongue"],
            ["ada", "female", 27, "italian"],
            ["bea", "female", 61, "italian"],
            ["ciro", "male", 33, "italian"],
            ["dino", "male", 19, "italian"],
        ],
        "evaluations": [["file_name", "evaluator", "emotion_recognized"]]
        + [[f"{name}.wav", "dino", heard] for name, _, _, all_heard in EMOZIONALMENTE for heard in all_heard],
    }
    if not first_edition:
        for split, actor in (("train", "ada"), ("dev", "bea"), ("test", "ciro")):
            tables[f"split/{split}"] = [["file_name"], *([f"{n}.wav"] for n, who, *_ in EMOZIONALMENTE if who == actor)]
    for name, rows in tables.items():
        path = folder / "emozionalmente_dataset/metadata" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    audio = folder / "emozionalmente_dataset/audio"
    miniature.write(audio, [f"{name}.wav" for name, *_ in EMOZIONALMENTE[1:]])
    miniature.write(audio, [f"{EMOZIONALMENTE[0][0]}.wav"], rate=44_100)
    miniature.write(audio, ["1600000000000.wav"])  # in no table
    return folder


@pytest.mark.parametrize("first_edition", [False, True])
def test_emozionalmente(tmp_path, first_edition):
    _emozionalmente(tmp_path / "source", first_edition)
    records, _, report = miniature.build("emozionalmente", tmp_path / "source", tmp_path / "data")
    assert len(records) == 7 and report["skipped_items"] == []
    assert report["left_out_on_purpose"] == {"no label": 1} and report["resampled_from_hz"] == {"44100": 1}
    assert [u.emotion for u in records.values()] == [
        "happy", "neutral", "angry", "disgust", "fear", "sad", "surprise"
    ]  # fmt: skip
    joy = records["1613655062436"]
    assert (joy.speaker, joy.gender, joy.age) == ("emozionalmente:ada", "female", "27")
    assert json.loads(joy.votes) == {"joy": 3, "surprise": 1, "neutrality": 1}
    assert joy.transcript == SENTENCE and joy.emotion_native == "joy"
    splits = [u.split for u in records.values()]
    official = ["train", "train", "validation", "validation", "test", "test", "test"]
    assert splits == ([""] * 7 if first_edition else official)


def test_emozionalmente_without_tables_says_so(tmp_path):
    miniature.write(tmp_path / "audio", ["1613655062436.wav"])
    with pytest.raises(FileNotFoundError, match=r"no metadata/samples\.csv in it"):
        miniature.build("emozionalmente", tmp_path / "audio", tmp_path / "data")


def test_aesdd(tmp_path):
    """Second takes have a letter; five names have 01 for 1, and one file ends before its sound."""
    folders = {"a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "s": "sadness"}
    names = [f"{folder}/{code}07 ({speaker}).wav" for code, folder in folders.items() for speaker in range(1, 7)]
    names += ["fear/f18 (5).wav", "fear/f18 (5)b.wav", "sadness/s01 (5)a.wav", "sadness/s01 (5)b.wav"]
    names += [f"fear/f{number} (01).wav" for number in (10, 11, 12, 13)] + ["disgust/d03 (01).wav"]
    miniature.write(tmp_path / "AESDD", names, rate=44_100)
    (tmp_path / "AESDD/sadness/s05 (3).wav").write_bytes(b"RIFF$\x00\x00\x00WAVEfmt ")
    records, index, report = miniature.build("aesdd", tmp_path / "AESDD", tmp_path / "data")
    assert len(records) == 39 and report["skipped_items"] == []
    assert report["left_out_on_purpose"] == {"broken as published: no samples in it": 1}
    assert report["corrections"] == {
        f"{name} (01).wav → {name} (1).wav": 1 for name in ("d03", "f10", "f11", "f12", "f13")
    }
    assert report["utterances"]["emotion"] == {"angry": 6, "disgust": 7, "fear": 12, "happy": 6, "sad": 8}
    assert records["f10 (1)"].speaker == "aesdd:1" and records["s01 (5)b"].speaker == "aesdd:5"
    assert {row["speaker"] for row in index} == {f"aesdd:{number}" for number in range(1, 7)}
    assert {row["language"] for row in index} == {"el"} and {row["emobox_fold"] for row in index} == {0}


def test_cafe(tmp_path):
    """The zip's folder names are in an old code page; the 192 kHz edition lies beside."""
    folders = {"C": "ColŠre", "D": "D‚go–t", "J": "Joie", "P": "Peur", "S": "Surprise", "T": "Tristesse"}
    names = [
        f"CaFE_48k/{folder}/{intensity}/{actor}-{code}-{level}-4.wav"
        for code, folder in folders.items()
        for level, intensity in ((1, "Faible"), (2, "Fort"))
        for actor in ("01", "02", "11", "12")
    ]
    names += [f"CaFE_48k/Neutre/{actor}-N-1-{sentence}.wav" for actor in ("01", "02") for sentence in (1, 6)]
    miniature.write(tmp_path / "cafe", names, rate=48_000)
    miniature.write(tmp_path / "cafe", ["CaFE_192k_1/Joie/Fort/01-J-2-4.wav"], rate=192_000)
    records, index, report = miniature.build("cafe", tmp_path / "cafe", tmp_path / "data")
    assert len(records) == 52 and report["skipped_items"] == []
    assert report["left_out_on_purpose"] == {"the same at 192 kHz": 1}
    assert report["utterances"]["emotion"] == {
        "angry": 8, "disgust": 8, "fear": 8, "happy": 8, "neutral": 4, "sad": 8, "surprise": 8
    }  # fmt: skip
    disgust = records["12-D-2-4"]
    assert (disgust.gender, disgust.age, disgust.emotion_native) == ("female", "37", "dégoût")
    assert disgust.transcript == "Quatre vieilles truies éléphantesques." and disgust.language == "fr-CA"
    assert (records["01-N-1-6"].gender, records["01-N-1-6"].age) == ("male", "46")
    folds = {row["speaker"].partition(":")[2]: row["emobox_fold"] for row in index}
    assert folds == {"01": 1, "02": 2, "12": 2, "11": 3}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_oreau_however_its_name_is_encoded(tmp_path, form):
    top = unicodedata.normalize(form, "OréauFR_02")
    expected = {"C": "angry", "D": "disgust", "J": "happy", "N": "neutral", "P": "fear", "S": "surprise", "T": "sad"}
    people = {"07": "m", "10": "f", "38": "m"}
    names = [
        f"{top}/{gender}/sess{code.lower()}/{speaker}a{sentence}{code}a.wav"
        for speaker, gender in people.items()
        for code in expected
        for sentence in ("02", "11")
    ]
    miniature.write(tmp_path / "oreau", [*names, f"{top}/m/sessn/07z03Nb.wav"], rate=44_100)
    records, _, report = miniature.build("oreau", tmp_path / "oreau", tmp_path / "data")
    assert len(records) == 43 and report["skipped_items"] == [] and report["unlabelled"] == {}
    for code, emotion in expected.items():
        found = [u for u in records.values() if u.emotion == emotion]
        assert len(found) == (7 if code == "N" else 6)
    assert {u.speaker: u.gender for u in records.values()} == {
        "oreau:07": "male", "oreau:10": "female", "oreau:38": "male"
    }  # fmt: skip
    assert {u.language for u in records.values()} == {"fr"}


def test_mesd(tmp_path):
    """Single words, some of them two; children have no gender here."""
    words = {"A": ("tarde", "por_favor"), "B": ("abandono",)}
    names = [
        f"{emotion}_{voice}_{part}_{word}.wav"
        for emotion in ("Anger", "Disgust", "Fear", "Happiness", "Neutral", "Sadness")
        for voice in "FMC"
        for part, all_words in words.items()
        for word in all_words
    ]
    miniature.write(tmp_path / "Mexican Emotional Speech Database (MESD)", names, rate=48_000, seconds=0.2)
    records, index, report = miniature.build("mesd", tmp_path, tmp_path / "data")
    assert len(records) == 54 and report["skipped_items"] == []
    assert report["utterances"]["emotion"] == dict.fromkeys(("angry", "disgust", "fear", "happy", "neutral", "sad"), 9)
    please = records["Fear_C_A_por_favor"]
    assert (please.transcript, please.speaker, please.gender) == ("por favor", "mesd:C", "")
    assert {(row["speaker"], row["gender"]) for row in index} == {
        ("mesd:F", "female"), ("mesd:M", "male"), ("mesd:C", "")
    }  # fmt: skip
