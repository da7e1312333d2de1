"""Corpora that come as video or in containers of it: MELD, eNTERFACE, MEAD, MER2023. Written by a real ffmpeg."""

import itertools
import json
import math
import shutil
import subprocess

import miniature
import pytest

from mser_jax.corpora import ffmpeg

# What the corpora's files are: MELD 5.1 AAC at 48 kHz, eNTERFACE uncompressed stereo, MEAD m4a, MER2023 of many kinds.
KINDS = {
    "meld.mp4": ("48000", "0.4", "-ac", "6", "-c:a", "aac", "-c:v", "mpeg4"),
    "short.mp4": ("48000", "0.06", "-ac", "2", "-c:a", "aac", "-c:v", "mpeg4"),
    "enterface.avi": ("48000", "0.3", "-ac", "2", "-c:a", "pcm_s16le", "-c:v", "mpeg4"),
    "mead.m4a": ("48000", "0.3", "-ac", "1", "-c:a", "aac", "-vn"),
    "mer.avi": ("44100", "0.3", "-ac", "2", "-c:a", "mp3", "-c:v", "mpeg4"),
    "noisy.mp4": ("16000", "0.3", "-ac", "1", "-c:a", "aac", "-c:v", "mpeg4"),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The files of KINDS."""
    folder = tmp_path_factory.mktemp("clips")
    command = [ffmpeg.program(), "-v", "error"]
    for rate, seconds, *_ in KINDS.values():
        command += ["-f", "lavfi", "-i", f"sine=300:duration={seconds}:sample_rate={rate}"]
    command += ["-f", "lavfi", "-i", "color=size=32x32:duration=0.3:rate=5"]
    for number, (name, (_, _, *how)) in enumerate(KINDS.items()):
        command += ["-map", f"{number}:a", *([] if "-vn" in how else ["-map", f"{len(KINDS)}:v"]), *how]
        command.append(str(folder / name))
    subprocess.run(command, check=True, timeout=60)
    return folder


def put(clip, folder, names):
    """Copies `clip` to the paths `names` below `folder`."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clip, folder / name)
    return folder


MELD_HEAD = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
MELD_EMOTIONS = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")


def test_meld(clips, tmp_path):
    """The archive as it is shipped: archives in an archive. Its known defects: a clip that is not there, one that is no
    video, one shorter than 0.1 s, two that are minutes long, clips without a row, clips twice under another name."""
    source, tree = tmp_path / "MELD.Raw", tmp_path / "tree"
    parts = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
    for part, folder in parts.items():
        rows = [
            f'{n},"Hey, it\x92s {part} {n}.",{("Joey", "Monica", "The Interviewer")[n % 3]},{emotion},neutral,'
            f'{n // 5},{n % 5},8,21,"00:16:16,059","00:16:21,731"'
            for n, emotion in enumerate(MELD_EMOTIONS * 3)
        ]
        names = [f"{folder}/dia{n // 5}_utt{n % 5}.mp4" for n in range(21)]
        if part == "train":
            rows.append("22,No.,Ross,neutral,neutral,125,3,1,1,,")
            (tree / part / folder).mkdir(parents=True)
            (tree / part / folder / "dia125_utt3.mp4").write_bytes(b"\0\0\0\x1cftypisom" + bytes(900))
            put(clips / "short.mp4", tree / part, ["train_splits/dia4_utt5.mp4"])
            rows.append("23,Oh.,Ross,neutral,neutral,4,5,1,1,,")
        if part == "dev":
            rows.append("24,Yes.,Ross,neutral,neutral,110,7,1,1,,")
            names.append("dev_splits_complete/dia66_utt9.mp4")
        if part == "test":
            rows += [f"25,What?,Ross,neutral,neutral,{dia},{utt},1,1,," for dia, utt in ((38, 4), (220, 0))]
            names += [f"{folder}/{name}.mp4" for name in ("dia38_utt4", "dia220_utt0", "final_videos_testdia0_utt0")]
        put(clips / "meld.mp4", tree / part, names)
        csv = source / f"{part}_sent_emo.csv" if part != "train" else tree / part / "train_sent_emo.csv"
        csv.parent.mkdir(parents=True, exist_ok=True)
        csv.write_text("\n".join((MELD_HEAD, *rows)), encoding="utf-8")
        shutil.make_archive(str(source / part), "gztar", tree / part)
    shutil.make_archive(str(tmp_path / "MELD.Raw"), "gztar", tmp_path, "MELD.Raw")
    records, index, report = miniature.build("meld", tmp_path / "MELD.Raw.tar.gz", tmp_path / "data")
    assert len(records) == 63
    assert {(item["path"].rpartition("/")[2], item["reason"]) for item in report["skipped_items"]} == {
        ("dia125_utt3.mp4", "truncated"), ("dia4_utt5.mp4", "too_short"), ("dia110_utt7", "missing")
    }  # fmt: skip
    assert report["left_out_on_purpose"] == {
        "wrongly cut: minutes of sound for one sentence": 2,
        "no label": 1,
        "the same clip under another name": 1,
    }
    first = records["train_splits/dia0_utt0"]
    assert (first.transcript, first.speaker, first.gender) == ("Hey, it’s train 0.", "meld:Joey", "male")
    assert records["dev_splits_complete/dia0_utt1"].gender == "female"
    assert records["output_repeated_splits_test/dia0_utt2"].gender == ""
    assert [records[f"train_splits/dia{n // 5}_utt{n % 5}"].emotion for n in range(7)] == [
        *("neutral", "happy", "surprise", "angry", "sad", "disgust", "fear")
    ]
    assert (report["downmixed"], report["resampled_from_hz"]) == (63, {"48000": 63})
    assert [sum(row["split"] == split for row in index) for split in ("train", "validation", "test")] == [21, 21, 21]


def test_enterface(clips, tmp_path):
    """The file names are wrong in four places and subject 6 is not cut; the folders are right."""
    codes = {"anger": "an", "disgust": "di", "fear": "fe", "happiness": "ha", "sadness": "sa", "surprise": "su"}
    names = []
    for subject, (emotion, code), sentence in itertools.product((2, 3, 11, 12, 16), codes.items(), (1, 2)):
        stem = {2: f"s2_{code}_{sentence}", 11: f"s12_{code}_{sentence}"}.get(subject, f"s{subject}_{code}_{sentence}")
        if subject == 2 and code == "an":
            stem = f"s2_an_{3 - sentence}"
        if subject == 3 and code == "su":
            stem = f"s_3_su_{sentence}"
        if (subject, code, sentence) == (16, "su", 2):
            stem = "s16_su_2avi"
        names.append(f"subject {subject}/{emotion}/sentence {sentence}/{stem}.avi")
    names += ["subject 6/anger/s6_an.avi", "subject 6/fear/s6_fe.avi"]
    source = put(clips / "enterface.avi", tmp_path / "enterface database", names)
    # EmoBox has the wrong names, too, and so one subject fewer.
    listed = [name for name in names if "subject 12/" not in name and "subject 6/" not in name]
    for part, some in (("train", listed[5:]), ("test", listed[:5] + [n for n in listed if "subject 11/anger" in n])):
        lists = tmp_path / "EmoBox" / "data" / "enterface" / "fold_1" / f"enterface_{part}_fold_1.jsonl"
        lists.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"key": f"enterface-{n.rpartition('/')[2]}", "wav": f"downloads/enterface/{n}", "emo": "an"} for n in some
        ]
        lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, index, report = miniature.build("enterface", source, tmp_path / "data", tmp_path / "EmoBox")
    folds = {row["id"]: row["emobox_fold"] for row in index}
    assert folds["s2_an_1"] == folds["s11_an_1"] == 1 and folds["s16_an_1"] == 0
    assert folds["s12_an_1"] == -1 and report["emobox"]["unlisted"] == 12
    assert len(records) == 60 and report["skipped_items"] == []
    assert report["left_out_on_purpose"] == {"a whole session": 2}
    assert sum(report["corrections"].values()) == 12 + 2 + 2 + 1
    assert "subject 11/fear/sentence 1/s12_fe_1.avi → s11_fe_1.avi" in report["corrections"]
    assert "subject 16/surprise/sentence 2/s16_su_2avi.avi → s16_su_2.avi" in report["corrections"]
    assert {u.speaker for u in records.values()} == {f"enterface:{n}" for n in (2, 3, 11, 12, 16)}
    emotions = [records[f"s3_{code}_1"].emotion for code in codes.values()]
    assert emotions == ["angry", "disgust", "fear", "happy", "sad", "surprise"]
    assert (report["downmixed"], report["resampled_from_hz"]) == (60, {"48000": 60})


def test_mead(clips, tmp_path):
    """Every speaker's sound is an archive of its own, beside the videos."""
    emotions = ("neutral", "angry", "contempt", "disgusted", "fear", "happy", "sad", "surprised")
    for speaker in ("M003", "W019", "W040"):
        names = [f"{e}/level_{n}/00{n}.m4a" for e in emotions for n in ((1,) if e == "neutral" else (1, 3))]
        # Some hold the folder "audio", too.
        put(clips / "mead.m4a", tmp_path / speaker, [f"audio/{name}" for name in names] if speaker == "W040" else names)
        (tmp_path / "MEAD" / speaker / "video" / "front").mkdir(parents=True)
        (tmp_path / "MEAD" / speaker / "video" / "front" / "001.mp4").write_bytes(b"video")
        shutil.make_archive(str(tmp_path / "MEAD" / speaker / "audio"), "tar", tmp_path / speaker)
    records, _, report = miniature.build("mead", tmp_path / "MEAD", tmp_path / "data")
    assert len(records) == 45 and not report["skipped_items"]
    assert {u.speaker: u.gender for u in records.values()} == {
        "mead:M003": "male", "mead:W019": "female", "mead:W040": "female"
    }  # fmt: skip
    found = [records[f"W019/audio/{e}/level_1/001"].emotion for e in emotions]
    assert found == ["neutral", "angry", "", "disgust", "fear", "happy", "sad", "surprise"]
    assert report["unlabelled"] == {"contempt": 6}


def test_mer2023(clips, tmp_path):
    source, emotions = tmp_path / "mer2023", ("neutral", "angry", "sad", "happy", "worried", "surprise")
    folders = {"train": "mer2023train", "test1": ".", "test2": ".", "test3": "mer2023train"}
    for part, folder in folders.items():
        kind, new = ("mer.avi", "") if part in ("train", "test1") else ("noisy.mp4", "new" * (part == "test3"))
        ids = [f"sample{new}_00000{part[-1] if part != 'train' else 0}{n}0" for n in range(6)]
        put(clips / kind, source / folder, [f"{part}/{name}{kind[-4:]}" for name in ids])
        tables = source / ("mer2023train" if part == "train" else "test-labels")
        tables.mkdir(parents=True, exist_ok=True)
        valence = part != "test3"
        lines = [
            f"{i},{e}" + (f",{n - 2.5}" if valence else "") for n, (i, e) in enumerate(zip(ids, emotions, strict=True))
        ]
        (tables / f"{part}-label.csv").write_text("\n".join(["name,discrete" + ",valence" * valence, *lines]))
    put(clips / "noisy.mp4", source, [f"mer2023train/test3/samplenew_0007313{n}.mp4" for n in range(4)])
    records, index, report = miniature.build("mer2023", source, tmp_path / "data")
    assert len(records) == 24 and report["left_out_on_purpose"] == {"no label": 4} and not report["skipped_items"]
    assert report["resampled_from_hz"] == {"44100": 12}
    assert report["unlabelled"] == {"worried": 4}
    first, last = records["train/sample_00000000"], records["test3/samplenew_00000350"]
    assert (first.emotion, first.valence, first.split, first.speaker) == ("neutral", -2.5, "train", "")
    assert (last.emotion, last.split) == ("surprise", "test") and math.isnan(last.valence)
    assert sum(row["split"] == "test" for row in index) == 18
