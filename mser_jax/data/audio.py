"""Encoded bytes to int16 samples of a fixed length, with augmentation."""

from __future__ import annotations

import dataclasses
import functools
import io

import numpy as np
import soundfile
import soxr

from mser_jax.corpora.audio_check import BadAudio, Reason

SAMPLE_RATE = 16_000  # Hz, everywhere after decoding

FULL_SCALE = 32_767
NOISE_COLOURS = ("white", "pink")

# 33 s of noise made once a process: drawing 16k Gaussians a second of audio would cost as much as decoding
# it.
_NOISE_SAMPLES = 2**19


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training audio; a range of 0 or a probability of 0 switches a part off.

    random_crop: of a recording that is too long, any window; else the middle one.
    speed: played faster or slower by a factor uniform in [1 - speed, 1 + speed], in steps of a hundredth,
      pitch going with it.
    gain_db: level changed by a gain uniform in ± gain_db; what passes full scale is clipped.
    noise_snr_db: (low, high) of the signal-to-noise ratio of added noise, white or pink in equal parts;
    silence gets none.
    """

    random_crop: bool = True
    speed: float = 0.0
    speed_probability: float = 0.5
    gain_db: float = 0.0
    gain_probability: float = 0.5
    noise_snr_db: tuple[float, float] = (15.0, 40.0)
    noise_probability: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.speed <= 0.5:
            raise ValueError(f"augmentation.speed={self.speed}: expected a fraction between 0 (off) and 0.5")
        if self.gain_db < 0:
            raise ValueError(f"augmentation.gain_db={self.gain_db}: expected a range in dB, 0 (off) or more")
        if self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise ValueError(f"augmentation.noise_snr_db={self.noise_snr_db}: expected (low, high)")
        for name in ("speed_probability", "gain_probability", "noise_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name}={getattr(self, name)}: expected a probability")


def decode(data: bytes) -> np.ndarray:
    """An encoded audio file -> int16 [samples], mono, 16 kHz (channels averaged, other rates by soxr VHQ).

    Raises:
        BadAudio: not an audio file that libsndfile reads, a damaged one, no samples, or fewer than its header promises.
    """
    if not data:
        raise BadAudio(Reason.EMPTY, "0 bytes")
    try:
        return _decode(data)
    except soundfile.LibsndfileError as error:
        reason = Reason.TRUNCATED if "lost sync" in str(error) else Reason.UNREADABLE
        raise BadAudio(reason, f"libsndfile: {error.error_string}") from error
    except (soundfile.SoundFileError, ValueError, OverflowError, MemoryError) as error:  # a header that lies
        raise BadAudio(Reason.UNREADABLE, f"{type(error).__name__}: {error}") from error


def _decode(data: bytes) -> np.ndarray:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        rate, promised = file.samplerate, file.frames
        if file.channels == 1 and file.subtype == "PCM_16":
            samples = file.read(dtype="int16")
        else:
            channels = np.nan_to_num(file.read(dtype="float32", always_2d=True))
            samples = to_int16(channels.mean(axis=1, dtype=np.float64) * FULL_SCALE)
    if len(samples) == 0 or len(samples) < promised:
        reason = Reason.TRUNCATED if len(samples) else Reason.EMPTY
        raise BadAudio(reason, f"{len(samples)} samples decoded, its header promises {promised}")
    return samples if rate == SAMPLE_RATE else _resample(samples, rate, SAMPLE_RATE, "VHQ")


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Finite samples in units of int16 steps -> int16, rounded and clipped at full scale."""
    rounded = np.rint(samples)
    return np.clip(rounded, -FULL_SCALE - 1, FULL_SCALE, out=rounded).astype(np.int16)


def crop(samples: np.ndarray, length: int, rng: np.random.Generator | None) -> np.ndarray:
    """At most `length` samples: a random window, or the middle one where `rng` is None."""
    spare = len(samples) - length
    if spare <= 0:
        return samples
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return samples[start : start + length]


def windows(samples: int, length: int) -> list[int]:
    """Where the windows of at most `length` samples begin that a recording of `samples` is heard in.

    As few as cover it, evenly spaced and so overlapping a little; one where it is not longer. What predict answers and
    what evaluation scores is the mean over them.
    """
    count = max(1, -(-samples // length))
    return np.linspace(0, max(samples - length, 0), count).round().astype(int).tolist()


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """int16 [n] -> int16 [about n / factor]: played `factor` times as fast."""
    return _resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, "LQ")


def _resample(samples: np.ndarray, rate: float, target: float, quality: str) -> np.ndarray:
    """int16 -> int16. In float32, as soxr dithers integer output: silence would not stay silent."""
    return to_int16(soxr.resample(samples.astype(np.float32), rate, target, quality=quality))


@functools.lru_cache
def _noise_bank() -> np.ndarray:
    """float32 [2, _NOISE_SAMPLES]: white and pink (power ∝ 1/f) noise of variance 1."""
    white = np.random.Generator(np.random.Philox(0)).standard_normal(_NOISE_SAMPLES)
    spectrum = np.fft.rfft(white)
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    pink = np.fft.irfft(spectrum)
    return np.stack([white, pink / pink.std()]).astype(np.float32)


def _power(samples: np.ndarray) -> float:
    """Mean square."""
    return float(np.einsum("i,i->", samples, samples)) / len(samples)


def add_noise(samples: np.ndarray, snr_db: float, colour: str, rng: np.random.Generator) -> np.ndarray:
    """float32 [n] -> float32 [n] with white or pink noise at exactly `snr_db` over the whole clip.

    Silence is returned as it is: it has no signal-to-noise ratio.
    """
    power = _power(samples)
    if power == 0:
        return samples
    bank = _noise_bank()[NOISE_COLOURS.index(colour)]
    if len(samples) > len(bank):
        bank = np.resize(bank, 2 * len(samples))  # goes round
    start = int(rng.integers(len(bank) - len(samples) + 1))
    noise = bank[start : start + len(samples)]
    scale = np.sqrt(power / 10 ** (snr_db / 10) / _power(noise))
    return samples + np.float32(scale) * noise


def augment(samples: np.ndarray, length: int, options: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """int16 [n] -> int16 [at most `length`]: cropped, then speed, gain and noise, all drawn from `rng`."""
    factor = 1.0
    if options.speed and rng.random() < options.speed_probability:
        # A ratio of small numbers takes the resampler three quarters of the time of any other.
        factor = round(1 + rng.uniform(-options.speed, options.speed), 2)
    # Crop first: a long recording costs only what is kept of it. +1: the resampler rounds down.
    window = int(length * factor) + 1 if factor != 1 else length
    samples = crop(samples, window, rng if options.random_crop else None)
    if factor != 1:
        samples = change_speed(samples, factor)[:length]
    gain = 0.0
    if options.gain_db and rng.random() < options.gain_probability:
        gain = rng.uniform(-options.gain_db, options.gain_db)
    noisy = rng.random() < options.noise_probability
    if gain or noisy:
        louder = samples.astype(np.float32) * np.float32(10 ** (gain / 20))
        if noisy:
            colour = NOISE_COLOURS[int(rng.integers(len(NOISE_COLOURS)))]
            louder = add_noise(louder, rng.uniform(*options.noise_snr_db), colour, rng)
        samples = to_int16(louder)
    return samples


def content_free(num_samples: int, rows: int) -> np.ndarray:
    """Audio in which nobody speaks, int16 [rows, num_samples]: what the prior of an answer is measured with.

    Digital silence, white noise at -50 and pink noise at -50 and -35 dB of full scale (RMS), in turns: neither the
    absence of sound nor one colour of noise stands for all that is not speech. Always the same.
    """
    white, pink = (np.resize(noise, num_samples) * FULL_SCALE for noise in _noise_bank())
    kinds = (0 * white, white * 10 ** (-50 / 20), pink * 10 ** (-50 / 20), pink * 10 ** (-35 / 20))
    return to_int16(np.stack([kinds[row % len(kinds)] for row in range(rows)]))
