"""A generated data set on gs://: written by chunks, gone on with, opened as a corpus."""

import io

import pyarrow.parquet
import pytest
import soundfile

from mser_jax import config as config_lib
from mser_jax.corpora.record import Utterance
from mser_jax.corpora.registry import open_corpus
from mser_jax.m5ser import chunks, generate

HERE = ["--direct_num_workers=1", "--direct_running_mode=in_memory"]


def test_a_data_set_in_a_bucket(bucket, cache, monkeypatch):
    config = config_lib.load("configs/m5ser.py")
    config.languages, config.emotions, config.limit = "en", "happy,sad", "8 utterances"
    config.chunk_utterances = 4
    for section in config.filters.values():
        section.enabled = False
    folder = bucket / "set"
    generate.run(config, str(folder), HERE)
    with pytest.raises(RuntimeError, match="is not finished yet"):
        (folder / "index.parquet").unlink()
        open_corpus(f"m5ser:{folder}")
    # As after a kill between the record file and its rows.
    chunks.rows_path(folder, 1).unlink()
    made, write = [], chunks._write_shard
    monkeypatch.setattr(
        chunks, "_write_shard", lambda folder, number, *rest: made.append(number) or write(folder, number, *rest)
    )
    generate.run(config, str(folder), HERE)
    assert made == [1], "what is there is left alone"
    corpus = open_corpus(f"m5ser:{folder}")
    assert len(corpus.source) == len(corpus.index) == 8
    utterance = Utterance.from_example(corpus.source[5])
    assert utterance.id == corpus.index["id"][5].as_py() and utterance.emotion == "sad"
    waveform, rate = soundfile.read(io.BytesIO(utterance.audio))
    assert rate == 16000 and len(waveform) / rate == pytest.approx(utterance.duration_s)
    rows = pyarrow.parquet.read_table(io.BytesIO((folder / "index.parquet").read_bytes()))
    assert "provenance" in rows.column_names
    assert "data:image/png" in (folder / "card.html").read_text() and (folder / "card" / "prosody.png").exists()
