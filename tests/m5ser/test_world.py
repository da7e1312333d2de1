"""f0, length, level, slope and regularity move as asked, by measures that know nothing of WORLD."""

import librosa
import numpy as np
import pytest

from mser_jax.m5ser import world
from mser_jax.m5ser.espeak import EspeakEngine
from mser_jax.m5ser.prosody import TARGETS, Prosody

pytest.importorskip("pyworld")
RATE = 16000
F0 = 120.0


def synthetic_voice():
    """1.2 s of a vowel (three resonances) on a pulse train that falls by half an octave around F0."""
    time = np.arange(round(1.2 * RATE)) / RATE
    phase = np.cumsum(F0 * 2 ** np.linspace(0.25, -0.25, len(time))) / RATE
    pulses = np.diff(np.floor(phase), prepend=0.0)
    for frequency, width in ((600, 80), (1400, 120), (2600, 200)):
        radius, turn = np.exp(-np.pi * width / RATE), 2 * np.pi * frequency / RATE
        ring = np.arange(600)
        pulses = np.convolve(pulses, radius**ring * np.sin(turn * (ring + 1)))[: len(time)]
    waveform = 0.3 * pulses / np.abs(pulses).max() + 1e-4 * np.random.default_rng(0).standard_normal(len(time))
    return waveform.astype(np.float32), RATE


def spoken():
    how = {"language": "en", "voice": "f2", "emotion": "neutral", "intensity": 1.0, "seed": 3}
    speech = EspeakEngine().speak("The letter is lying on the kitchen table.", **how)
    return speech.waveform, speech.sampling_rate


@pytest.fixture(scope="module", params=[synthetic_voice, spoken])
def voice(request):
    return request.param()


def contour(waveform, rate):
    """f0 in semitones of the loud frames, by YIN, without its octave errors."""
    f0 = librosa.yin(waveform, fmin=65, fmax=500, sr=rate, frame_length=1024, hop_length=256)
    level = librosa.feature.rms(y=waveform, frame_length=1024, hop_length=256)[0]
    semitones = 12 * np.log2(f0[level > 0.15 * level.max()])
    return semitones[np.abs(semitones - np.median(semitones)) < 9]


def spread(semitones):
    return np.subtract(*np.percentile(semitones, [90, 10]))


def level_db(waveform):
    return 10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)))


def bands_db(waveform, rate):
    """Power in thirds of octaves around 500, 1000 and 2000 Hz."""
    power = np.abs(np.fft.rfft(waveform.astype(np.float64))) ** 2
    frequency = np.fft.rfftfreq(len(waveform), 1 / rate)
    thirds = [(frequency > f / 2 ** (1 / 6)) & (frequency < f * 2 ** (1 / 6)) for f in (500, 1000, 2000)]
    return np.array([10 * np.log10(power[third].sum()) for third in thirds])


def test_nothing_asked_changes_nothing_that_is_heard(voice):
    waveform, rate = voice
    same = world.edit(waveform, rate, Prosody(), 0)
    assert same.dtype == np.float32 and len(same) == len(waveform)
    assert np.median(contour(same, rate)) == pytest.approx(np.median(contour(waveform, rate)), abs=0.15)
    assert spread(contour(same, rate)) == pytest.approx(spread(contour(waveform, rate)), abs=0.5)
    assert level_db(same) == pytest.approx(level_db(waveform), abs=0.01)
    before, after = (librosa.feature.melspectrogram(y=y, sr=rate, n_mels=24, fmax=6000) for y in (waveform, same))
    loud = before > 1e-2 * before.max()
    assert np.abs(10 * np.log10(after[loud] / before[loud])).mean() < 2.0


@pytest.mark.parametrize("semitones", [-3.0, 5.0])
def test_pitch_moves_and_nothing_else(voice, semitones):
    waveform, rate = voice
    moved = world.edit(waveform, rate, Prosody(pitch_st=semitones), 0)
    assert np.median(contour(moved, rate)) - np.median(contour(waveform, rate)) == pytest.approx(semitones, abs=0.35)
    assert len(moved) == len(waveform) and level_db(moved) == pytest.approx(level_db(waveform), abs=0.01)


@pytest.mark.parametrize("octaves", [-0.6, 0.5])
def test_range_widens_around_the_median(voice, octaves):
    waveform, rate = voice
    before, after = contour(waveform, rate), contour(world.edit(waveform, rate, Prosody(range_oct=octaves), 0), rate)
    assert spread(after) / spread(before) == pytest.approx(2**octaves, rel=0.2)
    assert np.median(after) == pytest.approx(np.median(before), abs=0.5)


def test_rate_changes_the_length_and_not_the_pitch(voice):
    waveform, rate = voice
    for octaves in (-0.4, 0.35):
        moved = world.edit(waveform, rate, Prosody(rate_oct=octaves), 0)
        assert len(moved) / len(waveform) == pytest.approx(2**-octaves, rel=1e-3)
        assert np.median(contour(moved, rate)) == pytest.approx(np.median(contour(waveform, rate)), abs=0.3)


def test_energy_and_tilt(voice):
    waveform, rate = voice
    waveform = waveform / 4
    same = world.edit(waveform, rate, Prosody(), 0)
    assert level_db(world.edit(waveform, rate, Prosody(volume_db=6), 0)) - level_db(same) == pytest.approx(6, abs=0.01)
    tilted = world.edit(waveform, rate, Prosody(tilt_db=3), 0)
    slope = np.diff(bands_db(tilted, rate) - bands_db(same, rate))
    assert slope == pytest.approx([3.0, 3.0], abs=0.8)


def test_loud_emotions_are_turned_down_rather_than_clipped():
    waveform, rate = synthetic_voice()
    loud = world.edit(waveform, rate, Prosody(volume_db=30), 0)
    assert np.abs(loud).max() == pytest.approx(0.99, abs=1e-3)
    assert np.mean(np.abs(loud) > 0.98) < 0.01


def test_a_question_rises_at_its_end(voice):
    waveform, rate = voice
    statement, question = (contour(world.edit(waveform, rate, Prosody(rise=r), 0), rate) for r in (0, 1))
    assert np.median(question[-8:]) > np.median(statement[-8:]) + 3
    assert np.median(question[:20]) == pytest.approx(np.median(statement[:20]), abs=0.5)


def periods(waveform, rate):
    """Of a steady hum, by where its smoothed waveform crosses zero upwards (between samples)."""
    signs = waveform >= 0
    at = np.flatnonzero(~signs[:-1] & signs[1:])
    crossing = at + waveform[at] / (waveform[at] - waveform[at + 1])
    return np.diff(crossing)[5:-5] / rate


def test_jitter_is_what_was_asked_for():
    # A tone: its periods can be read off between samples, which those of speech cannot.
    hum = (0.3 * np.sin(2 * np.pi * F0 * np.arange(3 * RATE) / RATE)).astype(np.float64)
    f0 = np.full(601, F0)
    assert np.abs(np.diff(periods(hum, RATE))).mean() / periods(hum, RATE).mean() < 1e-4
    for asked in (0.5, 1.2):
        shaken = world._perturb(hum, RATE, f0, 0.005, asked, seed=1)
        found = periods(shaken, RATE)
        assert 100 * np.abs(np.diff(found)).mean() / found.mean() == pytest.approx(asked, rel=0.15)
        assert len(shaken) == pytest.approx(len(hum), rel=0.005)
    assert (world._perturb(hum, RATE, f0, 0.005, 1.2, 1) == shaken).all()
    assert not (world._perturb(hum, RATE, f0, 0.005, 1.2, 2)[:RATE] == shaken[:RATE]).all()


def test_intensity_is_continuous():
    waveform, rate = synthetic_voice()
    heights = []
    for intensity in (0, 0.25, 0.5, 0.75, 1.0):
        scaled = Prosody(**{k: intensity * v for k, v in vars(TARGETS["fear"]).items()})
        heights.append(np.median(contour(world.edit(waveform, rate, scaled, 0), rate)))
    steps = np.diff(heights)
    assert steps == pytest.approx(np.full(4, TARGETS["fear"].pitch_st / 4), abs=0.4)


def test_render_brings_every_voice_to_one_level():
    waveform, rate = synthetic_voice()
    for gain in (0.02, 1.0):
        assert level_db(world.render(gain * waveform, rate, Prosody(), 0)) == pytest.approx(world.NEUTRAL_DB, abs=0.01)


@pytest.mark.parametrize("waveform", [np.zeros(RATE), np.ones(100), np.full(RATE, np.nan), np.zeros(0)])
def test_what_is_no_speech_is_refused(waveform):
    with pytest.raises(ValueError, match=r"sound|samples"):
        world.render(waveform.astype(np.float32), RATE, Prosody(), 0)


def test_whispers_keep_their_noise():
    noise = 0.05 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    moved = world.edit(noise, RATE, Prosody(pitch_st=5, jitter_pct=1, rise=1), 0)
    assert len(moved) == pytest.approx(RATE, rel=0.01) and level_db(moved) == pytest.approx(level_db(noise), abs=0.01)
