"""From any recording to mono 16 kHz int16, or a stated reason why not; and to the FLAC that is stored."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import math
import os
import pathlib
import stat
import struct
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr
from etils import epath

from mser_jax import storage
from mser_jax.corpora.decoding import sound
from mser_jax.corpora.decoding.errors import BadAudio, Reason

__all__ = ["AudioInfo", "BadAudio", "Reason", "encode_flac", "excerpt", "load", "read"]

SAMPLING_RATE = 16_000  # Hz, of everything stored
MIN_RATE, MAX_RATE = 8_000, 96_000  # Hz accepted
MIN_SECONDS = 0.1
SILENCE_PEAK = 1e-3  # of full scale, offset removed: −60 dBFS, below the noise floor of any usable speech
MAX_FLOAT_PEAK = 8.0  # of samples as floats: above are 16-bit numbers (a peak of 8 of these is silence)
OPPOSED_POWER = 1e-2  # of the channels' mean, by what it were if they had nothing in common: they cancel each other
# Nobody's recording is longer than a day, nor kept in fewer bits a second than the least that speech can be coded in:
# what is, is made to fill memory.
MAX_SECONDS, FREE_SECONDS, MIN_BITRATE = 86_400, 600, 100
MAX_BYTES = 4 << 30
_UNFORESEEN = "a defect that was not foreseen"


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What the recording was before conversion. gain: factor applied so that nothing clips (1.0 = none)."""

    sampling_rate: int
    channels: int
    duration_s: float
    gain: float


def load(audio: os.PathLike | str | bytes | np.ndarray, sampling_rate: int = 0) -> tuple[np.ndarray, AudioInfo]:
    """Reads, checks and converts one recording.

    What a file is, is decided by its content, and its length by reading it to the end: neither by its name nor by its
    header. libsndfile reads what it can, ffmpeg the rest, of several audio tracks the first.
    Channels are averaged and other rates resampled by soxr VHQ; 16 kHz mono 16-bit samples pass unchanged.
    The level is changed only where 16 bits would clip. Nothing is cut: lengths are the pipeline's matter.

    Args:
      audio: path (any file system etils.epath reads), encoded bytes, or samples [time] or [time, channels],
        int16, int32 (full scale 2³¹) or float with full scale 1; above it, up to 8, floats are scaled as files' are.
      sampling_rate: Hz, for samples only.

    Returns:
      (waveform int16 [time] at 16 kHz, info).

    Raises:
      BadAudio: missing, no regular file, empty, unreadable (no or a broken audio format), truncated by more than 1 %,
        video without sound, an array of another type, order of axes or scale, NaN or infinite samples, peak below
        −60 dBFS, channels that cancel each other, shorter than 0.1 s, longer than a day or than its bytes allow, or a
        rate outside 8–96 kHz. Nothing else where the content is at fault.
      MissingFfmpegError: the file needs ffmpeg, and there is none; names the file.
      OSError: the storage fails, or refuses. Also what the library of a remote storage raises.
    """
    if isinstance(audio, np.ndarray):
        samples = _from_array(audio)
        blocks = (samples[start : start + sound.BLOCK] for start in range(0, len(samples), sound.BLOCK))
        return _convert(int(sampling_rate), samples.shape[1], blocks, MAX_SECONDS)
    encoded = audio if isinstance(audio, bytes) else read(audio)
    longest = min(MAX_SECONDS, FREE_SECONDS + len(encoded) * 8 / MIN_BITRATE)
    try:
        with sound.opened(encoded, "bytes" if isinstance(audio, bytes) else os.fspath(audio)) as opened:
            return _convert(opened.rate, opened.channels, opened.blocks, longest)
    except (ArithmeticError, AssertionError, LookupError, MemoryError, TypeError, ValueError, struct.error) as error:
        # None is known to come: one recording in a million must not end the build, nor what is asked after it.
        raise BadAudio(Reason.UNREADABLE, f"{_UNFORESEEN}, {type(error).__name__}: {error}") from error


def read(path: os.PathLike | str) -> bytes:
    """Reads a recording's file, which no named pipe, device or folder is.

    Raises:
      BadAudio: there is no such file, or it is none; said before it is opened, as that may never return.
      OSError: the storage refuses, or fails again and again.
    """
    with _told():
        path = epath.Path(path)
        if "://" not in os.fspath(path):
            status = pathlib.Path(path).stat()
            if not stat.S_ISREG(status.st_mode):
                raise BadAudio(Reason.UNREADABLE, f"{_file_type(status.st_mode)} and no file")
            if not status.st_size:  # also what the kernel makes up, which may never end
                return b""
            if status.st_size > MAX_BYTES:
                raise BadAudio(Reason.TOO_LONG, f"{status.st_size / 2**30:.1f} GiB, expected at most 4; cut it")
        try:
            return path.read_bytes()
        except ImportError as error:  # s3:// without its library
            raise OSError(f"{os.fspath(path)}: {error}") from error
        except Exception as error:
            is_refusal = isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError))
            if is_refusal or not storage.is_trouble(error):
                raise
            if refusal := storage.explain(error):
                raise PermissionError(refusal) from error
            return storage.retried(path.read_bytes, os.fspath(path))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raise BadAudio for errors that are not the storage's."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadAudio(Reason.MISSING, "no such file") from error
    except ValueError as error:  # a NUL in the name
        raise BadAudio(Reason.MISSING, f"no such file, and no name of one: {error}") from error
    except IsADirectoryError as error:
        raise BadAudio(Reason.UNREADABLE, "a folder and no file") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadAudio(Reason.MISSING, "a symbolic link that leads back to itself") from error
        if error.errno == errno.ENAMETOOLONG:
            raise BadAudio(Reason.MISSING, "no such file, the name is too long for one") from error
        raise


def excerpt(path: os.PathLike | str, start: float, stop: float) -> tuple[np.ndarray, int]:
    """Reads what lies between two times of a long recording that libsndfile can seek in.

    Args:
      path: any file system etils.epath reads. start, stop: seconds.

    Returns:
      (samples int16 [time, channels], rate in Hz).

    Raises:
      BadAudio: it is no such file, is damaged, or ends before.
    """
    if "://" not in os.fspath(path) and not pathlib.Path(path).is_file():
        read(path)  # says what it is
    try:
        with epath.Path(path).open("rb") as stream, soundfile.SoundFile(stream) as file:
            first, last = round(start * file.samplerate), round(stop * file.samplerate)
            if not 0 <= first < last:
                raise BadAudio(Reason.EMPTY, f"nothing lies between {start:g} and {stop:g} s")
            if last > file.frames:
                raise BadAudio(Reason.TRUNCATED, f"it ends at {file.frames / file.samplerate:.2f} s, before {stop:g} s")
            file.seek(first)
            samples = file.read(last - first, dtype="int16", always_2d=True)
    except soundfile.SoundFileError as error:
        raise BadAudio(Reason.UNREADABLE, f"libsndfile: {getattr(error, 'error_string', error)}") from error
    if len(samples) < last - first:
        raise BadAudio(Reason.TRUNCATED, f"{len(samples) / max(1, last - first):.0%} of it is there")
    return samples, file.samplerate


def encode_flac(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """16-bit mono FLAC file of int16 [time]."""
    if waveform.dtype != np.int16 or waveform.ndim != 1:
        raise ValueError(f"encode_flac: expected int16 [time], got {waveform.dtype} {list(waveform.shape)}")
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


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


def _file_type(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a named pipe", stat.S_ISSOCK: "a socket"}
    return next((words for is_kind, words in kinds.items() if is_kind(mode)), "a device")


class _Level:
    """Statistics of a recording that is read block by block."""

    def __init__(self, channels: int) -> None:
        self.samples = self.not_finite = 0
        self.sums, self.squares = np.zeros((2, channels + 1))  # the last one is of the mean
        self.low, self.high = math.inf, -math.inf

    def add(self, block: np.ndarray, mono: np.ndarray) -> None:
        """block: [time, channels]. mono: float32 [time], its mean, full scale 1."""
        self.samples += len(block)
        if not np.isfinite(mono).all():
            self.not_finite += max(1, int(np.count_nonzero(~np.isfinite(block))))
            return
        self.low, self.high = min(self.low, float(mono.min())), max(self.high, float(mono.max()))
        self.sums[-1] += mono.sum(dtype=np.float64)
        if block.shape[1] > 1:
            values = block.astype(np.float64) / (32768.0 if block.dtype == np.int16 else 1.0)
            self.sums[:-1] += values.sum(axis=0)
            self.squares[:-1] += np.einsum("tc,tc->c", values, values)
            self.squares[-1] += np.square(mono, dtype=np.float64).sum()

    def check(self) -> None:
        """Raises BadAudio: not finite, silent, or channels that cancel each other."""
        channels = len(self.sums) - 1
        if self.not_finite:
            bad = f"{self.not_finite} of {self.samples * channels} samples"
            raise BadAudio(Reason.NOT_FINITE, f"{bad} are NaN or infinite")
        means = self.sums / self.samples
        power = self.squares / self.samples - means**2
        unrelated = power[:-1].sum() / channels**2
        if channels > 1 and power[:-1].max() > SILENCE_PEAK**2 / 2 and power[-1] < OPPOSED_POWER * unrelated:
            raise BadAudio(
                Reason.OPPOSED_CHANNELS,
                f"the {channels} channels cancel each other, as of a plug that is wired the wrong way round; keep one: "
                "ffmpeg -i IN -af 'pan=mono|c0=c0' OUT.wav",
            )
        peak = max(self.high - means[-1], means[-1] - self.low)
        if peak < SILENCE_PEAK:
            raise BadAudio(Reason.SILENT, f"peak {peak:.1e} of full scale, expected at least {SILENCE_PEAK:.0e}")


def _convert(rate: int, channels: int, blocks: Iterable[np.ndarray], longest: float) -> tuple[np.ndarray, AudioInfo]:
    """Blocks [time, channels] int16 or float → int16 [time] at SAMPLING_RATE. longest: seconds."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise BadAudio(Reason.SAMPLING_RATE, f"{rate} Hz, expected {MIN_RATE}–{MAX_RATE} Hz")
    resampler = None
    if rate != SAMPLING_RATE:
        resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32", quality="VHQ")
    level, parts = _Level(channels), []
    for block in blocks:
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinite samples are told below
            mono = block.mean(axis=1, dtype=np.float32)
        if block.dtype == np.int16:
            mono /= 32768.0
        level.add(block, mono)
        if level.samples > longest * rate:
            why = "expected at most a day" if longest == MAX_SECONDS else "more than a recording of its bytes may be"
            raise BadAudio(Reason.TOO_LONG, f"longer than {longest:.0f} s, {why}")
        is_unchanged = block.dtype == np.int16 and channels == 1 and resampler is None
        parts.append(block[:, 0] if is_unchanged else resampler.resample_chunk(mono) if resampler else mono)
    if not level.samples:
        raise BadAudio(Reason.EMPTY, "no samples")
    if level.samples < MIN_SECONDS * rate:
        raise BadAudio(Reason.TOO_SHORT, f"{level.samples / rate:.3f} s, expected at least {MIN_SECONDS} s")
    level.check()
    if resampler:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    waveform, gain = _to_int16(parts)
    return waveform, AudioInfo(rate, channels, level.samples / rate, gain)


def _to_int16(parts: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """int16, or float32 of full scale 1, [time] each → int16 [time], and the gain that was applied."""
    gain = 1.0
    if parts[0].dtype != np.int16:
        gain = min(1.0, 32767.0 / (32768.0 * max(float(np.abs(part).max()) for part in parts if len(part))))
        for number, part in enumerate(parts):
            parts[number] = np.round(part * np.float32(32768.0 * gain)).astype(np.int16)
    return np.concatenate(parts), gain
