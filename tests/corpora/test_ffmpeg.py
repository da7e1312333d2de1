"""Real containers, written and read by a real ffmpeg (imageio-ffmpeg brings one)."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from toy_corpus import ToneCorpus, item, tone

from mser_jax.corpora import audio_check, ffmpeg
from mser_jax.corpora.audio_check import Reason

# Container -> how ffmpeg writes it. MELD has 5.1 sound, eNTERFACE uncompressed AVI, MEAD m4a, EMNS webm.
KINDS = {
    "mp4": ("-ac", "6", "-c:a", "aac", "-b:a", "384k", "-c:v", "mpeg4"),
    "avi": ("-ac", "2", "-c:a", "pcm_s16le", "-c:v", "mpeg4"),
    "m4a": ("-ac", "1", "-c:a", "aac", "-movflags", "+faststart", "-vn"),
    "webm": ("-ac", "1", "-c:a", "libopus", "-vn"),
    "mov": ("-ac", "3", "-c:a", "aac", "-vn"),
    "wma": ("-ac", "1", "-c:a", "wmav2", "-vn"),
    "aac": ("-ac", "1", "-c:a", "aac", "-vn"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """a.KIND, 1.5 s of 440 Hz at 48 kHz each, and mute.mp4: a picture without sound."""
    folder = tmp_path_factory.mktemp("video")
    source = ["-f", "lavfi", "-i", "sine=440:duration=1.5:sample_rate=48000"]
    picture = ["-f", "lavfi", "-i", "color=size=32x32:duration=1.5:rate=5"]
    command = [ffmpeg.program(), "-v", "error", *source, *picture]
    for kind, how in KINDS.items():
        command += ["-map", "0:a", *([] if "-vn" in how else ["-map", "1:v"]), *how, str(folder / f"a.{kind}")]
    command += ["-map", "1:v", "-c:v", "mpeg4", str(folder / "mute.mp4")]
    subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_gives_its_sound(folder, kind):
    path = folder / f"a.{kind}"
    waveform, info = audio_check.load(path)
    assert (info.sampling_rate, info.channels) == (48_000, int(KINDS[kind][1]))
    assert info.duration_s == pytest.approx(1.5, abs=0.1)  # lossy coders add a frame or two
    spectrum = np.abs(np.fft.rfft(waveform[4_000:20_000] / 32768.0))  # 1 Hz a bin
    assert np.argmax(spectrum) == 440
    np.testing.assert_array_equal(audio_check.load(path.read_bytes())[0], waveform)


def test_uncompressed_sound_comes_out_bit_for_bit(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 8_000).astype(np.int16)
    (tmp_path / "raw").write_bytes(samples.tobytes())
    command = [ffmpeg.program(), "-v", "error", "-f", "s16le", "-ar", "16000", "-ac", "1", "-i", str(tmp_path / "raw")]
    subprocess.run([*command, "-c:a", "pcm_s16le", str(tmp_path / "a.avi")], check=True, timeout=60)
    np.testing.assert_array_equal(audio_check.load(tmp_path / "a.avi")[0], samples)


def test_of_several_tracks_the_first_is_heard(tmp_path):
    """Not the one that is marked as the film's own and has more channels, which ffmpeg would choose."""
    tones = [part for hz in (440, 880) for part in ("-f", "lavfi", "-i", f"sine={hz}:duration=1.5:sample_rate=16000")]
    tracks = (
        "-map",
        "0:a",
        "-map",
        "1:a",
        "-c:a",
        "pcm_s16le",
        "-ac:a:0",
        "1",
        "-ac:a:1",
        "2",
        "-disposition:a:1",
        "default",
    )
    tracks = (*tracks, "-disposition:a:0", "0")
    command = [ffmpeg.program(), "-v", "error", *tones, *tracks, str(tmp_path / "a.mkv")]
    subprocess.run(command, check=True, timeout=60)
    waveform, info = audio_check.load(tmp_path / "a.mkv")
    assert info.channels == 1 and np.argmax(np.abs(np.fft.rfft(waveform[:16_000] / 32768.0))) == 440


@pytest.mark.parametrize("kind", ["mp4", "avi", "m4a", "webm"])
def test_cut_off(folder, tmp_path, kind):
    """mp4 has its table at the end, which is then missing; the others give what there is, which is not enough."""
    encoded = (folder / f"a.{kind}").read_bytes()
    (tmp_path / "half").write_bytes(encoded[: len(encoded) // 2])
    assert refused(tmp_path / "half") == Reason.TRUNCATED


def test_no_sound_and_no_video(folder):
    assert refused(folder / "mute.mp4") == Reason.NO_AUDIO
    assert refused(b"\0\0\0\x1cftypisom" + bytes(3_000)) in (Reason.UNREADABLE, Reason.TRUNCATED)
    assert refused(b"\x1a\x45\xdf\xa3" + b"no video" * 400) == Reason.UNREADABLE


def test_what_libsndfile_reads_does_not_go_to_ffmpeg(monkeypatch):
    monkeypatch.setattr(ffmpeg, "program", lambda: pytest.fail("ffmpeg was asked"))
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64"):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(0.5), 16_000, format=kind)
        audio_check.load(buffer.getvalue())
    assert refused(b"text") == Reason.UNREADABLE


def test_a_hung_ffmpeg_is_killed(tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    monkeypatch.setattr(ffmpeg, "TIMEOUT_SECONDS", 1)
    assert refused(b"\x1a\x45\xdf\xa3") == Reason.UNREADABLE
    pid = (tmp_path / "pid").read_text().strip()
    assert subprocess.run(["kill", "-0", pid], capture_output=True, check=False).returncode != 0


def test_without_ffmpeg_the_build_stops_and_says_what_to_do(folder, tmp_path, monkeypatch):
    """One video among a hundred good files would else be lost without a word: 5 % may be skipped."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    corpus = ToneCorpus(data_dir=tmp_path)
    corpus.items = [item(number) for number in range(5)] + [item(5, audio=folder / "a.m4a")]
    with pytest.raises(ffmpeg.MissingFfmpegError, match=r"a\.m4a: .*pip install imageio-ffmpeg, or apt-get"):
        corpus.prepare()
    assert not corpus.data_path.exists()


def refused(audio):
    with pytest.raises(audio_check.BadAudio) as caught:
        audio_check.load(audio)
    return caught.value.reason


def fake(folder, monkeypatch, script):
    """Puts `script` on PATH as ffmpeg."""
    (folder / "ffmpeg").write_text(script)
    (folder / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
