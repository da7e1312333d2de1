"""Filters of the waveform alone: duration, silence, clipping, loudness. numpy, some 0.1 ms a second of audio together.

The thresholds are wide on purpose: they find what is broken, not what is unusual, since an extreme of loudness or rate
is what an emotion may sound like.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import scipy.fft

from mser_jax.corpora.audio_check import SAMPLING_RATE
from mser_jax.m5ser import text_filters
from mser_jax.m5ser.filters.base import Candidate, Verdict

_FULL_SCALE = 32768.0
_FRAME = SAMPLING_RATE // 100  # 10 ms
_BLOCK = SAMPLING_RATE // 10  # 100 ms, a quarter of a gating block
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
_LOUDEST_LUFS = -0.691  # of a mean square of 1 after K-weighting


@dataclasses.dataclass(frozen=True)
class Duration:
    """Seconds, and letters a second, where a Han character counts as three (text_filters.length) and blanks do not.

    An engine that stops early, repeats itself or spells a word out is found by its rate.
    """

    min_seconds: float = 0.3
    max_seconds: float = 20.0
    min_letters_per_second: float = 3.0
    max_letters_per_second: float = 35.0
    name = "duration"
    reasons = ("short", "long", "rate")

    def measure(self, batch: Sequence[Candidate]) -> list[Verdict]:
        """Measures letters_per_second (the length is a column of its own). Reasons: short, long, rate."""
        return [self._one(len(item.waveform) / SAMPLING_RATE, item.line.text.text) for item in batch]

    def _one(self, seconds: float, text: str) -> Verdict:
        letters = text_filters.length("".join(text.split())) / seconds if seconds else 0.0
        measures = {"letters_per_second": round(letters, 2)} if text else {}
        if not self.min_seconds <= seconds <= self.max_seconds:
            return Verdict(measures=measures, reason="short" if seconds < self.min_seconds else "long")
        plausible = not text or self.min_letters_per_second <= letters <= self.max_letters_per_second
        return Verdict(measures=measures, reason="" if plausible else "rate")


@dataclasses.dataclass(frozen=True)
class Silence:
    """Share of silent frames, and the silence before and after the speech.

    A 10 ms frame is silent where its power is `below_db` under the mean power of the whole, or under `floor_db` of full
    scale: a level that follows the recording's, as BS.1770's gate does, and not one loud frame.
    """

    below_db: float = 30.0
    floor_db: float = -70.0
    max_share: float = 0.7
    max_edge_seconds: float = 1.5
    name = "silence"
    reasons = ("silence",)

    def measure(self, batch: Sequence[Candidate]) -> list[Verdict]:
        """Measures silent_share, leading_s, trailing_s. Reason: silence."""
        return [self._one(item.waveform) for item in batch]

    def _one(self, waveform: np.ndarray) -> Verdict:
        power = _frame_power(waveform, _FRAME)
        limit = max(float(power.mean()) * 10 ** (-self.below_db / 10), 10 ** (self.floor_db / 10)) if len(power) else 0
        sounding = np.flatnonzero(power > limit)
        if not len(sounding):
            return Verdict(measures={"silent_share": 1.0}, reason="silence")
        share = 1 - len(sounding) / len(power)
        edges = sounding[0] * 0.01, (len(power) - 1 - sounding[-1]) * 0.01
        measures = {
            "silent_share": round(share, 3),
            "leading_s": round(float(edges[0]), 2),
            "trailing_s": round(float(edges[1]), 2),
        }
        is_silent = share > self.max_share or max(edges) > self.max_edge_seconds
        return Verdict(measures=measures, reason="silence" if is_silent else "")


@dataclasses.dataclass(frozen=True)
class Clipping:
    """Share of samples at the top or the bottom of the waveform's own range, where a clipped one is flat.

    Measured against the extremes that it reaches and not against full scale: what was clipped and then made quieter
    is found too.
    """

    max_share: float = 0.002
    within: float = 0.002  # of the extreme
    name = "clipping"
    reasons = ("clipping",)

    def measure(self, batch: Sequence[Candidate]) -> list[Verdict]:
        """Measures clipped_share. Reason: clipping."""
        return [self._one(item.waveform) for item in batch]

    def _one(self, waveform: np.ndarray) -> Verdict:
        # Thresholds of the waveform's own type: comparing with another would convert all samples.
        high = np.int16(math.ceil(int(waveform.max()) * (1 - self.within)))
        low = np.int16(math.floor(int(waveform.min()) * (1 - self.within)))
        flat = np.count_nonzero(waveform >= high) + np.count_nonzero(waveform <= low)
        # One sample is always at either extreme.
        share = max(int(flat) - 2, 0) / len(waveform)
        return Verdict(measures={"clipped_share": round(share, 5)}, reason="clipping" if share > self.max_share else "")


@dataclasses.dataclass(frozen=True)
class Loudness:
    """Integrated loudness of ITU-R BS.1770-4 in LUFS: K-weighted, gated; 0 dB is a mean square of full scale.

    K-weighting is applied to the power spectra of 100 ms pieces, of which four make a gating block: no filter runs
    over the samples.
    """

    min_lufs: float = -55.0
    max_lufs: float = -8.0
    name = "loudness"
    reasons = ("quiet", "loud")

    def measure(self, batch: Sequence[Candidate]) -> list[Verdict]:
        """Measures lufs. Reasons: quiet, loud."""
        return [self._one(loudness_lufs(item.waveform)) for item in batch]

    def _one(self, lufs: float) -> Verdict:
        if lufs < self.min_lufs:
            return Verdict(measures={"lufs": round(lufs, 2)} if math.isfinite(lufs) else {}, reason="quiet")
        return Verdict(measures={"lufs": round(lufs, 2)}, reason="loud" if lufs > self.max_lufs else "")


def loudness_lufs(waveform: np.ndarray) -> float:
    """Integrated loudness of int16 [time] at 16 kHz in LUFS; −inf where everything is below the gate of −70 LUFS.

    What is shorter than a block of 0.4 s counts as one block.
    """
    pieces = np.zeros((max(-(-len(waveform) // _BLOCK), 1), _BLOCK), np.float32)
    pieces.reshape(-1)[: len(waveform)] = waveform
    spectrum = scipy.fft.rfft(pieces, overwrite_x=True)
    power = (spectrum.real**2 + spectrum.imag**2) @ _k_weighting()
    if len(waveform) % _BLOCK and len(power) > 4:
        power = power[:-1]  # not a whole piece: its part would count as quiet
    if len(power) < 4:
        blocks = np.array([power.sum() * _BLOCK / max(len(waveform), 1)])
    else:
        blocks = np.convolve(power, np.full(4, 0.25), "valid")
    gated = blocks[blocks > 10 ** ((_ABSOLUTE_GATE - _LOUDEST_LUFS) / 10)]
    if not len(gated):
        return -math.inf
    gated = gated[gated > gated.mean() * 10 ** (_RELATIVE_GATE / 10)]
    return _LOUDEST_LUFS + 10 * math.log10(float(gated.mean()))


def _frame_power(waveform: np.ndarray, size: int) -> np.ndarray:
    """Mean squares, full scale = 1, of int16 [time] in whole frames: [frames]."""
    frames = waveform[: len(waveform) // size * size].reshape(-1, size).astype(np.float32)
    return np.einsum("fs,fs->f", frames, frames) / (size * _FULL_SCALE**2)


@functools.cache
def _k_weighting() -> np.ndarray:
    """[bins] weights that make a piece's |rfft|² of int16 its K-weighted mean square, full scale = 1."""
    # Tables 1 and 2 of BS.1770-4, for 48 kHz; the response is that of any rate: only its frequencies are asked for.
    filters = (
        ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
        ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
    )
    delay = np.exp(-2j * np.pi * np.arange(_BLOCK // 2 + 1) * (SAMPLING_RATE / _BLOCK) / 48000)
    weights = np.full(len(delay), 2 / (_BLOCK * _FULL_SCALE) ** 2)  # Parseval; of one side of the spectrum
    weights[[0, -1]] /= 2
    for numerator, denominator in filters:
        weights *= np.abs(np.polyval(numerator[::-1], delay) / np.polyval(denominator[::-1], delay)) ** 2
    return weights.astype(np.float32)
