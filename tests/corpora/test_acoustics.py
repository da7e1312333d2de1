import json
import math

import librosa
import numpy as np
import pytest

from mser_jax.corpora import acoustics, audio_check


def voice(f0, seconds=1.5, rate=16_000, noise=0.01, seed=0):
    """Harmonics falling 6 dB per octave below 4 kHz, in noise: int16 [time]."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    orders = np.arange(1, int(4000 / f0) + 1)
    phases = rng.uniform(0, 2 * np.pi, len(orders))
    wave = (np.sin(2 * np.pi * f0 * orders[:, None] * t + phases[:, None]) / orders[:, None]).sum(0)
    wave = wave / np.abs(wave).max() + noise * rng.standard_normal(len(t))
    return (wave * 10_000).astype(np.int16)


@pytest.mark.parametrize("f0", [65, 82, 110, 147, 196, 262, 349, 466, 590])
def test_pitch_of_harmonic_tones_is_that_of_yin_and_the_truth(f0):
    wave = voice(f0, seed=f0)
    got = acoustics.pitch_hz(wave, 16_000)
    assert got == pytest.approx(f0, rel=0.01)
    yin = np.median(librosa.yin(wave / 32768, fmin=55, fmax=640, sr=16_000))
    assert got == pytest.approx(yin, rel=0.02)


def test_pitch_with_pauses_and_low_level():
    wave = voice(180.0)
    pauses = np.concatenate([np.zeros(16_000, np.int16), wave, np.zeros(16_000, np.int16)])
    assert acoustics.pitch_hz(pauses, 16_000) == pytest.approx(180, rel=0.01)
    assert acoustics.pitch_hz((wave / 50).astype(np.int16), 16_000) == pytest.approx(180, rel=0.01)


def test_no_pitch_in_noise_or_in_next_to_nothing():
    noise = (np.random.default_rng(0).standard_normal(32_000) * 3_000).astype(np.int16)
    assert math.isnan(acoustics.pitch_hz(noise, 16_000))
    assert math.isnan(acoustics.pitch_hz(np.zeros(32_000, np.int16), 16_000))
    assert math.isnan(acoustics.pitch_hz(voice(200.0)[:500], 16_000))


def test_pitch_of_real_speech_is_that_of_pyin(shared):
    """Median f0 of a few clips of every corpus against librosa's pyin: within 10 % for nine in ten."""
    rows = [json.loads(line) for line in (shared / "speech" / "manifest.jsonl").open(encoding="utf-8")]
    ratios = []
    for corpus in sorted({row["corpus"] for row in rows}):
        for row in [row for row in rows if row["corpus"] == corpus][:40:20]:
            wave, _ = audio_check.load(shared / "speech" / row["path"])
            f0, voiced, _ = librosa.pyin(wave[:32_000] / 32768, fmin=60, fmax=600, sr=16_000, hop_length=512)
            if voiced.any():  # pyin finds no voice at all in one of them
                ratios.append(acoustics.pitch_hz(wave[:32_000], 16_000) / np.median(f0[voiced]))
    close = np.abs(np.log(ratios)) < np.log(1.1)  # NaN is not close
    assert len(ratios) >= 15
    assert close.sum() >= len(ratios) - 1, ratios


def test_loudness():
    time_ = np.arange(16_000) / 16_000
    sine = (32767 * np.sin(2 * np.pi * 100 * time_)).astype(np.int16)
    assert acoustics.loudness_db(sine) == pytest.approx(-3.01, abs=0.01)
    assert acoustics.loudness_db((sine / 10).astype(np.int16)) == pytest.approx(-23.01, abs=0.02)
    assert acoustics.loudness_db(np.full(100, -32768, np.int16)) == pytest.approx(0.0, abs=1e-6)


def test_speaking_rate():
    assert acoustics.speaking_rate("guten Tag\n", 2.0) == 4.0
    assert acoustics.speaking_rate("公司开设讲座", 1.5) == 4.0
    assert math.isnan(acoustics.speaking_rate(" ", 1.0))
