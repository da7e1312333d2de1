"""Corpora whose labels are a table of what several people heard: IEMOCAP, MSP-Podcast, Dusha, M3ED, THAI SER."""

import json
import math

import miniature
import pytest

IEMOCAP_CODES = ("neu", "hap", "sad", "ang", "exc", "fru", "fea", "sur", "dis", "oth", "xxx")
# As in the release: tabs, remarks with anything in them, several labels of one rater, what the actor says of herself.
IEMOCAP_TURNS = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.0000, 3.5000]
C-E2:	Neutral;	()
C-E3:	Neutral; Anger;	(curious; C-E9: Sadness)
C-E4:	Neutral;	()
C-F1:	Happiness;	()
A-E3:	val 3; act 2; dom  2;	()

[9.0000 - 11.3925]	Ses01F_impro01_M000	exc	[4.0000, 4.5000, 3.0000]
C-E2:	Excited;	()
C-E3:	Excited;	()
C-E4:	Happiness;	()
C-M1:	Excited;	()
"""
IEMOCAP_SAID = """Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me. [LAUGHTER] What?
M: Yeah.
Ses01F_impro01_M000 [009.0000-011.3925]: [GARBAGE] Do you have your forms?
"""


def test_iemocap(tmp_path):
    """Two sentences as the release writes them, every code in sessions 2 and 5, and what is not an utterance."""
    text = {"Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": IEMOCAP_TURNS}
    text["Session1/dialog/EmoEvaluation/Categorical/Ses01F_impro01_e2_cat.txt"] = "Ses01F_impro01_F000 :Anger; ()\n"
    text["Session1/dialog/transcriptions/Ses01F_impro01.txt"] = IEMOCAP_SAID
    names = [f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_{turn}.wav" for turn in ("F000", "M000")]
    for session, dialogue in ((2, "Ses02F_script01_1"), (5, "Ses05M_script03_1b")):
        turns = [(f"{dialogue}_{'FM'[n % 2]}0{n:02}", code) for n, code in enumerate(IEMOCAP_CODES)]
        text[f"Session{session}/dialog/EmoEvaluation/{dialogue}.txt"] = "\n".join(
            f"[1.0 - 2.0]\t{turn}\t{code}\t[3.0000, 3.0000, 3.0000]\nC-E1:\tOther;\t()\n" for turn, code in turns
        )
        names += [f"Session{session}/sentences/wav/{dialogue}/{turn}.wav" for turn, _ in turns]
    source = write_text(miniature.write(tmp_path / "IEMOCAP_full_release", names), text)
    miniature.write(source, ["Session1/dialog/wav/Ses01F_impro01.wav"], channels=2)
    miniature.write(source, ["Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F001.wav"])
    (source / names[-1]).unlink()
    records, index, report = miniature.build("iemocap", source, tmp_path / "data")

    first, second = records["Ses01F_impro01_F000"], records["Ses01F_impro01_M000"]
    assert (first.speaker, first.gender) == ("iemocap:Ses01F", "female")
    assert (second.speaker, second.gender) == ("iemocap:Ses01M", "male")
    assert (first.valence, first.arousal, first.dominance) == (2.5, 2.0, 3.5)
    assert json.loads(first.votes) == {"Neutral": 3, "Anger": 1}
    assert json.loads(second.votes) == {"Excited": 2, "Happiness": 1}
    assert (first.transcript, second.transcript) == ("Excuse me. What?", "Do you have your forms?")
    assert (second.emotion, second.emotion_native) == ("happy", "excited")
    assert [records[f"Ses02F_script01_1_{'FM'[n % 2]}0{n:02}"].emotion for n in range(11)] == [
        *("neutral", "happy", "sad", "angry", "happy", "", "fear", "surprise", "disgust", "", "")
    ]
    assert report["merges"] == {"excited→happy": 3}
    assert report["unlabelled"] == {"frustration": 2, "other": 2, "no agreement": 1}
    assert report["left_out_on_purpose"] == {"whole dialogue": 1, "no label": 1}
    assert [(item["path"], item["reason"]) for item in report["skipped_items"]] == [
        ("Ses05M_script03_1b_F010", "missing")
    ]
    assert {row["speaker"][-6:-1]: row["emobox_fold"] for row in index} == {"Ses01": 1, "Ses02": 2, "Ses05": 5}


def test_msp_podcast(tmp_path):
    """Both spellings of the table's name, raters' lines as they are, an unlabelled test set."""
    head = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
    rows = [f"MSP-PODCAST_0002_00{n:02}.wav,{code},4.2,3.1,5,7,Female,Train" for n, code in enumerate("ASHUFDCNOX")]
    rows += [f"MSP-PODCAST_0003_00{n}.wav,N,4,4,4,Unknown,Unknown,{s}" for n, s in enumerate(("Validation", "Test1"))]
    rows += [
        "MSP-PODCAST_0004_0001_0001.wav,H,6,6,4,12,Male,Development",
        "MSP-PODCAST_0005_0001.wav,S,2,2,2,13,Male,Test2",
    ]
    detailed = (
        'FileName,EmoDetail\nMSP-PODCAST_0002_0000.wav,"WORKER00000001; Angry; Angry,Annoyed; A:4.0; V:3.0; D:5.0;"\n'
        'MSP-PODCAST_0002_0000.wav,"WORKER00000002; Other-Sarcastic; Amused; A:4.0; V:3.0; D:5.0;"\n'
        'MSP-PODCAST_0002_0000.wav,"WORKER00000003; Angry; ; A:4.0; V:3.0; D:5.0;"\n'
    )
    names = [f"Audios/{row.partition(',')[0]}" for row in rows]
    source = miniature.write(tmp_path / "source", [*names, "Audios/MSP-PODCAST_test3_0001.wav"])
    text = {
        "Labels/labels_concensus.csv": "\n".join((head, *rows)),
        "Labels/labels_detailed.csv": detailed,
        "Transcripts/MSP-PODCAST_0002_0000.txt": "I told you so.\n",
        "Previous_releases_information/v1/labels_consensus.csv": f"{head}\nold.wav,N,4,4,4,1,Male,Train",
    }
    records, index, report = miniature.build("msp_podcast", write_text(source, text), tmp_path / "data")
    angry = records["MSP-PODCAST_0002_0000"]
    assert json.loads(angry.votes) == {"Angry": 2, "Other": 1}
    assert (angry.arousal, angry.valence, angry.dominance) == (pytest.approx(4.2), pytest.approx(3.1), 5.0)
    assert (angry.speaker, angry.gender, angry.transcript) == ("msp_podcast:7", "female", "I told you so.")
    emotions = [records[f"MSP-PODCAST_0002_00{n:02}"].emotion for n in range(10)]
    assert emotions == ["angry", "sad", "happy", "surprise", "fear", "disgust", "", "neutral", "", ""]
    assert report["unlabelled"] == {"contempt": 1, "no agreement": 1, "other": 1}
    assert report["left_out_on_purpose"] == {"no label": 1} and not report["skipped_items"]
    unknown = records["MSP-PODCAST_0003_000"]
    assert (unknown.speaker, unknown.gender, unknown.votes, unknown.split) == ("", "", "", "validation")
    splits = {row["id"]: (row["split"], row["emobox_fold"]) for row in index}
    assert splits["MSP-PODCAST_0003_001"] == ("test", 1) and splits["MSP-PODCAST_0005_0001"] == ("test", -1)
    assert splits["MSP-PODCAST_0002_0000"] == ("train", 0)
    assert splits["MSP-PODCAST_0004_0001_0001"] == ("validation", 0)


DUSHA_HEAD = (
    "hash_id\taudio_path\tduration\tannotator_emo\tgolden_emo\tannotator_id\tspeaker_text\tspeaker_emo\tsource_id"
)


def dusha_table(part, heard):
    """Raters' lines of one part; heard: {file: labels of raters 0, 1, …}."""
    rows = []
    for key, labels in heard.items():
        said = 'скажи "привет' if key.endswith("0") else "NaN"
        for rater, label in enumerate(labels):
            rows += [f"{key}\twavs/{key}.wav\t0.3\t{label}\tNaN\t{rater}\t{said}\tsad\tspk{key[-1]}"] * bool(label)
    return {f"{part}/raw_{part}.tsv": "\n".join([DUSHA_HEAD, *rows])}


def test_dusha(tmp_path):
    """Raters 0 and 1 hear well, rater 2 always hears "neutral": where only he and rater 0 were asked."""
    emotions = ("angry", "sad", "neutral", "positive", "other")
    train = {f"a{n:02}": (emotions[n % 5], emotions[n % 5], "neutral") for n in range(30)}
    test = {f"b{n:02}": (emotions[n % 5], emotions[n % 5], "neutral") for n in range(15)}
    test["b15"] = ("positive", "", "neutral")
    test["b16"] = ("sad", "angry", "")
    text = dusha_table("crowd_train", train) | dusha_table("crowd_test", test)
    text |= dusha_table("podcast_train", {"c00": ("angry", "angry", "")})
    names = [f"crowd_train/wavs/{name}.wav" for name in train] + [f"crowd_test/wavs/{name}.wav" for name in test]
    source = write_text(miniature.write(tmp_path / "crowd", [*names, "podcast_train/wavs/c00.wav"]), text)
    records, _, report = miniature.build("dusha", source, tmp_path / "data")
    first = records["crowd_train/wavs/a00"]
    assert (first.emotion, first.language, first.split, first.speaker) == ("angry", "ru", "train", "dusha:spk0")
    assert json.loads(first.votes) == {"angry": 2, "neutral": 1}
    assert (first.transcript, records["crowd_train/wavs/a01"].transcript) == ('скажи "привет', "")
    found = [records[f"crowd_test/wavs/b{n:02}"].emotion for n in range(5)]
    assert found == ["angry", "sad", "neutral", "happy", ""]
    believed, open_ = records["crowd_test/wavs/b15"], records["crowd_test/wavs/b16"]
    assert (believed.emotion, believed.emotion_native, believed.split) == ("happy", "positive", "test")
    assert (open_.emotion, open_.emotion_native) == ("", "no agreement")
    assert report["merges"] == {"positive→happy": 10} and report["unlabelled"] == {"other": 9, "no agreement": 1}
    assert report["left_out_on_purpose"] == {"podcast": 1} and not report["skipped_items"]
    official = next(row for row in report["folds"] if row["scheme"] == "official")
    assert (official["train"], official["test"], official["speakers_in_both"]) == (30, 17, 10)


def test_m3ed(tmp_path):
    def said(who, main, *raters):
        heard = {f"EmoAnnotator{n}": label for n, label in enumerate(raters, start=1)}
        heard |= {"final_mul_emo": main, "final_main_emo": main}
        return {"StartTime": "00:00:00:01", "EndTime": "00:00:01:04", "Text": "你先把衣服换了", "Speaker": who,
                "EmoAnnotation": heard}  # fmt: skip

    who = {
        "A": {"Name": "王胜男", "Age": "young", "Gender": "female", "OtherName": []},
        "B": {"Name": "房似锦", "Age": "mid", "Gender": "male", "OtherName": []},
    }
    emotions = ("Happy", "Neutral", "Sad", "Disgust", "Anger", "Fear", "Surprise")
    annotation, names = {}, []
    for series in ("anjia", "woju", "huanlesong"):
        dialog = {f"{series}_1_{n}": said("AB"[n % 2], e, e, e, "Neutral") for n, e in enumerate(emotions, start=1)}
        names += [f"modality_speech/{'AB'[n % 2]}_{series}_1_{n}.wav" for n in range(1, 8)]
        annotation[series] = {f"{series}_1": {"SpeakerInfo": who, "Dialog": dialog}}
    annotation["anjia"]["anjia_1"]["Dialog"]["anjia_1_1"] = said("B", "Happy", "Happy,Surprise", "Happy", "Neutral")
    annotation["woju"]["woju_1"]["Dialog"]["woju_1_8"] = said("A", "Sad", "Sad", "Sad", "Sad")
    text = {"annotation.json": json.dumps(annotation, ensure_ascii=False)}
    for part, series in (("train", "anjia"), ("val", "woju"), ("test", "huanlesong")):
        text[f"splitInfo/movie_list_{part}.txt"] = f"{series}\n"
    source = write_text(miniature.write(tmp_path / "source", names), text)
    records, _, report = miniature.build("m3ed", source, tmp_path / "data")
    first = records["B_anjia_1_1"]
    assert (first.speaker, first.gender, first.age) == ("m3ed:anjia_房似锦", "male", "")
    assert json.loads(first.votes) == {"Happy": 2, "Surprise": 1, "Neutral": 1}
    assert (first.emotion, first.transcript, first.split) == ("happy", "你先把衣服换了", "train")
    assert [records[f"{'AB'[n % 2]}_huanlesong_1_{n}"].emotion for n in range(1, 8)] == [
        *("happy", "neutral", "sad", "disgust", "angry", "fear", "surprise")
    ]
    assert {u.split for u in records.values() if u.id[2:].startswith("woju")} == {"validation"}
    assert [item["path"] for item in report["skipped_items"]] == ["woju_1_8"]


def test_thai_ser(tmp_path):
    """Several microphones an utterance, of which the labels name one; zips as they are released would do as well."""
    rated = {
        "s001_con_actor001_script1_1_1a.flac": ("Neutral", [["Neutral"], ["Neutral"], ["Sad", "Neutral"]]),
        "s001_con_actor002_script2_2_2b.flac": ("Angry", [["Angry"]]),
        "s001_con_actor001_impro1_1.flac": ("Frustrated", [["Frustrated"], ["Angry", "Frustrated", "Other"]]),
        "s019_con_actor040_impro2_17.flac": ("Happy", [["Happy"]]),
        "z003_mic_actor199_impro1_4.flac": ("Sad", [["Sad"], ["None"]]),
    }
    labels = {
        name: [{"assigned_emo": "Angry", "majority_emo": majority, "agreement": 0.8, "annotated": raters}]
        for name, (majority, raters) in rated.items()
    }
    names = [f"studio1-10/studio001/con/{name}" for name in list(rated)[:3]]
    names += ["studio11-20/studio019/con/s019_con_actor040_impro2_17.flac"]
    names += ["zoom1-10/zoom003/mic/z003_mic_actor199_impro1_4.flac"]
    names += [f"studio1-10/studio001/{mic}/s001_{mic}_actor001_impro1_1.flac" for mic in ("clip", "middle")]
    source = miniature.write(tmp_path / "source", names, rate=44_100, audio_format="FLAC")
    actors = [{"Actor's ID": "001", "Sex": "Female", "Age": 23}, {"Actor's ID": "002", "Sex": "Male", "Age": 55}]
    text = {"emotion_label.json": json.dumps(labels), "actor_demography.json": json.dumps({"data": actors})}
    records, _, report = miniature.build("thai_ser", write_text(source, text), tmp_path / "data")
    assert report["left_out_on_purpose"] == {"another microphone": 2} and not report["skipped_items"]
    first = records["s001_con_actor001_script1_1_1a"]
    assert (first.speaker, first.gender, first.age, first.language) == ("thai_ser:001", "female", "23", "th")
    assert json.loads(first.votes) == {"Neutral": 2.5, "Sad": 0.5}
    third = json.loads(records["s001_con_actor001_impro1_1"].votes)
    assert third == {"Frustrated": 1.333, "Angry": 0.333, "Other": 0.333}
    assert [records[name.removesuffix(".flac")].emotion for name in rated] == ["neutral", "angry", "", "happy", "sad"]
    assert report["unlabelled"] == {"Frustrated": 1}
    assert (records["s019_con_actor040_impro2_17"].gender, math.isnan(first.valence)) == ("", True)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("iemocap", "no dialog/EmoEvaluation"),
        ("msp_podcast", "no labels_consensus.csv"),
        ("dusha", "no raw_crowd_train.tsv"),
        ("m3ed", "no splitInfo/movie_list_train.txt"),
        ("thai_ser", "no emotion_label.json"),
    ],
)
def test_without_the_table_the_message_names_it(name, wanted, tmp_path):
    source = miniature.write(tmp_path / "source", ["a/MSP-PODCAST_0001_0001.wav", "Ses01F_impro01_F000.wav"])
    with pytest.raises(FileNotFoundError, match=wanted):
        miniature.build(name, source, tmp_path / "data")


def write_text(folder, files):
    """Writes `files`: path below `folder` -> text."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
