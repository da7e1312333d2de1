"""CREMA-D, TESS, SAVEE and JL-Corpus, from miniatures with the true names, tables and defects."""

import csv
import json

import miniature

CREMAD_EMOTIONS = {"ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}


def _table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows(rows)


def _cremad(folder):
    """Three actors, and what is known to be wrong: a name, a silent file, sounds with two names."""
    names = [
        f"{actor}_{sentence}_{emotion}_XX"
        for actor in (1001, 1006, 1040)
        for sentence in ("DFA", "IWL")
        for emotion in CREMAD_EMOTIONS
    ]
    names += ["1001_IEO_ANG_LO", "1006_IEO_ANG_HI", "1006_TIE_NEU_XX", "1006_TIE_HAP_XX", "1040_ITH_SAD_X"]
    miniature.write(folder, [f"AudioWAV/{name}.wav" for name in names])
    miniature.write(folder, ["AudioWAV/1076_MTI_SAD_XX.wav"], seconds=0.1)
    (folder / "AudioMP3").mkdir()
    (folder / "AudioMP3/1001_DFA_ANG_XX.mp3").write_bytes(b"read by nobody")


def test_cremad_with_its_tables(tmp_path):
    _cremad(tmp_path / "CREMA-D")
    people = [["ActorID", "Age", "Sex", "Race", "Ethnicity"], [1001, 51, "Male", "Caucasian", "Not Hispanic"]]
    people += [[1006, 58, "Female", "Caucasian", "Not Hispanic"], [1040, 42, "Female", "Asian", "Not Hispanic"]]
    _table(tmp_path / "CREMA-D/VideoDemographics.csv", people)
    head = ["", *"ADFHNS", "fileName", "numResponses", "agreement", "emoVote"]
    voice = ["100001", 1, 0, 0, 3, 6, 0, "1001_DFA_HAP_XX", 10, 0.6, "N"]
    others = [["200001", 0, 0, 0, 9, 1, 0, *voice[7:]], ["300001", 0, 0, 0, 10, 0, 0, *voice[7:]]]
    typo = ["100002", 0, 0, 0, 0, 0, 9, "1040_ITH_SAD_XX", 9, 1, "S"]
    _table(tmp_path / "CREMA-D/processedResults/tabulatedVotes.csv", [head, voice, *others, typo])
    records, _, report = miniature.build("cremad", tmp_path / "CREMA-D", tmp_path / "data")
    assert len(records) == 40 and report["skipped_items"] == [] and report["merges"] == {}
    assert report["left_out_on_purpose"] == {"a recording that has another emotion's name too": 1, "no sound in it": 1}
    assert report["corrections"] == {"1040_ITH_SAD_X.wav → 1040_ITH_SAD_XX.wav": 1}
    assert report["utterances"]["emotion"] == {
        "angry": 8, "disgust": 6, "fear": 6, "happy": 6, "neutral": 7, "sad": 7
    }  # fmt: skip
    happy = records["1001_DFA_HAP_XX"]
    assert (happy.speaker, happy.gender, happy.age) == ("cremad:1001", "male", "51")
    assert json.loads(happy.votes) == {"neutral": 6, "happy": 3, "anger": 1}
    assert (happy.emotion, happy.transcript, happy.language) == ("happy", "Don't forget a jacket.", "en")
    assert json.loads(records["1040_ITH_SAD_XX"].votes) == {"sad": 9} and records["1006_DFA_ANG_XX"].votes == ""
    assert records["1006_IEO_ANG_HI"].gender == "female" and "ODbL" in happy.license


def test_cremad_of_the_recordings_alone(tmp_path):
    _cremad(tmp_path / "CREMA-D")
    records, index, _ = miniature.build("cremad", tmp_path / "CREMA-D/AudioWAV", tmp_path / "data")
    assert len(records) == 40 and {row["speaker"] for row in index} == {"cremad:1001", "cremad:1006", "cremad:1040"}
    assert {(u.gender, u.age, u.votes) for u in records.values()} == {("", "", "")}


def test_tess(tmp_path):
    """24,414 Hz and one at 96 kHz; the folders are spelled in four ways and one name is wrong."""
    folders = {"angry": "angry", "disgust": "disgust", "fear": "Fear", "happy": "happy", "neutral": "neutral"}
    folders |= {"ps": "Pleasant_surprise", "sad": "Sad"}
    names = [
        f"{speaker}_{folder}/{speaker}_{word}_{code}.wav"
        for speaker in ("OAF", "YAF")
        for code, folder in folders.items()
        for word in ("back", "bar", "lid")
    ]
    miniature.write(tmp_path / "TESS", [*names, "OAF_neutral/OA_bite_neutral.wav"], rate=24_414)
    miniature.write(tmp_path / "TESS", ["OAF_Fear/OAF_food_fear.wav"], rate=96_000)
    miniature.write(tmp_path / "TESS", ["tess toronto emotional speech set data/OAF_angry/OAF_back_angry.wav"])
    records, _, report = miniature.build("tess", tmp_path / "TESS", tmp_path / "data")
    assert len(records) == 44 and report["skipped_items"] == []
    assert report["resampled_from_hz"] == {"24414": 43, "96000": 1}
    assert report["corrections"] == {"OA_bite_neutral.wav → OAF_bite_neutral.wav": 1}
    assert report["merges"] == {"pleasant surprise→surprise": 6}
    assert report["left_out_on_purpose"] == {"the same file again": 1}
    surprise = records["YAF_lid_ps"]
    assert (surprise.emotion, surprise.emotion_native) == ("surprise", "pleasant surprise")
    assert (surprise.age, surprise.gender, surprise.language) == ("26", "female", "en-CA")
    assert records["OAF_bite_neutral"].transcript == "Say the word bite." and records["OAF_bite_neutral"].age == "64"
    assert "ND" in surprise.license


def test_savee_in_both_shapes(tmp_path):
    expected = {"a": "angry", "d": "disgust", "f": "fear", "h": "happy", "n": "neutral", "sa": "sad", "su": "surprise"}
    names = [(speaker, f"{code}{n:02}") for speaker in ("DC", "JE", "JK", "KL") for code in expected for n in (1, 2)]
    miniature.write(tmp_path / "a", [f"AudioData/{speaker}/{rest}.wav" for speaker, rest in names], rate=44_100)
    miniature.write(tmp_path / "b", [f"ALL/{speaker}_{rest}.wav" for speaker, rest in names], rate=44_100)
    (tmp_path / "a/AudioData/Info.txt").write_text("'DC', 'JE', 'JK' and 'KL' are four male speakers")
    records, index, report = miniature.build("savee", tmp_path / "a", tmp_path / "data_a")
    again, _, _ = miniature.build("savee", tmp_path / "b", tmp_path / "data_b")
    assert list(records) == list(again) and len(records) == 56 and report["resampled_from_hz"] == {"44100": 56}
    for speaker, rest in names:
        found = records[f"{speaker}_{rest}"]
        assert (found.speaker, found.emotion) == (f"savee:{speaker}", expected[rest[:-2]])
    assert {u.gender for u in records.values()} == {"male"} and report["merges"] == {}
    tested = {row["speaker"]: row["emobox_fold"] for row in index}
    assert tested == {"savee:JE": 1, "savee:KL": 2, "savee:DC": 3, "savee:JK": 4}


def test_jl_corpus(tmp_path):
    """Secondary emotions have no canonical one; copies of recordings lie about."""
    speech = "Raw JL corpus (unchecked and unannotated)/JL(wav+txt)"
    primary = ["angry", "excited", "happy", "neutral", "sad"]
    secondary = ["anxious", "apologetic", "assertive", "concerned", "encouraging"]
    names = [
        f"{speaker}_{emotion}_{sentence}_1"
        for speaker in ("female1", "female2", "male1", "male2")
        for emotion in primary + secondary
        for sentence in ("1a", "14b")
    ]
    miniature.write(tmp_path / "jl", [f"{speech}/{name}.wav" for name in names], rate=44_100)
    for name in names:
        said = "Tom beats that farmer.\n" if "_1a_" in name else "They should start to talk."
        (tmp_path / "jl" / speech / f"{name}.txt").write_text(said)
    (tmp_path / "jl" / speech / "male1_encouraging_3a_2(1).txt").write_text("The seed is buried in deep.")
    judged = "Raw JL corpus (unchecked and unannotated)/Perception test material on Qualtrics/sub_emotion/sub_survey_2"
    copies = [f"{speech}/female2_angry_1a_1(1).wav", f"{judged}/page6/Select1_female1_angry_1a_1.wav"]
    copies += [f"raw jl corpus (unchecked and unannotated)/JL(wav+txt)/{names[0]}.wav"]
    miniature.write(tmp_path / "jl", copies)
    records, index, report = miniature.build("jl_corpus", tmp_path / "jl", tmp_path / "data")
    assert len(records) == 80 and report["skipped_items"] == [] and report["merges"] == {"excited→happy": 8}
    assert report["left_out_on_purpose"] == {"the same file again": 2, "perception test": 1}
    assert report["unlabelled"] == dict.fromkeys(secondary, 8)
    assert report["utterances"]["emotion"] == {"": 40, "angry": 8, "happy": 16, "neutral": 8, "sad": 8}
    concerned = records["male2_concerned_14b_1"]
    assert (concerned.emotion, concerned.emotion_native, concerned.gender) == ("", "concerned", "male")
    assert concerned.transcript == "They should start to talk." and concerned.language == "en-NZ"
    assert records["female1_sad_1a_1"].transcript == "Tom beats that farmer."
    folds = {row["speaker"].partition(":")[2]: row["emobox_fold"] for row in index}
    assert folds == {"male2": 1, "female1": 2, "male1": 3, "female2": 4}


def test_what_git_leaves_without_lfs_is_named(tmp_path):
    """A clone of CREMA-D without Git LFS has a few lines of text where recordings should be."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:776a8c973fd0e39a577e6432815d7c97\nsize 79056\n"
    _cremad(tmp_path / "CREMA-D")
    (tmp_path / "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav").write_text(pointer)
    records, _, report = miniature.build("cremad", tmp_path / "CREMA-D", tmp_path / "data")
    assert len(records) == 39 and report["skipped_by_reason"] == {"unreadable": 1}
    assert "git lfs pull" in report["skipped_items"][0]["detail"]
