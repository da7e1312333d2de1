"""`python -m mser_jax.corpora`: a table of all corpora, everything of one, JSON; what is prepared, who has seen it."""

import json
import os
import subprocess
import sys

import pytest
import soundfile
import toy_corpus

from mser_jax.corpora import listing, public, registry


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """With a few utterances of EmoDB prepared in it, and a build that did not end."""
    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    for number, name in enumerate(["03a01Wa", "03a01La", "08a01Wa", "08a02Ta", "09a01Na"]):
        soundfile.write(source / f"{name}.wav", toy_corpus.tone(seed=number), 16_000)
    registry.corpus_builder("emodb", str(data_dir), str(source), allow_partial=True).prepare()
    (data_dir / "tess" / "1.0.0").mkdir(parents=True)
    for killed in ("incomplete.0123abcd_1.0.0", "unpacked.0123abcd"):
        (data_dir / "emodb" / killed).mkdir()
        (data_dir / "emodb" / killed / "index.parquet").write_bytes(b"")
    return data_dir


def run(*args, **environ):
    """(exit code, stdout, stderr) of the command, in a process of its own, which must not need JAX."""
    code = (
        "import runpy, sys; sys.modules['jax'] = None\n"
        f"sys.argv = ['mser_jax.corpora', *{[str(arg) for arg in args]!r}]\n"
        "runpy.run_module('mser_jax.corpora', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environ}
    )
    return done.returncode, done.stdout, done.stderr


def test_the_table_has_every_corpus(data_dir):
    code, out, err = run(TFDS_DATA_DIR=str(data_dir))
    assert code == 0, err
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(lines) >= {*public.NAMES, "m5ser_mini", "speech_folder"} and len(public.NAMES) >= 36
    emodb = lines["emodb"]
    assert emodb.split()[:6] == ["emodb", "de", "0.41", "535", "10", "ADFHNS·"] and "CC0 1.0" in emodb
    assert "5, 0.00 h" in emodb and "emotion2vec+" in emodb
    assert "–" in lines["tess"] and "Audio Flamingo 3" in lines["tess"], "not complete, so not prepared"
    assert "emotion2vec+" not in lines["nemo"] and "Whisper" not in out
    assert str(data_dir) in out and "may have seen any: " in out and "Qwen2-Audio" in out


def test_everything_of_one(data_dir):
    code, out, err = run("emodb", "--data_dir", data_dir)
    assert code == 0, err
    said = " ".join(out.split())
    for words in (
        "Berlin Database of Emotional Speech", "535 utterances, 0.41 h, 10 speakers", "Ärger → angry",
        "Langeweile → (none)", "http://emodb.bilderbar.info/download/download.zip", "wav/03a01Wa.wav",
        "Burkhardt et al.", "tools/prepare_corpus.py emodb --source=DIR --emobox=CLONE", "emodb:speaker-1",
        "emotion2vec+, with labels: seed: fine-tuned", "[https://huggingface.co/emotion2vec/emotion2vec_plus_seed]",
        "5 utterances of 3 speakers", "emotion (a labels.toml can map them): {'Langeweile': 1}", "speakers in both",
    ):  # fmt: skip
        assert words in said, words
    assert "calm → neutral (merge: calm→neutral)" in " ".join(listing.details(listing.one("ravdess")).split())
    assert "emobox-1 … 6, by speaker" in listing.details(listing.one("ravdess"))
    assert "not prepared here" in listing.details(listing.one("tess", str(data_dir)))
    nothing = listing.details(listing.one("thai_ser", str(data_dir)))
    assert "no model of the registry" in nothing and "Folder" not in nothing


def test_json_and_mistakes(data_dir):
    code, out, _ = run("--json", "--data_dir", data_dir)
    corpora = {corpus["name"]: corpus for corpus in json.loads(out)}
    assert code == 0 and corpora["emodb"]["prepared"][0]["report"]["built"] == 5
    assert corpora["emodb"]["labels"]["Ekel"] == {"emotion": "disgust", "merge": None}
    assert corpora["casia"]["emobox"] == "by speaker" and corpora["nemo"]["emobox"] == ""
    assert corpora["speech_folder"]["about"] and corpora["ravdess"]["languages"] == ["en"]
    assert {fact["model"] for fact in corpora["iemocap"]["seen_by"]} >= {"SALMONN", "emotion2vec"}
    assert not [name for name, corpus in corpora.items() if name in public.NAMES and not corpus["obtain"]]
    code, out, err = run("emobd")
    assert code == 1 and out == "" and "Did you mean 'emodb'" in err
