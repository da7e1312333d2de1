"""Prosody of a finished waveform, for engines without controls: analysis, change and synthesis by WORLD.

WORLD (Morise, Yokomori & Ozawa 2016, IEICE Transactions E99-D) splits speech into f0, spectral envelope and
aperiodicity; f0 and time are changed, the envelope, and so the words and the speaker, stays. The same `Prosody` as
espeak-ng's: see prosody.py for the directions of the emotions and where they were published.

A vocoder is heard: whoever edits some emotions must let the others, neutral too, go the same way.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata

import numpy as np
import scipy.ndimage

from mser_jax.m5ser.engines import EngineError
from mser_jax.m5ser.prosody import Prosody, draw_prosody, tilt_spectrum

INSTALL = "editing prosody needs WORLD: pip install mser_jax[m5ser]"
# Hz looked for (WORLD's own floor, at which its FFTs are half as long as a little below it); what is asked for is
# kept within 50 to 1000 Hz.
F0_FLOOR, F0_CEILING = 71.0, 700.0
MIN_SECONDS = 0.05
NEUTRAL_DB = -26.0  # RMS re full scale that `render` gives neutral speech: room for the peaks of loud emotions
_FRAME_MS = 5.0
_RISE_ST, _RISE_SECONDS = 8.0, 0.35  # of a question: how far, over how long the voiced end


def check() -> None:
    """Raises ImportError: pyworld is not installed; says how to get it."""
    try:
        import pyworld  # noqa: F401
    except ImportError as error:
        raise ImportError(INSTALL) from error


def version() -> str:
    """Of pyworld."""
    return importlib.metadata.version("pyworld")


def perform(
    waveform: np.ndarray, rate: int, emotion: str, intensity: float, seed: int, *, speed: bool = True
) -> tuple[np.ndarray, dict[str, float | str]]:
    """An engine's neutral speech rendered with an emotion, and what was done, for its metadata.

    Args:
      waveform: float32 [samples], full scale 1.
      rate: Hz.
      emotion, intensity: see prosody.draw_prosody.
      seed: of the utterance's own variation.
      speed: False where the engine has already taken the drawn `rate_oct`.

    Raises:
      ValueError: unknown emotion, or a bad intensity.
      EngineError: the waveform cannot be edited.
    """
    drawn = draw_prosody(emotion, intensity, np.random.default_rng(seed))
    asked = drawn if speed else dataclasses.replace(drawn, rate_oct=0.0)
    try:
        return render(waveform, rate, asked, seed), {"pyworld": version(), **vars(drawn)}
    except ValueError as error:
        raise EngineError(f"WORLD: {error}") from error


def render(waveform: np.ndarray, rate: int, prosody: Prosody, seed: int) -> np.ndarray:
    """`edit` of a waveform brought to NEUTRAL_DB, so that loudness means the same whatever voice it is.

    Raises:
      ValueError: see `edit`; or the waveform is all zero.
    """
    level = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) if len(waveform) else 0.0
    if not level:
        raise ValueError("there is no sound whose prosody could be edited")
    return edit(waveform * np.float32(10 ** (NEUTRAL_DB / 20) / level), rate, prosody, seed)


def edit(waveform: np.ndarray, rate: int, prosody: Prosody, seed: int) -> np.ndarray:
    """Speech with other prosody.

    Args:
      waveform: float32 [samples], full scale 1.
      rate: Hz.
      prosody: deviations; all zero = analysis and synthesis only, which leaves f0, level and length as they are.
      seed: of the jitter.

    Returns:
      float32 [samples × 2**-rate_oct]; where it would clip it is turned down as a whole.

    Raises:
      ValueError: shorter than MIN_SECONDS, or not finite.
    """
    import pyworld

    if len(waveform) < MIN_SECONDS * rate or not np.isfinite(waveform).all():
        raise ValueError(f"{len(waveform)} samples at {rate} Hz: expected at least {MIN_SECONDS} s of finite samples")
    source = waveform.astype(np.float64)
    f0, times = pyworld.harvest(source, rate, f0_floor=F0_FLOOR, f0_ceil=F0_CEILING, frame_period=_FRAME_MS)
    envelope = pyworld.cheaptrick(source, f0, times, rate)
    aperiodicity = pyworld.d4c(source, f0, times, rate)
    stretch = 2.0**-prosody.rate_oct
    contour = move_f0(f0, _FRAME_MS * stretch / 1000, prosody)
    edited = pyworld.synthesize(contour, envelope, aperiodicity, rate, _FRAME_MS * stretch)
    length = max(1, round(len(waveform) * stretch))
    edited = np.pad(edited, (0, max(0, length - len(edited))))[:length]
    if prosody.jitter_pct > 0:
        edited = _perturb(edited, rate, contour, _FRAME_MS * stretch / 1000, prosody.jitter_pct, seed)
    if not edited.any():
        raise ValueError("WORLD found nothing to synthesise")
    edited = tilt_spectrum(edited.astype(np.float32), rate, prosody.tilt_db)
    level = np.sqrt(np.mean(np.square(source))) / np.sqrt(np.mean(np.square(edited, dtype=np.float64)))
    edited = edited * np.float32(level * 10 ** (prosody.volume_db / 20))
    return (edited / max(1.0, np.abs(edited).max() / 0.99)).astype(np.float32)


def move_f0(f0: np.ndarray, frame_seconds: float, prosody: Prosody) -> np.ndarray:
    """f0 [frames] (Hz, 0 = unvoiced) moved in level and, around its median, in range; `rise` lifts the voiced end."""
    voiced = np.flatnonzero(f0)
    if not len(voiced):
        return f0
    octaves = np.log2(f0[voiced])
    median = np.median(octaves)
    octaves = median + (octaves - median) * 2**prosody.range_oct + prosody.pitch_st / 12
    before_end = (voiced[-1] - voiced) * frame_seconds
    octaves += prosody.rise * _RISE_ST / 12 * np.clip(1 - before_end / _RISE_SECONDS, 0, 1)
    moved = np.zeros_like(f0)
    moved[voiced] = np.clip(2**octaves, 50, 1000)
    return moved


def _perturb(
    waveform: np.ndarray, rate: int, f0: np.ndarray, frame_seconds: float, jitter_pct: float, seed: int
) -> np.ndarray:
    """Makes every voiced cycle longer or shorter by a normal draw, as the time axis is warped."""
    times = np.arange(len(waveform)) / rate
    at = np.minimum((times / frame_seconds).astype(int), len(f0) - 1)
    cycles = np.cumsum(f0[at]) / rate  # stands still where nothing is voiced
    cuts = np.flatnonzero(np.diff(np.floor(cycles), prepend=0.0))
    if len(cuts) < 2:
        return waveform
    lengths = np.diff(cuts).astype(np.float64)
    whole = np.add.reduceat(f0[at] > 0, cuts)[:-1] == lengths  # cycles without an unvoiced stretch inside
    # E|a - b| of two normal draws is 2σ/√π.
    sigma = jitter_pct / 100 * np.sqrt(np.pi) / 2
    draws = np.clip(np.random.default_rng(seed).standard_normal(len(lengths)) * sigma, -0.3, 0.3)
    heard = np.concatenate([[0.0], np.cumsum(lengths * (1 + draws * whole))]) + cuts[0]
    end = heard[-1] + len(waveform) - cuts[-1]
    positions = np.interp(np.arange(round(end)), [0, *heard, end], [0, *cuts, len(waveform)])
    return scipy.ndimage.map_coordinates(waveform, [positions], order=3, mode="nearest")
