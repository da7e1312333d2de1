"""What a speech server answered is kept on gs://, for workers on other machines and the next run."""

import io

import numpy as np
import soundfile

from mser_jax.m5ser import engines


def test_answers_are_kept_on_a_bucket(bucket, monkeypatch):
    wave = io.BytesIO()
    soundfile.write(wave, 0.3 * np.sin(np.arange(36000) * 0.05), 24000, format="WAV")
    asked = []
    options = {"url": "http://localhost:1/v1", "model": "m", "voices": "anna", "languages": "en", "cache": str(bucket)}
    how = {"language": "en", "voice": "anna", "intensity": 1.0, "seed": 7}

    def answer(post, body):
        asked.append(body)
        return "audio/wav", wave.getvalue()

    for run in range(2):
        engine = engines.build_engine("openai_http", options)
        monkeypatch.setattr(type(engine._post), "__call__", answer)
        lengths = [len(engine.speak("Good evening.", emotion=e, **how).waveform) for e in ("sad", "happy")]
        assert lengths == [24000, 24000] and len(asked) == 2, run
    kept = list(bucket.glob("*/*.wav"))
    assert len(kept) == 2 and kept[0].read_bytes() == wave.getvalue()
