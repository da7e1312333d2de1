"""Three cheap acoustic facts of an utterance, for captions by quantile and for looking at a corpus."""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy.fft

MIN_F0, MAX_F0 = 60.0, 600.0  # Hz: low male to shouting child
VOICED_CORRELATION = 0.5  # normalised autocorrelation a frame needs; Boersma's 0.45, a little stricter
VOICED_LEVEL = 0.03  # RMS of a frame against the loudest frame (−30 dB)
OCTAVE_COST = 0.02  # per octave, favours the shorter period (Boersma 1993, eq. 24)
# The autocorrelation is that of the signal below this (raised cosine to twice as much), so that
# its peaks are broad against the lag step: else a period between two lags loses to its double.
CUTOFF = 1000.0
_FRAME_SECONDS, _HOP_SECONDS = 0.05, 0.02  # three periods at MIN_F0


def loudness_db(waveform: np.ndarray) -> float:
    """RMS of int16 [time] in dB of full scale (a full-scale sine is −3.0)."""
    power = np.mean(np.square(waveform, dtype=np.float32), dtype=np.float64)
    return 10.0 * math.log10(power / 32768.0**2) if power > 0 else -math.inf


def speaking_rate(transcript: str, duration_s: float) -> float:
    """Transcript characters, blanks not counted, per second; NaN without a transcript."""
    characters = len("".join(transcript.split()))
    return characters / duration_s if characters else math.nan


def pitch_hz(waveform: np.ndarray, sampling_rate: int) -> float:
    """Median f0 over the voiced frames of int16 [time]; NaN where fewer than three frames are voiced.

    Autocorrelation of Hann-windowed frames divided by that of the window (Boersma 1993), by FFT over all
    frames at once, at half rate: pitch needs no more and it halves the cost.
    """
    half = waveform[: len(waveform) // 2 * 2].reshape(-1, 2).mean(axis=1, dtype=np.float32)
    rate = sampling_rate / 2
    size = round(_FRAME_SECONDS * rate)
    if len(half) < size:
        return math.nan
    frames = np.lib.stride_tricks.sliding_window_view(half, size)[:: round(_HOP_SECONDS * rate)]
    frames = frames - frames.mean(axis=1, keepdims=True)
    level = np.sqrt(np.square(frames).mean(axis=1))
    frames = frames[level > max(VOICED_LEVEL * float(level.max()), 1.0)]
    if not len(frames):
        return math.nan
    f0, strength = _frame_pitch(frames, rate)
    voiced = f0[strength > VOICED_CORRELATION]
    return float(np.median(voiced)) if len(voiced) >= 3 else math.nan


@functools.lru_cache(maxsize=4)
def _window(size: int, rate: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Hann window [size], its autocorrelation [size], the low-pass [bins], FFT length without wrap-around."""
    window = np.hanning(size + 2)[1:-1].astype(np.float32)
    length = scipy.fft.next_fast_len(2 * size, real=True)
    autocorrelation = scipy.fft.irfft(np.abs(scipy.fft.rfft(window, length)) ** 2, length)[:size]
    above = np.clip(np.fft.rfftfreq(length, 1 / rate) / CUTOFF - 1, 0, 1)
    low_pass = (0.5 + 0.5 * np.cos(np.pi * above)).astype(np.float32)
    return window, (autocorrelation / autocorrelation[0]).astype(np.float32), low_pass, length


def _frame_pitch(frames: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """f0 in Hz and peak correlation, both [frames], of zero-mean float32 [frames, size]."""
    window, of_window, low_pass, length = _window(frames.shape[1], rate)
    spectrum = scipy.fft.rfft(frames * window, length)
    correlation = scipy.fft.irfft((spectrum.real**2 + spectrum.imag**2) * low_pass, length)
    lags = np.arange(max(int(rate / MAX_F0) - 1, 1), int(rate / MIN_F0) + 2)
    around = correlation[:, lags[0] : lags[-1] + 1] / correlation[:, :1] / of_window[lags]
    middle, before, after = around[:, 1:-1], around[:, :-2], around[:, 2:]
    is_peak = (middle >= before) & (middle > after)
    curvature = np.where(is_peak, before - 2 * middle + after, -1.0)
    top = middle - np.square(after - before) / (8 * curvature)  # of the parabola through the three
    cost = OCTAVE_COST * np.log2(lags[1:-1] * (MIN_F0 / rate)).astype(np.float32)
    best = np.where(is_peak, top - cost, -np.inf).argmax(axis=1)
    row = np.arange(len(frames))
    shift = 0.5 * (before - after)[row, best] / curvature[row, best]
    return rate / (lags[1:-1][best] + shift), np.where(is_peak, top, 0.0)[row, best]
