"""From any recording to mono 16 kHz int16, or a stated reason why not; and to the FLAC that is stored."""

from __future__ import annotations

import dataclasses
import enum
import io
import os
import re

import numpy as np
import soundfile
import soxr
from etils import epath

from mser_jax.corpora import ffmpeg

SAMPLING_RATE = 16_000  # Hz, of everything stored
MIN_RATE, MAX_RATE = 8_000, 96_000  # Hz accepted
MIN_SECONDS = 0.1
SILENCE_PEAK = 1e-3  # of full scale, offset removed: −60 dBFS, below the noise floor of any usable speech
MAX_FLOAT_PEAK = 8.0  # of samples as floats: above are 16-bit numbers (a peak of 8 of these is silence)
TRUNCATION_TOLERANCE = 0.01  # share of the announced audio that may be missing (padding, sloppy headers)

# What libsndfile's log says of a WAV/AIFF chunk that is longer than the file.
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Recorders that write to a pipe announce these sizes: the length was not known, nothing is missing.
_STREAMED_SIZE = 0x7FFF_0000
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Reason(enum.StrEnum):
    """Why a recording is left out."""

    MISSING = "missing"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NO_AUDIO = "no_audio"
    NOT_FINITE = "not_finite"
    SILENT = "silent"
    TOO_SHORT = "too_short"
    SAMPLING_RATE = "sampling_rate"


class BadAudio(Exception):
    """A recording that cannot be used. `reason` is for counting, `detail` for reading."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What the recording was before conversion. gain: factor applied so that nothing clips (1.0 = none)."""

    sampling_rate: int
    channels: int
    duration_s: float
    gain: float


def load(audio: os.PathLike | str | bytes | np.ndarray, sampling_rate: int = 0) -> tuple[np.ndarray, AudioInfo]:
    """Reads, checks and converts one recording.

    Channels are averaged and other rates resampled by soxr VHQ; 16 kHz mono 16-bit samples pass unchanged.
    The level is changed only where 16 bits would clip. Nothing is cut: lengths are the pipeline's matter. Of video and
    other containers that libsndfile does not read, the first audio track is decoded by ffmpeg.

    Args:
      audio: path (any file system etils.epath reads), encoded bytes, or samples [time] or [time, channels],
        int16, int32 (full scale 2³¹) or float with full scale 1; above it, up to 8, floats are scaled as files' are.
      sampling_rate: Hz, for samples only.

    Returns:
      (waveform int16 [time] at 16 kHz, info).

    Raises:
      BadAudio: missing, empty, unreadable (no or a broken audio format), truncated by more than 1 %, video without
        sound, an array of another type, order of axes or scale,
        NaN or infinite samples, peak below −60 dBFS, shorter than 0.1 s, or a rate outside 8–96 kHz.
      MissingFfmpegError: the file needs ffmpeg, and there is none; names the file.
    """
    if isinstance(audio, np.ndarray):
        samples, rate = _from_array(audio), int(sampling_rate)
    else:
        encoded = audio if isinstance(audio, bytes) else _read(audio)
        if ffmpeg.is_container(encoded):
            encoded = _unpack(encoded, "bytes" if isinstance(audio, bytes) else os.fspath(audio))
        samples, rate = _decode(encoded)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadAudio(Reason.SAMPLING_RATE, f"{rate} Hz, expected {MIN_RATE}–{MAX_RATE} Hz")
    if not samples.size:
        raise BadAudio(Reason.EMPTY, "no samples")
    if len(samples) < MIN_SECONDS * rate:
        raise BadAudio(Reason.TOO_SHORT, f"{len(samples) / rate:.3f} s, expected at least {MIN_SECONDS} s")
    waveform, gain = _to_int16(samples, rate)
    return waveform, AudioInfo(rate, samples.shape[1], len(samples) / rate, gain)


def encode_flac(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """16-bit mono FLAC file of int16 [time]."""
    if waveform.dtype != np.int16 or waveform.ndim != 1:
        raise ValueError(f"encode_flac: expected int16 [time], got {waveform.dtype} {list(waveform.shape)}")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _read(path: os.PathLike | str) -> bytes:
    try:
        return epath.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise BadAudio(Reason.MISSING, "no such file") from error
    except OSError as error:
        raise BadAudio(Reason.UNREADABLE, str(error)) from error


def _from_array(audio: np.ndarray) -> np.ndarray:
    """Samples [time, channels], int16 or float of full scale 1; raises BadAudio where that cannot be told."""
    shape = list(audio.shape)
    if audio.ndim not in (1, 2) or (audio.ndim == 2 and audio.size and audio.shape[1] > audio.shape[0]):
        hint = "transpose it" if audio.ndim == 2 else "give one recording an array"
        raise BadAudio(Reason.UNREADABLE, f"samples of shape {shape}, expected [time] or [time, channels]: {hint}")
    if not audio.size:
        return np.zeros((0, 1), np.int16)
    samples = audio.reshape(len(audio), -1).astype(audio.dtype.newbyteorder("="), copy=False)
    if samples.dtype == np.int16:
        return samples
    peak = float(np.abs(samples.astype(np.float64)).max()) if samples.dtype.kind in "iuf" else 0.0
    if samples.dtype == np.int32:
        if 0 < peak < 2**16:
            raise BadAudio(
                Reason.UNREADABLE, f"int32 has full scale 2^31, the largest sample is {peak:.0f}: give 16 bits as int16"
            )
        return (samples / 2**31).astype(np.float32)
    if samples.dtype.kind != "f":
        raise BadAudio(Reason.UNREADABLE, f"samples of type {samples.dtype}, expected int16, int32 or float")
    if MAX_FLOAT_PEAK < peak < np.inf:
        raise BadAudio(
            Reason.UNREADABLE, f"floats have full scale 1, the largest sample is {peak:.0f}: divide 16 bits by 32768"
        )
    return samples


def _unpack(encoded: bytes, name: str) -> bytes:
    """The audio track of a container, as WAV."""
    try:
        return ffmpeg.to_wav(encoded)
    except ffmpeg.MissingFfmpegError as error:
        raise ffmpeg.MissingFfmpegError(f"{name}: {error}") from error
    except ffmpeg.NoAudioError as error:
        raise BadAudio(Reason.NO_AUDIO, str(error)) from error
    except ffmpeg.CutOffError as error:
        raise BadAudio(Reason.TRUNCATED, str(error)) from error
    except ffmpeg.DecodingError as error:
        raise BadAudio(Reason.UNREADABLE, str(error)) from error


def _decode(encoded: bytes) -> tuple[np.ndarray, int]:
    """Samples [time, channels], int16 where the file holds just that and float32 otherwise, and the rate."""
    if not encoded:
        raise BadAudio(Reason.EMPTY, "0 bytes")
    if encoded.startswith(_LFS_POINTER):
        raise BadAudio(Reason.UNREADABLE, "a pointer of Git LFS and not the recording; run git lfs pull in the source")
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as file:
            announced = file.frames
            dtype = "int16" if file.subtype == "PCM_16" else "float32"
            samples = file.read(dtype=dtype, always_2d=True)
            chunk = _SHORT_CHUNK.search(file.extra_info)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        reason = Reason.TRUNCATED if "lost sync" in str(error) else Reason.UNREADABLE
        raise BadAudio(reason, f"libsndfile: {error.error_string}") from error
    there, whole = len(samples), announced
    if chunk and 0 < int(chunk[1]) < _STREAMED_SIZE:
        there, whole = int(chunk[2]), int(chunk[1])
    if there < (1 - TRUNCATION_TOLERANCE) * whole:
        raise BadAudio(Reason.TRUNCATED, f"{there / whole:.0%} of the announced audio is there")
    return samples, rate


def _to_int16(samples: np.ndarray, rate: int) -> tuple[np.ndarray, float]:
    """[time, channels] int16 or float → int16 [time] at SAMPLING_RATE, and the gain that was applied."""
    is_int16 = samples.dtype == np.int16
    mono = samples.mean(axis=1, dtype=np.float32)
    if is_int16:
        mono /= 32768.0
    if not np.isfinite(mono).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise BadAudio(Reason.NOT_FINITE, f"{bad} of {samples.size} samples are NaN or infinite")
    peak = float(np.abs(mono - mono.mean()).max())
    if peak < SILENCE_PEAK:
        raise BadAudio(Reason.SILENT, f"peak {peak:.1e} of full scale, expected at least {SILENCE_PEAK:.0e}")
    if is_int16 and rate == SAMPLING_RATE and samples.shape[1] == 1:
        return samples[:, 0], 1.0
    if rate != SAMPLING_RATE:
        mono = soxr.resample(mono, rate, SAMPLING_RATE, quality="VHQ")
    gain = min(1.0, 32767.0 / (32768.0 * float(np.abs(mono).max())))
    return np.round(mono * np.float32(32768.0 * gain)).astype(np.int16), gain
