import io
import re
import struct

import numpy as np
import pytest
import soundfile
from toy_corpus import tone

from mser_jax.corpora import audio_check
from mser_jax.corpora.audio_check import Reason


def refused(audio, rate=0):
    with pytest.raises(audio_check.BadAudio) as caught:
        audio_check.load(audio, rate)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_414, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_stereo_become_16_khz_mono(tmp_path, rate, channels):
    """The tone comes out at its pitch, level and length; the channels' mean is what is heard."""
    left, right = tone(1.0, 440.0, rate), tone(1.0, 440.0, rate, seed=1) * 0.5
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([left, right][:channels], axis=1), rate, subtype="PCM_24")
    waveform, info = audio_check.load(path)
    assert waveform.dtype == np.int16
    assert abs(len(waveform) - 16_000) <= 1
    assert (info.sampling_rate, info.channels, info.gain) == (rate, channels, 1.0)
    assert info.duration_s == pytest.approx(1.0, abs=1e-3)
    amplitude = 0.3 if channels == 1 else 0.225
    expected = amplitude * np.sin(2 * np.pi * 440 * np.arange(len(waveform)) / 16_000)
    inner = slice(400, -400)  # away from the filter's edges
    error = (waveform / 32768 - expected)[inner]
    assert np.sqrt(np.mean(error**2)) < 0.004  # the added noise has an RMS of 0.002


def test_16_khz_mono_16_bit_passes_bit_for_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 8_000).astype(np.int16)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, samples, 16_000, subtype="PCM_16")
        np.testing.assert_array_equal(audio_check.load(tmp_path / name)[0], samples)
        np.testing.assert_array_equal(audio_check.load((tmp_path / name).read_bytes())[0], samples)
    np.testing.assert_array_equal(audio_check.load(samples, 16_000)[0], samples)
    flac = audio_check.encode_flac(samples, 16_000)
    decoded, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    np.testing.assert_array_equal(decoded, samples)
    assert rate == 16_000
    assert soundfile.info(io.BytesIO(flac)).format == "FLAC"


def test_long_recordings_stay_whole():
    assert len(audio_check.load(tone(45.0, rate=8_000), 8_000)[0]) == 45 * 16_000


def test_samples_of_any_usual_type_are_one_recording():
    """Float, 16 and 32 bits, one channel or two alike: the same to a step of 16 bits."""
    rng = np.random.default_rng(3)
    expected = (rng.uniform(-0.4, 0.4, 7_000) * 32768).astype(np.int16)
    both = np.stack([expected, expected], 1)
    others = {
        "float32": expected.astype(np.float32) / 32768,
        "float64": expected / 32768,
        "int32": expected.astype(np.int32) * 2**16,
        "big end first": expected.astype(">i2"),
        "stereo": both,
        "float stereo": both / 32768,
        "one column": expected[:, None],
        "every second": np.repeat(expected, 2)[::2],
    }
    for name, samples in others.items():
        found, info = audio_check.load(samples, 16_000)
        assert found.dtype == np.int16 and np.abs(found.astype(int) - expected).max() <= 1, name
        assert (info.channels, info.gain) == (2 if "stereo" in name else 1, 1.0), name
    half, _ = audio_check.load((expected / 32768).astype(np.float16), 16_000)
    assert np.abs(half.astype(int) - expected).max() < 20


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (3000.0 * tone(0.5), "full scale 1, the largest"),
        ((9000 * tone(0.5)).astype(np.int32), "full scale 2^31"),
        (tone(0.5).astype(complex), "type complex128"),
        ((100 * tone(0.5)).astype(np.uint8), "type uint8"),
        ((9000 * tone(0.5)).astype(np.int64), "type int64"),
        (tone(0.5) > 0, "type bool"),
        (np.array(["a.wav"] * 9_000), "type <U5"),
        (np.stack([tone(0.5)] * 2), "[2, 8000], expected [time] or [time, channels]: transpose"),
        (tone(0.5).reshape(100, 8, 10), "[100, 8, 10]"),
        (np.full((), 0.5), "shape []"),
    ],
)
def test_samples_that_can_be_read_in_two_ways_are_refused(samples, said):
    with pytest.raises(audio_check.BadAudio, match=f"unreadable: .*{re.escape(said)}"):
        audio_check.load(samples, 16_000)


@pytest.mark.parametrize("shape", [(0,), (0, 2), (100, 0)])
def test_no_samples_are_empty(shape):
    assert refused(np.zeros(shape, np.float32), 16_000) is Reason.EMPTY


def test_too_loud_is_scaled_not_clipped():
    loud = 5.0 * tone(0.5)
    waveform, info = audio_check.load(loud, 16_000)
    assert info.gain == pytest.approx(32767 / 32768 / np.abs(loud).max())
    assert np.abs(waveform.astype(int)).max() == 32767
    assert np.corrcoef(waveform, loud)[0, 1] > 0.999999


def test_empty(tmp_path):
    (tmp_path / "a.wav").touch()
    assert refused(tmp_path / "a.wav") == Reason.EMPTY
    soundfile.write(tmp_path / "b.wav", np.zeros(0, np.int16), 16_000)
    assert refused(tmp_path / "b.wav") == Reason.EMPTY


def test_missing_and_no_audio(tmp_path):
    assert refused(tmp_path / "nowhere.wav") == Reason.MISSING
    (tmp_path / "text.wav").write_bytes(b"this is no recording at all " * 50)
    assert refused(tmp_path / "text.wav") == Reason.UNREADABLE
    (tmp_path / "folder.wav").mkdir()
    assert refused(tmp_path / "folder.wav") == Reason.UNREADABLE


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "aiff"])
def test_truncated(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tone(1.0), 16_000)
    audio_check.load(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(path) == Reason.TRUNCATED


def test_corrupt_flac(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(1.0), 16_000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2_000] = bytes(2_000)
    path.write_bytes(data)
    assert refused(path) in (Reason.TRUNCATED, Reason.UNREADABLE)


@pytest.mark.parametrize("announced", [0xFFFFFFFF, 0x7FFFF000])
def test_wav_from_a_pipe_is_not_truncated(announced):
    """ffmpeg and sox write these sizes when they cannot seek back to fill in the length."""
    samples = (tone(0.5) * 32767).astype(np.int16)
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", announced, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    waveform, _ = audio_check.load(head + struct.pack("<4sI", b"data", announced) + samples.tobytes())
    np.testing.assert_array_equal(waveform, samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, value):
    samples = tone(0.5)
    samples[100] = value
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert refused(tmp_path / "a.wav") == Reason.NOT_FINITE


def test_silent(tmp_path):
    time = np.arange(8_000) / 16_000
    below, above = (a * np.sin(2 * np.pi * 200 * time).astype(np.float32) for a in (0.9e-3, 1.1e-3))
    for number, samples in enumerate([np.zeros(8_000), np.full(8_000, 0.2), below]):
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000, subtype="FLOAT")
        assert refused(tmp_path / f"{number}.wav") == Reason.SILENT
    audio_check.load(above, 16_000)


def test_too_short():
    assert refused(tone(0.0999, rate=48_000), 48_000) == Reason.TOO_SHORT
    audio_check.load(tone(0.1, rate=48_000), 48_000)


@pytest.mark.parametrize("rate", [4_000, 7_999, 96_001, 192_000])
def test_rates_outside(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(0.5, rate=rate), rate)
    assert refused(tmp_path / "a.wav") == Reason.SAMPLING_RATE


def test_encode_flac_refuses_other_types():
    with pytest.raises(ValueError, match="expected int16"):
        audio_check.encode_flac(tone(), 16_000)
