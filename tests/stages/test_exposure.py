"""A run on pretrained towers knows what they saw, from their names or because it is told, and its results say so."""

import json
import shutil

import numpy as np
import pytest

from mser_jax import config as config_lib
from mser_jax import stages
from mser_jax.corpora import seen_by
from mser_jax.evaluation import report
from mser_jax.stages import exposure, scoring


@pytest.fixture
def whisper(bases, tmp_path):
    """whisper(name, **changes of config.json) -> a directory of that name."""

    def make(name, **changes):
        folder = shutil.copytree(bases[0], tmp_path / name)
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))
        return str(folder)

    return make


def test_names_of_models(tiny, bases, whisper, caplog):
    def speech(init, said=""):
        return exposure.models(tiny(**{"speech_encoder.init": init, "speech_encoder.seen_by": said}))["speech_encoder"]

    assert speech(whisper("emotion2vec_plus_seed")) == "emotion2vec+"
    assert speech("/cache/models--openai--whisper-base/snapshots/e37978b") == "Whisper"
    assert speech("openai/whisper-large-v3@main") == "Whisper" and not caplog.records
    mine = whisper("mine")
    assert speech(mine) == "not in the registry" and "mine is not in the registry of who has seen what" in caplog.text
    assert speech(mine, "emotion2vec+") == "emotion2vec+" and speech(mine, "none") == "none"
    assert speech(whisper("other", _name_or_path="openai/whisper-base")) == "Whisper"
    # Somebody's classifier: what it was taught after its base is not known, but what its base saw is.
    taught = {"architectures": ["WhisperForSequenceClassification"]}
    assert speech(whisper("a", _name_or_path="openai/whisper-base", **taught)) == seen_by.UNKNOWN
    assert speech(whisper("b", _name_or_path="x/emotion2vec_plus_base", **taught)) == "emotion2vec+"
    with pytest.raises(
        config_lib.ConfigError, match=r"speech_encoder\.seen_by='Wisper': expected one of emotion2vec\+"
    ):
        speech(mine, "Wisper")
    assert exposure.models(tiny(**{"text_encoder.init": str(bases[1])})) == {"text_encoder": "text only"}
    assert exposure.models(tiny()) == {}


def test_results_of_a_network_that_started_from_emotion2vec(tiny, whisper, tmp_path):
    config = tiny(**{"speech_encoder.init": whisper("emotion2vec_plus_base")})
    stage = stages.make(config)
    assert stage.metadata()["pretrained_models"] == {"speech_encoder": "emotion2vec+"}
    found = scoring.Evaluation(config, stage._data)
    kept = np.arange(len(found.table))
    guesses = np.random.default_rng(0).dirichlet(np.ones(6), len(kept))
    results = found.results(found.rows(guesses, kept), guesses, kept, run=tmp_path, step=1, scoring="similarity")
    rows = {row["language"]: row for row in results["rows"]}
    assert rows["fa"]["protocol"] == rows["pl"]["protocol"] == "in_corpus"
    assert "language pl in pretraining of emotion2vec+ (https://huggingface.co/" in rows["pl"]["why_not"]
    assert results["macro"]["zero_shot"]["rows"] == 0
    seed = results["pretrained_models"]["speech_encoder"]["with_labels"][0]
    assert "ravdess" in seed["corpora"] and seed["source"].startswith("https://")

    # The same scored from a checkpoint's metadata, whose weights are Whisper's: reported, and refused nothing more.
    metadata = json.loads(json.dumps({**stage.metadata(), "pretrained_models": {"speech_encoder": "Whisper"}}))
    found = scoring.Evaluation(config, stages.make(config, metadata)._data)
    results = found.results(found.rows(guesses, kept), guesses, kept, run=tmp_path, step=1, scoring="similarity")
    rows = {row["language"]: row for row in results["rows"]}
    assert "pretraining" not in rows["pl"]["why_not"] and rows["pl"]["protocol"] == "leave_one_language_out"
    assert "pl" in results["pretrained_models"]["speech_encoder"]["without_labels"][0]["languages"]
    assert "speech_encoder is Whisper, which heard speech without labels of emotion" in report.format_table(results)
    assert report.read(report.write(results, tmp_path / "out").parent) == results


def test_stage_2_starts_from_what_stage_1_started_from(tiny2):
    config = tiny2(**{"speech_encoder.init": "openai/whisper-base", "llm.init": "Qwen/Qwen2-Audio-7B"})
    before = {"speech_encoder": "emotion2vec+", "text_encoder": "text only"}
    assert exposure.models(config, before) == {"speech_encoder": "emotion2vec+", "llm": "Qwen2-Audio"}
    assert exposure.models(config, {}) == {"llm": "Qwen2-Audio"}, "stage 1 from scratch: its own init is not read"
