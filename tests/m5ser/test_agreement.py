"""Emotion agreement: verdicts from probabilities; a real checkpoint is asked in tests/stages/test_predict.py."""

import types

import jax
import numpy as np
import pytest

from mser_jax import config as config_lib
from mser_jax import evaluate
from mser_jax.config import ConfigError
from mser_jax.m5ser.filters import Candidate, EmotionAgreement
from mser_jax.m5ser.lines import Line, Text
from mser_jax.parallel import mesh as mesh_lib

LABELS = ("angry", "happy", "neutral", "sad")


LEVELS = np.array([1000.0, 2500.0, 4000.0, 5500.0])


def candidate(emotion, heard, seed=0, seconds=0.9):
    level = LEVELS[LABELS.index(heard)]
    waveform = (level * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype(np.int16)
    text = Text(id="t", text="Nobody came.", language="en")
    return Candidate(
        waveform=waveform,
        line=Line(text=text, engine="e", voice="v", emotion=emotion, intensity=1.0, seed=seed),
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that opens as a run whose stage hears in an utterance the label that its level names."""
    (tmp_path / "checkpoints").mkdir()

    def scorer(labels, languages, mesh):
        def score(params, batch):
            waveform = np.asarray(batch["waveform"], np.float64)
            level = np.sqrt((waveform**2).sum(-1) / np.asarray(batch["num_samples"]))
            near = -np.abs(level[:, None] - LEVELS) / 300
            return np.exp(near) / np.exp(near).sum(-1, keepdims=True)

        opened.append(labels)
        return score

    opened = []
    config = config_lib.from_dict({"data": {"length_classes": (0.5, 1.0)}})
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    stage = types.SimpleNamespace(scorer=scorer)
    fake = types.SimpleNamespace(config=config, mesh=mesh, params={}, stage=stage)
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda run, step, change: fake)
    return str(tmp_path), opened


def test_verdicts_of_chunks_that_grow(run):
    """Chunks of 3, 10 and 40 of two lengths: what is heard is each utterance's own, and the model is loaded once."""
    folder, opened = run
    made = EmotionAgreement(checkpoint=folder, labels="angry, happy,neutral,sad", min_probability=0.3)
    seed = 0
    for size in (3, 10, 40, 1):
        heard = [LABELS[(seed + k) % 4] for k in range(size)]
        asked = [LABELS[(seed + k * k) % 4] for k in range(size)]
        seconds = [0.4 if k % 3 else 0.9 for k in range(size)]
        batch = [candidate(a, h, seed + k, s) for k, (a, h, s) in enumerate(zip(asked, heard, seconds, strict=True))]
        seed += size
        for verdict, said, wanted in zip(made.measure(batch), heard, asked, strict=True):
            assert (verdict.measures["agreement_rank"] == 1) == (said == wanted)
            assert (verdict.measures["agreement"] > 0.8) == (said == wanted)
            assert verdict.reason == ("" if said == wanted else "emotion")
    assert opened == [LABELS]
    with pytest.raises(ConfigError, match="labels=angry, happy,neutral,sad lacks fear"):
        made.measure([candidate("fear", "sad")])
