"""Emotion agreement: verdicts from probabilities; a real checkpoint is asked in tests/stages/test_predict.py."""

import numpy as np
import pytest

from mser_jax import predict
from mser_jax.config import ConfigError
from mser_jax.m5ser.filters import Candidate, EmotionAgreement
from mser_jax.m5ser.lines import Line, Text

LABELS = ("angry", "happy", "neutral", "sad")


def candidate(emotion, seed=0, seconds=1.0):
    waveform = (3000 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype(np.int16)
    text = Text(id="t", text="Nobody came.", language="en")
    return Candidate(
        waveform=waveform,
        line=Line(text=text, engine="e", voice="v", emotion=emotion, intensity=1.0, seed=seed),
    )


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return str(tmp_path)


def test_verdicts(run, monkeypatch):
    told = np.array([[0.7, 0.2, 0.05, 0.05], [0.7, 0.2, 0.05, 0.05], [0.7, 0.2, 0.06, 0.04]])
    asked = []

    def scorer(run, step, labels):
        asked.append((run, step, labels))
        return lambda waveforms: told[: len(waveforms)]

    monkeypatch.setattr(predict, "waveform_scorer", scorer)
    made = EmotionAgreement(checkpoint=run, labels="angry, happy,neutral,sad")
    first, second, third = made.measure([candidate("angry"), candidate("happy"), candidate("sad")])
    assert first.measures == {"agreement": 0.7, "agreement_rank": 1} and not first.reason
    assert second.measures == {"agreement": 0.2, "agreement_rank": 2} and not second.reason
    assert third.measures == {"agreement": 0.04, "agreement_rank": 4} and third.reason == "emotion"
    made.measure([candidate("angry")])
    assert asked == [(run, -1, LABELS)], "the model is loaded once"
    with pytest.raises(ConfigError, match="labels=angry, happy,neutral,sad lacks fear"):
        made.measure([candidate("fear")])
