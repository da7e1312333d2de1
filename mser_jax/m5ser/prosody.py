"""From an emotion to prosody: published directions, continuous intensity, variation between utterances.

Directions follow the reviews of Juslin & Laukka (2003, Psychological Bulletin 129, tables 7 and 11: anger and
happiness fast, loud, high, much f0 variability, much high-frequency energy; fear fast, high, little f0
variability, soft unless panic; sadness slow, soft, low, little f0 variability, little high-frequency
energy; irregular from cycle to cycle in fear most of all, in anger and in sadness) and Scherer (2003, Speech
Communication 40), the f0 and energy measurements of Banse & Scherer (1996, JPSP 70) and, for surprise
(highest f0, widest range), Pell et al. (2009, Journal of Phonetics 37). They give directions; the sizes are
ours: a healthy voice's own jitter is about 0.5 %, and above 1 % it is heard as rough.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.fft


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prosody:
    """Deviations from a voice's own neutral speech; all zero = neutral.

    pitch_st: f0 level, semitones.
    range_oct: log2 of the factor of the f0 range in semitones.
    rate_oct: log2 of the speaking rate's factor.
    volume_db: loudness, dB.
    tilt_db: spectral tilt, dB per octave around 1 kHz; positive = more high-frequency energy (tense voice).
    rise: 0 to 1, how strongly the sentence ends with the intonation of a question.
    jitter_pct: perturbation of f0 from one cycle to the next, beyond the voice's own: mean absolute difference of
      neighbouring periods over the mean period, per cent. espeak-ng cannot; its data sets are named by the repr of
      the tables below, so the field stays out of it.
    """

    pitch_st: float = 0.0
    range_oct: float = 0.0
    rate_oct: float = 0.0
    volume_db: float = 0.0
    tilt_db: float = 0.0
    rise: float = 0.0
    jitter_pct: float = dataclasses.field(default=0.0, repr=False)


# At intensity 1, before jitter.
TARGETS: dict[str, Prosody] = {
    "angry": Prosody(pitch_st=2.5, range_oct=0.35, rate_oct=0.2, volume_db=5.0, tilt_db=2.5, jitter_pct=0.8),
    "fear": Prosody(pitch_st=5.0, range_oct=-0.5, rate_oct=0.35, volume_db=-2.0, tilt_db=-0.5, jitter_pct=1.2),
    "happy": Prosody(pitch_st=4.0, range_oct=0.5, rate_oct=0.15, volume_db=2.5, tilt_db=1.0, jitter_pct=0.3),
    "neutral": Prosody(),
    "sad": Prosody(pitch_st=-2.5, range_oct=-0.6, rate_oct=-0.4, volume_db=-4.0, tilt_db=-2.0, jitter_pct=0.6),
    "surprise": Prosody(
        pitch_st=6.0, range_oct=0.5, rate_oct=-0.1, volume_db=1.0, tilt_db=0.5, rise=0.8, jitter_pct=0.3
    ),
}

# Standard deviations from one utterance to the next; `rise` is a share of utterances, so it has none.
JITTER = Prosody(pitch_st=1.3, range_oct=0.25, rate_oct=0.12, volume_db=2.0, tilt_db=0.8, jitter_pct=0.2)


def prosody_facts() -> str:
    """All values of the tables, for fingerprints of engines that render every field."""
    return repr([(name, sorted(vars(values).items())) for name, values in [*sorted(TARGETS.items()), ("", JITTER)]])


def draw_prosody(emotion: str, intensity: float, rng: np.random.Generator) -> Prosody:
    """One rendering of an emotion: intensity × target + normal jitter.

    Args:
      emotion: a key of TARGETS.
      intensity: ≥ 0; 0 leaves only the jitter, 1 is the target.
      rng: the source of the jitter; always the same number of draws.

    Returns:
      The prosody; its `rise` is 0 or 1, its `jitter_pct` ≥ 0.

    Raises:
      ValueError: unknown emotion, or an intensity that is negative or not finite.
    """
    if emotion not in TARGETS:
        raise ValueError(f"no prosody for emotion {emotion!r}; there is {', '.join(TARGETS)}")
    if not 0 <= intensity < np.inf:
        raise ValueError(f"intensity must be a finite number ≥ 0, got {intensity}")
    target, noise = TARGETS[emotion], rng.standard_normal(5)
    names = ("pitch_st", "range_oct", "rate_oct", "volume_db", "tilt_db")
    values = {
        name: intensity * getattr(target, name) + getattr(JITTER, name) * z
        for name, z in zip(names, noise.tolist(), strict=True)
    }
    rise = float(rng.random() < intensity * target.rise)
    jitter = intensity * target.jitter_pct + JITTER.jitter_pct * float(rng.standard_normal())
    return Prosody(**values, rise=rise, jitter_pct=max(jitter, 0.0))


def tilt_spectrum(waveform: np.ndarray, rate: int, db_per_octave: float) -> np.ndarray:
    """Tilts the spectrum from 125 Hz to 8 kHz around 1 kHz; RMS stays, peaks are kept below full scale.

    Args:
      waveform: float32 [samples], not all zero.
      rate: Hz.
      db_per_octave: positive = more high-frequency energy.

    Returns:
      float32 [samples].
    """
    # Padded by 20 ms, so that the filter's tail does not wrap around.
    length = scipy.fft.next_fast_len(len(waveform) + rate // 50, real=True)
    frequency = scipy.fft.rfftfreq(length, 1 / rate).astype(np.float32)
    gain_db = np.float32(db_per_octave) * np.log2(np.clip(frequency, 125, 8000) / 1000)
    spectrum = scipy.fft.rfft(waveform, length) * np.power(np.float32(10), gain_db / 20)
    tilted = scipy.fft.irfft(spectrum, length)[: len(waveform)]
    tilted *= np.sqrt(np.mean(np.square(waveform)) / max(np.mean(np.square(tilted)), 1e-12))
    return (tilted / max(1.0, np.abs(tilted).max() / 0.99)).astype(np.float32)
