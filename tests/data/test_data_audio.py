import io

import numpy as np
import pytest
import soundfile
from fake_corpora import flac, tone

from mser_jax.corpora.audio_check import BadAudio
from mser_jax.data import audio


def frequency(samples, rate=16_000):
    """Hz of the strongest component."""
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples)


def test_decode_is_lossless_at_16_khz():
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    out = audio.decode(flac(samples))
    assert out.dtype == np.int16
    np.testing.assert_array_equal(out, samples)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 96_000])
def test_other_rates_are_resampled(rate):
    t = np.arange(rate) / rate
    out = audio.decode(flac((8000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16), rate))
    assert abs(len(out) - 16_000) <= 1
    assert abs(frequency(out) - 440) < 2
    assert abs(np.abs(out[4000:12000]).max() - 8000) < 100


def test_channels_are_averaged():
    left = tone(0.1, key="l")
    out = audio.decode(flac(np.stack([left, np.zeros_like(left)], axis=1)))
    assert np.abs(out - left / 2).max() <= 1


def test_float_and_24_bit_files_keep_their_scale():
    x = 0.25 * np.sin(np.arange(3000) / 5)
    for kwargs in ({"format": "WAV", "subtype": "FLOAT"}, {"format": "FLAC", "subtype": "PCM_24"}):
        file = io.BytesIO()
        soundfile.write(file, x, 16_000, **kwargs)
        assert np.abs(audio.decode(file.getvalue()) - x * 32767).max() <= 1


@pytest.mark.parametrize(
    "data", [b"", b"not audio at all", flac(tone(0.5))[:2000], flac(np.zeros(0, np.int16))], ids=str
)
def test_damaged_files_raise(data):
    with pytest.raises(BadAudio):
        audio.decode(data)


def test_to_int16_rounds_and_saturates():
    out = audio.to_int16(np.array([1e9, -1e9, 1.4, -1.6]))
    assert out.dtype == np.int16 and out.tolist() == [32767, -32768, 1, -2]


def test_nan_in_a_float_file_becomes_silence():
    file = io.BytesIO()
    soundfile.write(file, np.array([0.5, np.nan, -0.5, np.inf, 0.0]), 16_000, format="WAV", subtype="FLOAT")
    out = audio.decode(file.getvalue())
    assert np.abs(out - np.array([16384, 0, -16384, 32767, 0])).max() <= 1


def test_crop():
    x = np.arange(100, dtype=np.int16)
    assert audio.crop(x, 200, None) is x
    assert audio.crop(x, 10, None).tolist() == list(range(45, 55))
    starts = {int(audio.crop(x, 90, np.random.default_rng(i))[0]) for i in range(300)}
    assert starts == set(range(11))


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.1, 1.25])
def test_speed_changes_duration_and_pitch_by_the_factor(factor):
    x = (8000 * np.sin(2 * np.pi * 500 * np.arange(32_000) / 16_000)).astype(np.int16)
    out = audio.change_speed(x, factor)
    assert out.dtype == np.int16
    assert abs(len(out) - 32_000 / factor) <= 2
    assert abs(frequency(out) - 500 * factor) < 2


def test_resampling_is_repeatable():
    x = tone(0.4)
    other_rate = flac(tone(0.3, rate=22_050), 22_050)
    for _ in range(5):
        np.testing.assert_array_equal(audio.change_speed(x, 0.9), audio.change_speed(x, 0.9))
        np.testing.assert_array_equal(audio.decode(other_rate), audio.decode(other_rate))


@pytest.mark.parametrize("colour", audio.NOISE_COLOURS)
@pytest.mark.parametrize("snr_db", [0.0, 12.5, 30.0])
def test_noise_has_the_snr_asked_for(colour, snr_db):
    rng = np.random.default_rng(3)
    for n in (1600, 20_000, 2**19 + 7):
        x = (1000 * rng.standard_normal(n)).astype(np.float32)
        noise = audio.add_noise(x, snr_db, colour, rng) - x
        measured = 10 * np.log10(np.mean(x**2, dtype=float) / np.mean(noise**2, dtype=float))
        assert abs(measured - snr_db) < 0.05


def test_pink_noise_falls_3_db_an_octave_and_white_does_not():
    rng = np.random.default_rng(0)
    x = np.full(2**18, 1e-3, np.float32)
    for colour, slope in (("white", 0.0), ("pink", -3.0)):
        power = np.abs(np.fft.rfft(audio.add_noise(x, 0, colour, rng) - x)) ** 2
        octaves = [10 * np.log10(power[2**k : 2 ** (k + 1)].mean()) for k in range(8, 17)]
        assert abs(np.polyfit(range(9), octaves, 1)[0] - slope) < 0.3


def test_silence_stays_silence():
    quiet = np.zeros(1000, np.int16)
    options = audio.Augmentation(gain_db=10, gain_probability=1, noise_probability=1, speed=0.1)
    for i in range(20):
        out = audio.augment(quiet, 2000, options, np.random.default_rng(i))
        assert out.dtype == np.int16 and not out.any()


def test_augment_off_only_crops():
    x = tone(0.5)
    out = audio.augment(x, 20_000, audio.Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(out, x)
    assert len(audio.augment(x, 5000, audio.Augmentation(), np.random.default_rng(0))) == 5000


def test_gain_stays_in_range_and_clips():
    x = tone(0.2, amplitude=1000)
    options = audio.Augmentation(gain_db=6, gain_probability=1)
    gains = []
    for i in range(200):
        out = audio.augment(x, len(x), options, np.random.default_rng(i)).astype(float)
        gains.append(20 * np.log10(out.std() / x.std()))
    assert min(gains) > -6.05 and max(gains) < 6.05 and max(gains) - min(gains) > 10
    loud = tone(0.2, amplitude=32_000)
    louder = [audio.augment(loud, len(loud), options, np.random.default_rng(i)) for i in range(20)]
    # Saturated, not wrapped round: no sample changes sign.
    assert max(y.max() for y in louder) == 32767
    assert all((np.sign(y) * np.sign(loud) >= 0).all() for y in louder)


def test_augmented_length_follows_speed_and_class():
    options = audio.Augmentation(speed=0.2, speed_probability=1)
    short, long = tone(0.5), tone(2.0)
    lengths = [len(audio.augment(short, 16_000, options, np.random.default_rng(i))) for i in range(200)]
    assert 8000 / 1.2 - 2 <= min(lengths) < 7000 and 9700 < max(lengths) <= 8000 / 0.8 + 2
    for i in range(50):
        out = audio.augment(long, 16_000, options, np.random.default_rng(i))
        assert 16_000 - 2 <= len(out) <= 16_000


@pytest.mark.parametrize(
    "wrong", [{"speed": 1.0}, {"gain_db": -1}, {"noise_snr_db": (20, 10)}, {"noise_probability": 2}]
)
def test_augmentation_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        audio.Augmentation(**wrong)
