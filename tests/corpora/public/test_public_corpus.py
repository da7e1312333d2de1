"""What all public corpora share, shown on two of them: grammar, archives, duplicates, folds, messages."""

import shutil

import miniature
import pytest

from mser_jax.corpora import builder, registry

RAVDESS = [
    f"Actor_{actor:02}/03-01-{emotion:02}-01-{sentence:02}-01-{actor:02}.wav"
    for actor in (1, 2, 4)
    for emotion in range(1, 9)
    for sentence in (1, 2)
]


def test_names_labels_speakers_and_folds(tmp_path):
    """A folder of zips with songs among the speech, one of them unpacked a second time beside it."""
    miniature.write(tmp_path / "tree", RAVDESS, rate=48_000)
    miniature.write(tmp_path / "tree", ["Actor_01/03-02-01-01-01-01-01.wav", "__MACOSX/Actor_01/._x.wav"])
    miniature.write(tmp_path / "source" / "again", RAVDESS[:2], rate=48_000)
    shutil.make_archive(str(tmp_path / "source" / "Audio_Speech"), "zip", tmp_path / "tree")
    records, index, report = miniature.build("ravdess", tmp_path / "source", tmp_path / "data")
    assert report["skipped_items"] == [] and len(records) == 48
    assert report["left_out_on_purpose"] == {"the same file again": 2, "song": 1}
    assert report["merges"] == {"calm→neutral": 6} and report["resampled_from_hz"] == {"48000": 48}
    happy = records["03-01-03-01-02-01-04"]
    assert (happy.emotion, happy.speaker, happy.gender) == ("happy", "ravdess:04", "female")
    assert happy.transcript == "Dogs are sitting by the door." and happy.language == "en"
    assert records["03-01-07-01-01-01-01"].emotion == "disgust"
    assert {row["speaker"]: row["emobox_fold"] for row in index} == {
        "ravdess:01": 1, "ravdess:02": 5, "ravdess:04": 2
    }  # fmt: skip
    assert not [path for path in (tmp_path / "data").rglob("*") if "unpacked" in path.name]
    by_speaker = [row for row in report["folds"] if row["scheme"] == "speaker"]
    assert [row["test"] for row in by_speaker] == [16, 16, 16] and not any(r["speakers_in_both"] for r in by_speaker)
    # The same records, opened with another split.
    for spec, tested in (("ravdess:emobox-5", {"ravdess:02"}), ("ravdess:speaker-1", None)):
        index = registry.open_corpus(spec, str(tmp_path / "data")).index.to_pylist()
        found = {row["speaker"] for row in index if row["split"] == "test"}
        assert len(found) == 1 and (tested is None or found == tested)
        assert {row["split"] for row in index} == {"train", "test"}
    with pytest.raises(ValueError, match="no fold 3 in scheme 'emobox'; there are"):
        registry.open_corpus("ravdess:emobox-3", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="no official split"):
        registry.open_corpus("ravdess:official", str(tmp_path / "data"))


def test_a_corpus_that_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"zenodo.*CC BY.*prepare_corpus.py ravdess --source=DIR.*Actor_01/03"):
        registry.open_corpus("ravdess", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such folder or archive"):
        registry.corpus_builder("emodb", str(tmp_path), str(tmp_path / "gone")).prepare()
    with pytest.raises(ValueError, match="expected official, emobox-K"):
        registry.corpus_builder("ravdess:fold-1", str(tmp_path))
    with pytest.raises(ValueError, match="Did you mean 'ravdess'"):
        registry.corpus_builder("ravdes", str(tmp_path))
    with pytest.raises(ValueError, match="takes no source"):
        registry.corpus_builder("m5ser_mini", str(tmp_path), "x")


def test_unknown_names_are_listed_and_too_many_stop_the_build(tmp_path):
    good = [f"wav/{speaker}a01{emotion}a.wav" for speaker in ("03", "08") for emotion in "WLEAFTN"] * 2
    good += [f"wav/09a{text}{e}b.wav" for text in ("02", "04", "05") for e in "WLEAFTN"]
    miniature.write(tmp_path / "source", [*good, "wav/03a01Xa.wav"])
    records, _, report = miniature.build("emodb", tmp_path / "source", tmp_path / "data")
    assert report["skipped_by_reason"] == {"name": 1} and report["skipped_items"][0]["path"] == "wav/03a01Xa.wav"
    assert records["08a01La"].emotion == "" and records["08a01La"].emotion_native == "Langeweile"
    assert records["03a01Wa"].emotion == "angry" and records["03a01Aa"].emotion == "fear"
    assert records["03a01Fa"].gender == "male" and records["03a01Ta"].transcript.startswith("Der Lappen")
    miniature.write(tmp_path / "other", [f"wav/song{number}.wav" for number in range(40)])
    with pytest.raises(builder.TooManySkippedError, match="name"):
        miniature.build("emodb", tmp_path / "other", tmp_path / "more")


@pytest.mark.parametrize("name, message", [("a.rar", "unpack it yourself"), ("a.zip", "damaged archive")])
def test_archives_that_cannot_be_read(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"no archive")
    with pytest.raises(ValueError, match=message):
        registry.corpus_builder("emodb", str(tmp_path / "data"), str(tmp_path / name)).prepare()
