"""A public corpus from its download to results.json: label spaces, merges, what is left out, votes, folds."""

import dataclasses
import io
import json

import numpy as np
import pytest
import soundfile

from mser_jax import stages
from mser_jax.corpora import builder, registry
from mser_jax.corpora.public import ravdess
from mser_jax.stages import scoring

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """RAVDESS with two actors, one recording an emotion; a label of it that only its builder decides; votes."""

    said = ravdess.Ravdess.utterance

    def utterance(self, match):
        raw = said(self, match)
        own = {"emotion_native": "grumpy", "emotion": "angry"} if raw.id.endswith("05-01-01-01-01") else {}
        return dataclasses.replace(raw, votes='{"angry": 2, "sad": 1}', **own)

    source, data_dir = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for actor in (1, 2):
        for emotion in range(1, 9):
            buffer = io.BytesIO()
            soundfile.write(buffer, 0.1 * rng.standard_normal(4800), 16_000, format="WAV")
            (source / f"03-01-{emotion:02}-01-01-01-{actor:02}.wav").write_bytes(buffer.getvalue())
    corpus = registry.corpus_builder("ravdess", str(data_dir), str(source), allow_partial=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ravdess.Ravdess, "utterance", utterance)
        corpus.prepare()
    assert json.loads(corpus.report_path.read_text())["merges"] == {"calm→neutral": 2, "grumpy→angry": 1}
    return data_dir


@pytest.mark.parametrize(
    "space, left_out, merges",
    [
        ("4", {"disgust": 2, "fear": 2, "surprise": 2}, {"calm→neutral": 2, "grumpy→angry": 1}),
        ("5", {"disgust": 2, "fear": 2}, {"calm→neutral": 2, "grumpy→angry": 1}),
        ("6", {"disgust": 2}, {"calm→neutral": 2, "grumpy→angry": 1}),
        ("7", {}, {"calm→neutral": 2, "grumpy→angry": 1}),
        ("happy,sad", {"angry": 2, "disgust": 2, "fear": 2, "neutral": 4, "surprise": 2}, {}),
    ],
)
def test_label_spaces_and_merges(tiny, prepared, tmp_path, space, left_out, merges):
    changes = {"data.corpora": "ravdess", "data.data_dir": str(prepared), "evaluate.label_space": space}
    config = tiny(**changes, **{"evaluate.split": "", "evaluate.dev_utterances": 0})
    found = scoring.Evaluation(config, stages.make(config)._data)
    kept = np.arange(len(found.table))
    guesses = np.eye(len(found.labels))[kept % len(found.labels)]
    results = found.results(found.rows(guesses, kept), guesses, kept, run=tmp_path, step=1, scoring="similarity")
    assert results["left_out"] == left_out and results["merges"] == merges
    assert sum(row["n"] for row in results["rows"]) == 16 - sum(left_out.values())


def test_votes_folds_and_splits_reach_the_index(prepared):
    index = registry.open_corpus("ravdess:emobox-1", str(prepared)).index.to_pylist()
    assert {row["votes"] for row in index} == {'{"angry": 2, "sad": 1}'} and json.loads(index[0]["votes"])["sad"] == 1
    assert {row["split"] for row in index if row["speaker"] == "ravdess:01"} == {"test"}
    assert {row["split"] for row in index if row["speaker"] == "ravdess:02"} == {"train"}
    assert set(index[0]) >= {"emotion_native", "emotion", "valence", "emobox_fold", *builder.ACOUSTIC_COLUMNS}
