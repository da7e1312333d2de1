"""ESD with its encodings and damaged lines, EmoV-DB with text from elsewhere, ASVP-ESD with what is not speech."""

import tarfile

import miniature

EMOTIONS = {"Neutral": 0, "Angry": 350, "Happy": 700, "Sad": 1050, "Surprise": 1400}
# speaker -> encoding, words of sentence 1, how the line of sentence 21 is written
TEXTS = {
    "0001": ("gbk", "打远一看，它们的确很是美丽，", "0001_{:06}\t你好。\t{}\r\n"),
    "0003": ("utf-16", "打远一看，它们的确很是美丽，", "0003_{:06}\t你好。\t{}\r\n"),
    "0011": ("utf-8", "The nine the eggs, I keep.", "0011_{:06} Let the glass globe be.\t{}\n"),
    "0016": ("cp1252", "It’s the nine, I keep.", "0016_{:06}  Let the glass globe be.\n"),
}
LABELS = {"Neutral": "中立", "Angry": "生气", "Happy": "快乐", "Sad": "伤心", "Surprise": "惊喜"}


def esd(folder, *, split=True):
    """Three sentences of every emotion, one in each part of the split."""
    for speaker, (encoding, words, damaged) in TEXTS.items():
        lines = []
        for emotion, first in EMOTIONS.items():
            label = LABELS[emotion] if speaker < "0011" else emotion
            lines += [f"{speaker}_{first + 1:06}\t{words}\t{label}\n", damaged.format(first + 21, label)]
            for part, number in (("evaluation", 1), ("test", 21), ("train", 51)):
                name = f"{speaker}/{emotion}/{part + '/' if split else ''}{speaker}_{first + number:06}.wav"
                miniature.write(folder, [name], seconds=0.15)
        (folder / speaker / f"{speaker}.txt").write_bytes("".join(lines).encode(encoding))
    (folder / "ReadMe.txt").write_text("0001: Chinese Female")
    return folder


def test_esd(tmp_path):
    records, index, report = miniature.build("esd", esd(tmp_path / "ESD"), tmp_path / "data")
    assert len(records) == 60 and not report["skipped"]
    chinese, english = records["0003_000351"], records["0016_001401"]
    assert (chinese.emotion, chinese.language, chinese.gender, chinese.split) == ("angry", "zh", "female", "validation")
    assert chinese.transcript == records["0001_000351"].transcript == "打远一看，它们的确很是美丽，"
    assert (english.emotion, english.language, english.gender) == ("surprise", "en", "female")
    assert english.transcript == "It’s the nine, I keep." and records["0011_000001"].gender == "male"
    for identifier in ("0011_000721", "0016_000721"):
        found = records[identifier]
        assert (found.transcript, found.emotion, found.split) == ("Let the glass globe be.", "happy", "test")
    # The same sentence, whoever says it and how; another in the other language, though it has the same number.
    same = {u.id for u in records.values() if u.parallel_id == records["0011_000001"].parallel_id}
    assert same == {f"{speaker}_{1 + first:06}" for speaker in ("0011", "0016") for first in EMOTIONS.values()}
    assert {row["speaker"]: row["emobox_fold"] for row in index} == {
        "esd:0001": 5, "esd:0003": 3, "esd:0011": 1, "esd:0016": 1
    }  # fmt: skip
    official = [row for row in report["folds"] if row["scheme"] == "official"]
    assert [(row["train"], row["validation"], row["test"]) for row in official] == [(20, 20, 20)]


def test_esd_without_the_folders_of_the_split(tmp_path):
    records, _, report = miniature.build("esd", esd(tmp_path / "ESD", split=False), tmp_path / "data")
    assert len(records) == 60 and {u.split for u in records.values()} == {""}
    assert {u.emotion for u in records.values()} == {"neutral", "angry", "happy", "sad", "surprise"}
    assert not [row for row in report["folds"] if row["scheme"] == "official"]


def test_emovdb(tmp_path):
    """An archive a speaker and style; ranges with - or _, one style written with a capital, two rates."""
    archives = {
        "jenie_Amused": (16_000, "amused_57-84_{:04}.wav"),
        "bea_Sleepy": (44_100, "sleepiness_29-56_{:04}.wav"),
        "sam_Disgusted": (16_000, "Disgust_169_196_{:04}.wav"),
        "sam_Neutral": (16_000, "neutral_225_252_{:04}.wav"),
        "josh_Neutral": (16_000, "neutral_1-28_{:04}.wav"),
        "bea_Angry": (44_100, "anger_1-28_{:04}.wav"),
    }
    (tmp_path / "source").mkdir()
    for name, (rate, pattern) in archives.items():
        miniature.write(tmp_path / name, [pattern.format(number) for number in (1, 2, 183)], rate=rate, seconds=0.15)
        with tarfile.open(tmp_path / "source" / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / name, arcname=".")
    (tmp_path / "source" / "cmuarctic.data").write_text(
        '( arctic_a0001 "Author of the danger trail, Philip Steels, etc." )\n'
        '( arctic_a0002 "Not at this particular case, Tom, apologized Whittemore." )\n'
        '( arctic_b0002 "Another part." )\n'
    )
    records, _, report = miniature.build("emovdb", tmp_path / "source", tmp_path / "data")
    assert len(records) == 18 and not report["skipped"]
    assert report["unlabelled"] == {"amused": 3, "sleepy": 3}
    assert report["resampled_from_hz"] == {"44100": 6}
    disgust = records["sam_Disgusted/Disgust_169_196_0002"]
    assert (disgust.emotion, disgust.speaker, disgust.gender) == ("disgust", "emovdb:sam", "male")
    assert disgust.transcript == "Not at this particular case, Tom, apologized Whittemore."
    assert (
        records["bea_Angry/anger_1-28_0183"].transcript == ""
        and records["jenie_Amused/amused_57-84_0001"].emotion == ""
    )
    assert {u.speaker: u.gender for u in records.values()} == {
        "emovdb:bea": "female", "emovdb:jenie": "female", "emovdb:josh": "male", "emovdb:sam": "male"
    }  # fmt: skip


def asvp(folder):
    """Thirteen emotions as speech and as sounds by three actors, and the oddities of names."""
    grid = [
        f"Audio/actor_{actor}/03-0{channel}-{emotion:02}-01-06-{actor:02}-02-02-0{1 + actor % 2}-39.wav"
        for channel in (1, 2)
        for emotion in range(1, 14)
        for actor in (7, 36, 101)
    ]
    odd = [
        "Audio/actor_101/03-01-05-01-32-101-02-01.wav",  # ends after the source
        "Audio/actor_7/03-01-05-02-08-7-01-03-04.wav",  # the same actor without his zero
        "Audio/actor_/03-02-13-01-04-90-02-02-02-13.wav",
        "Audio/actor_0/03-01-03-01-10-00-02-03-01-77.wav",
        "Bonus/actor_150/03-02-04-01-52-150-04-01-00-14 -03.wav",
        "Bonus/actor_200/03-01-17-01-02-200-05-02-01-12.wav",
    ]
    return miniature.write(folder, grid + odd, seconds=0.14)


def test_asvp_esd(tmp_path):
    source = asvp(tmp_path / "ASVP-ESD-Update")
    records, _, report = miniature.build("asvp_esd", source, tmp_path / "data")
    assert len(records) == 43 and report["left_out_on_purpose"] == {"not speech": 41} and not report["skipped"]
    assert report["merges"] == {"excited→happy": 3}
    assert report["unlabelled"] == {
        "17": 1, "boredom": 3, "breath": 3, "disappointment": 3, "pain": 3, "pleasure": 3
    }  # fmt: skip
    excited = records["03-01-09-01-06-36-02-02-01-39"]
    assert (excited.emotion, excited.speaker, excited.gender) == ("happy", "asvp_esd:36", "male")
    assert (excited.language, excited.age) == ("zh", "20-64")
    assert [records[f"03-01-0{code}-01-06-07-02-02-02-39"].emotion for code in range(2, 9)] == [
        "neutral", "happy", "sad", "angry", "fear", "disgust", "surprise"
    ]  # fmt: skip
    without_zero, short = records["03-01-05-02-08-7-01-03-04"], records["03-01-05-01-32-101-02-01"]
    assert (without_zero.speaker, without_zero.gender, without_zero.language) == ("asvp_esd:7", "female", "fr")
    assert without_zero.age == "65+" and records["03-01-05-01-06-07-02-02-02-39"].speaker == "asvp_esd:7"
    assert (short.language, short.speaker) == ("und", "asvp_esd:101")
    nobody = records["03-01-03-01-10-00-02-03-01-77"]
    assert (nobody.speaker, nobody.gender) == ("", "")


def test_asvp_esd_all(tmp_path):
    records, index, report = miniature.build("asvp_esd_all", asvp(tmp_path / "source"), tmp_path / "data")
    assert len(records) == 84 and not report["skipped"] and not report["left_out_on_purpose"]
    languages = [row["language"] for row in index]
    assert languages.count("zxx") == 41 and set(languages) == {"zxx", "zh", "en", "fr", "und"}
    baby = records["03-02-04-01-52-150-04-01-00-14 -03"]
    assert (baby.emotion, baby.age, baby.language) == ("sad", "baby", "zxx")
    assert {u.corpus for u in records.values()} == {"asvp_esd"}, "who has seen one has seen the other"
