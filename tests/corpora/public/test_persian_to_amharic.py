"""Corpora of one language each: miniatures with the true names, tables, typos and defects."""

import itertools
import shutil

import miniature


def names(pattern, **choices):
    """ "{a}_{b}.wav", a=…, b=… -> every combination."""
    return [pattern.format(*values) for values in itertools.product(*choices.values())]


def said(records, identifier):
    """Emotion, speaker, gender and words of one record."""
    found = records[identifier]
    return found.emotion, found.speaker.partition(":")[2], found.gender, found.transcript


def folds(index):
    """EmoBox's fold -> its speakers."""
    found = {}
    for row in index:
        found.setdefault(row["emobox_fold"], set()).add(row["speaker"].partition(":")[2])
    return found


def test_shemo(tmp_path):
    """Two zips of recordings and one of transcripts, as in the repository; F is both a woman and fear."""
    for folder, speakers in (("female", ("F02", "F21")), ("male", ("M02", "M36"))):
        tree = tmp_path / folder
        wanted = names(folder + "/{}{}0{}.wav", speaker=speakers, letter="AFHNSW", number="12")
        miniature.write(tree, wanted[1:], rate=44_100, seconds=0.15)
        miniature.write(tree, wanted[:1], rate=22_050, seconds=0.15)
        shutil.make_archive(str(tmp_path / "source" / folder), "zip", tree)
    for name, text in {
        "text/F21F01.ort": "\ufeffسلام\r\n",
        "text/M36S02.ort": "حالا می‎خوام\r\n",
        "script/M36S02.tra": "x",
    }.items():
        path = tmp_path / "transcript" / f"final {name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    shutil.make_archive(str(tmp_path / "source" / "transcript"), "zip", tmp_path / "transcript")
    records, _, report = miniature.build("shemo", tmp_path / "source", tmp_path / "data")
    assert len(records) == 48 and not report["skipped"]
    assert report["resampled_from_hz"] == {"22050": 2, "44100": 46}
    assert said(records, "F21F01") == ("fear", "F21", "female", "سلام")
    assert said(records, "M36S02") == ("sad", "M36", "male", "حالا می‎خوام")
    assert [said(records, f"M02{letter}01")[0] for letter in "AHNW"] == ["angry", "happy", "neutral", "surprise"]
    assert records["F02A01"].language == "fa" and records["F02A01"].transcript == ""


def test_urdu(tmp_path):
    wanted = [
        f"{folder}/SM{speaker}_F8_{folder[0]}01{number}.wav"
        for folder in ("Angry", "Happy", "Neutral", "Sad")
        for speaker in (2, 20)
        for number in (1, 2)
    ]
    wanted += ["Happy/SF6_F1_H025.wav", "Sad/SF11_F3_S05.wav", "Angry/SM4_F48_A0100.wav"]
    miniature.write(tmp_path / "source", wanted, rate=44_100, seconds=0.15)
    records, index, report = miniature.build("urdu", tmp_path / "source", tmp_path / "data")
    assert len(records) == 19 and not report["skipped"] and len({row["speaker"] for row in index}) == 5
    assert said(records, "SM20_F8_N012") == ("neutral", "SM20", "male", "")
    assert said(records, "SF6_F1_H025") == ("happy", "SF6", "female", "")
    assert said(records, "SF11_F3_S05")[0] == "sad" and said(records, "SM4_F48_A0100")[0] == "angry"


def test_subesco(tmp_path):
    wanted = [
        f"SUBESCO/{speaker}_S_{sentence}_{emotion}_{take}.wav"
        for speaker, sentence, take in (
            ("F_02_MONIKA", 2, 1),
            ("F_10_FAHMEE", 10, 5),
            ("M_10_EVAN", 8, 2),
            ("M_09_SHUMANTA", 1, 3),
        )
        for emotion in ("ANGRY", "DISGUST", "FEAR", "HAPPY", "NEUTRAL", "SAD", "SURPRISE")
    ]
    miniature.write(tmp_path / "source", wanted[::2], rate=44_100, seconds=0.15)
    miniature.write(tmp_path / "source", wanted[1::2], rate=48_000, seconds=0.15)
    miniature.write(tmp_path / "source", ["SUBESCO/F_02_MONIKA_S_2_SURPRISE_3].wav"], rate=44_100)
    records, index, report = miniature.build("subesco", tmp_path / "source", tmp_path / "data")
    assert len(records) == 29 and not report["skipped"]
    assert report["corrections"] == {"F_02_MONIKA_S_2_SURPRISE_3].wav → F_02_MONIKA_S_2_SURPRISE_3.wav": 1}
    words = "তুমি সব উলটপালট করে দিয়েছ"
    assert said(records, "F_02_MONIKA_S_2_SURPRISE_3") == ("surprise", "F_02", "female", words)
    assert said(records, "F_10_FAHMEE_S_10_FEAR_5") == ("fear", "F_10", "female", "ডাকাতেরা ঢাল তলোয়ার নিয়ে এল")
    assert said(records, "M_10_EVAN_S_8_DISGUST_2")[:3] == ("disgust", "M_10", "male")
    assert folds(index) == {1: {"M_09"}, 2: {"F_10"}, 5: {"F_02", "M_10"}}


def test_banglaser(tmp_path):
    """Named like RAVDESS: 01 is happy here."""
    wanted = [
        f"BanglaSER/Actor {actor:02}/03-01-0{emotion}-0{1 + (emotion in (3, 4))}-0{sentence}-01-{actor:02}.wav"
        for actor in (1, 2, 34)
        for emotion in (1, 2, 3, 4, 5)
        for sentence in (1, 2, 3)
    ]
    miniature.write(tmp_path / "source", wanted, rate=44_100, seconds=0.15)
    records, _, report = miniature.build("banglaser", tmp_path / "source", tmp_path / "data")
    assert len(records) == 45 and not report["skipped"]
    assert said(records, "03-01-01-01-01-01-01") == ("happy", "01", "male", "১২ টা বেজে গেছে")
    assert said(records, "03-01-04-02-03-01-34") == ("surprise", "34", "female", "এ কেমন উপহার")
    assert [records[f"03-01-{code}-01-02"].emotion for code in ("02-01-02", "03-02-02", "05-01-02")] == [
        "sad", "angry", "neutral"
    ]  # fmt: skip


def test_nemo(tmp_path):
    """The column of speakers is padded, words hold quotation marks, one row has no file and one file no row."""
    emotions = ("anger", "fear", "happiness", "neutral", "sadness", "surprised")
    wanted = names("samples/{}_{}_{}.wav", speaker=("EB0", "WR0", "MP0"), emotion=emotions, sentence=(1, 64, 90))
    lines = ["file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage"]
    for path in [*wanted[1:], "samples/KS0_fear_7.wav"]:
        name = path.partition("/")[2]
        speaker, emotion, _ = name.split("_")
        gender, age = {"EB0": ("female", 27), "WR0": ("male", 23)}.get(speaker, ("male", 24))
        lines.append(f'{name}\t{emotion}\t"Ucho" słyszy.\tucho słyszy\t        {speaker}\t{gender}\t{age}')
    miniature.write(tmp_path / "source", wanted, rate=24_000, seconds=0.15)
    (tmp_path / "source" / "data.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    records, _, report = miniature.build("nemo", tmp_path / "source", tmp_path / "data")
    assert len(records) == 53 and report["skipped_by_reason"] == {"no label": 1, "missing": 1}
    assert said(records, "WR0_surprised_64") == ("surprise", "WR0", "male", '"Ucho" słyszy.')
    assert said(records, "EB0_happiness_1")[:3] == ("happy", "EB0", "female") and records["EB0_fear_90"].age == "27"


def test_turev(tmp_path):
    """A trailing 1 in one name, and copies of the recordings that were filtered for an experiment."""
    folders = {"Angry": "kz", "Calm": "sk", "Happy": "mt", "Sad": "hl"}
    wanted = [
        f"Sound Source/{folder}/{speaker}_{code}_{word}.wav"
        for folder, code in folders.items()
        for speaker in (1358, 1984, 7895)
        for word in ("eger", "turev")
    ]
    filtered = "Model Output for Test Data/testEmotions500HighPass/sound/Angry/1358_kz_eger.wav"
    miniature.write(
        tmp_path / "source", [*wanted, "Sound Source/Sad/7895_hl_ogul1.wav", filtered], rate=44_100, seconds=0.15
    )
    records, _, report = miniature.build("turev", tmp_path / "source", tmp_path / "data")
    assert len(records) == 25 and report["left_out_on_purpose"] == {"a copy, filtered for an experiment": 1}
    assert report["merges"] == {"calm→neutral": 6} and not report["skipped"]
    assert said(records, "Sad/7895_hl_ogul") == ("sad", "7895", "female", "ogul")
    assert said(records, "Calm/1358_sk_turev") == ("neutral", "1358", "male", "turev")
    assert records["Happy/1984_mt_eger"].emotion == "happy" and records["Angry/1984_kz_eger"].emotion == "angry"


def test_resd(tmp_path):
    """Labels and split from the tables; eleven dialogues are named with a blank."""
    words = {
        "a": "anger",
        "d": "disgust",
        "e": "enthusiasm",
        "f": "fear",
        "h": "happiness",
        "n": "neutral",
        "s": "sadness",
    }
    dialogues = ("happiness_enthusiasm_32 h e", "anger_fear_34 a f", "sadness_disgust_33 s d", "neutral_fear_27 n f")
    files = {"train": [], "test": []}
    for line in dialogues:
        folder, *letters = line.split()
        pair, _, number = folder.rpartition("_")
        for letter in letters:
            for take in ("010", "120", "130"):
                split = "test" if take == "130" else "train"
                files[split].append((f"{folder}/{number}_{pair}_{letter}_{take}.wav", words[letter]))
    files["test"].append(("01_happiness_anger/01_happiness_anger a_050.wav", "anger"))
    for split, rows in files.items():
        miniature.write(tmp_path / split / split, [path for path, _ in rows], seconds=0.15, rate=16_000)
        shutil.make_archive(str(tmp_path / "source" / split), "zip", tmp_path / split)
        lines = ["name,path,emotion,text", *(f'{path[-9:-4]},{path},{word},"Да, нет"' for path, word in rows)]
        (tmp_path / "source" / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    records, _, report = miniature.build("resd", tmp_path / "source", tmp_path / "data")
    assert len(records) == 25 and not report["skipped"]
    assert report["unlabelled"] == {"enthusiasm": 3}
    assert said(records, "32_happiness_enthusiasm_h_120") == ("happy", "32_h", "", "Да, нет")
    assert said(records, "01_happiness_anger a_050")[:2] == ("angry", "01_a")
    assert records["34_anger_fear_f_130"].split == "test" and records["34_anger_fear_f_010"].split == "train"
    official = [row for row in report["folds"] if row["scheme"] in ("official", "emobox")]
    assert [(row["train"], row["test"], row["speakers_in_both"]) for row in official] == 2 * [(16, 9, 8)]


def test_casia(tmp_path):
    """Sentences in GBK, a speaker with capitals, analysis files beside the recordings, a stray recording."""
    emotions = ("angry", "fear", "happy", "neutral", "sad", "surprise")
    wanted = names(
        "{}/{}/{}.wav", speaker=("ZhaoZuoxiang", "liuchanhg", "wangzhe"), emotion=emotions, number=(201, 217)
    )
    miniature.write(tmp_path / "source" / "casia", [*wanted, "201.wav"], seconds=0.15)
    (tmp_path / "source" / "casia" / "wangzhe" / "sad" / "201.lab").write_text("0 2180000 SIL")
    table = "201. 就是下雨也去。\r\n202. 我马上拿来。\r\n217. 形状成为 水壶 \r\n"
    (tmp_path / "source" / "casia" / "相同的文本201--250.txt").write_bytes(table.encode("gbk"))
    records, index, report = miniature.build("casia", tmp_path / "source", tmp_path / "data")
    assert len(records) == 36 and [item["path"] for item in report["skipped_items"]] == ["casia/201.wav"]
    assert said(records, "zhaozuoxiang/fear/201") == ("fear", "zhaozuoxiang", "male", "就是下雨也去。")
    assert said(records, "liuchanhg/surprise/217") == ("surprise", "liuchanhg", "female", "形状成为水壶")
    assert folds(index) == {1: {"wangzhe"}, 2: {"zhaozuoxiang"}, 3: {"liuchanhg"}}


def test_ased(tmp_path):
    """A capital S, and women whose name says man once."""
    letters = {"01Neutral": "n1", "02Fearful": "f2", "03Happy": "h3", "04Sad": "s4", "05Angry": "a5"}
    wanted = [
        f"{folder}/{letter}-02-01-{speaker}.wav"
        for folder, letter in letters.items()
        for speaker in ("01-33", "02-45", "01-09")
    ]
    typos = ["04Sad/S4-04-02-01-29.wav", "04Sad/s4-01-02-02-09.wav", "02Fearful/f2-07-02-02-21.wav"]
    miniature.write(tmp_path / "source", wanted + typos, seconds=0.15)
    records, _, report = miniature.build("ased", tmp_path / "source", tmp_path / "data")
    assert len(records) == 18 and not report["skipped"] and sum(report["corrections"].values()) == 3
    assert said(records, "a5-02-01-01-33") == ("angry", "33", "female", "")
    assert said(records, "h3-02-01-02-45")[:3] == ("happy", "45", "male")
    assert said(records, "s4-04-02-01-29")[:3] == ("sad", "29", "female")
    assert said(records, "s4-01-02-01-09")[:3] == ("sad", "09", "female")
    assert said(records, "f2-07-02-01-21")[:3] == ("fear", "21", "female")
