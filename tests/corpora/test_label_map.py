"""A user's own labels: from a folder's labels.toml into its records, and from the config's over all corpora."""

import json
import os

import numpy as np
import pytest
import soundfile

from mser_jax.corpora import label_map, registry
from mser_jax.data import sources

NATIVE = ("fed up", "Wut", "kwisti", "bored", "")


def folder(path, labels=""):
    """A speech folder with two recordings of each of NATIVE."""
    path.mkdir()
    rng = np.random.default_rng(5)
    lines = []
    for i, native in enumerate(2 * NATIVE):
        soundfile.write(path / f"{i}.wav", 0.1 * rng.standard_normal(4000), 16_000)
        lines.append(json.dumps({"path": f"{i}.wav", "language": "mt", "emotion": native, "speaker": str(i % 3)}))
    (path / "manifest.jsonl").write_text("\n".join(lines))
    if labels:
        (path / "labels.toml").write_text(labels)
    return path


def emotions_of(table):
    return dict(zip(table["emotion_native"], table["emotion"], strict=True))


def test_a_folder_and_a_config_map_their_own_labels(tmp_path):
    made = folder(tmp_path / "maltese")
    spec, data = f"speech_folder:{made}", str(tmp_path / "data")
    table = sources.load_table(spec, data)
    assert emotions_of(table) == {"fed up": "", "Wut": "angry", "kwisti": "", "bored": "", "": ""}
    (entry,) = table.unlabelled()
    assert (entry["language"], entry["n"], entry["labels"]) == ("mt", 8, {"fed up": 2, "kwisti": 2, "bored": 2, "": 2})
    assert label_map.label_counts([entry], shown=2) == "fed up 2, kwisti 2, … 2 more"
    with pytest.raises(ValueError, match=r"no canonical emotion \(.*kwisti 2.*labels.toml.*removed 8"):
        table.filter(emotions=("sad",))
    # The folder's own map is in its records; a changed map is another build.
    (made / "labels.toml").write_text('[labels]\n"FED-UP" = "angry"\nkwisti = "sad"\n"" = "neutral"\n')
    table = sources.load_table(spec, data)
    assert emotions_of(table) == {"fed up": "angry", "Wut": "angry", "kwisti": "sad", "bored": "", "": "neutral"}
    assert table.unlabelled()[0]["labels"] == {"bored": 2}
    assert registry.open_corpus(spec, data).index["emotion"].to_pylist().count("angry") == 4
    # A run's map decides over both, and takes labels away too.
    (tmp_path / "mine.toml").write_text('[labels]\nbored = "neutral"\nwut = ""\n')
    table = sources.load_table(spec, data, str(tmp_path / "mine.toml"))
    assert emotions_of(table) == {"fed up": "angry", "Wut": "", "kwisti": "sad", "bored": "neutral", "": "neutral"}
    assert table["emotion_id"].tolist()[:4] == [0, -1, 5, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[labels]\nbored = "sadd"', "'bored' is mapped to 'sadd', expected one of angry.*Did you mean 'sad'"),
        ("[labels]\nbored = 3", "'bored' is mapped to 3"),
        ('[labels]\nBored = "sad"\nbored = "neutral"', "mapped twice"),
        ('bored = "sad"', r"\['bored'\].*one section \[labels\]"),
        ('[labels]\nbored = "sad"\n[lables]\nx = "sad"', r"\['lables'\]"),
        ("bored -> sad", "not TOML"),
        (b"[labels]\n\xfcble = 'sad'", "not TOML in UTF-8"),
        ('[labels]\nโกรธมาก = "angry"', "not TOML.*every label in quotes"),
        ("", "no section"),
    ],
)
def test_a_wrong_map_is_refused_with_file_and_label(tmp_path, text, message):
    made = folder(tmp_path / "corpus")
    (made / "labels.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (
        lambda: label_map.read(made / "labels.toml"),
        lambda: registry.open_corpus(f"speech_folder:{made}", ""),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read()
        assert str(made / "labels.toml") in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"other\.toml"):
        label_map.read(tmp_path / "other.toml")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_map_that_is_no_file_is_refused_at_once(tmp_path, make):
    made = folder(tmp_path / "corpus")
    make(made / "labels.toml")
    with pytest.raises((ValueError, FileNotFoundError), match=r"labels\.toml(: no such file| is not a file)"):
        registry.open_corpus(f"speech_folder:{made}", "")
