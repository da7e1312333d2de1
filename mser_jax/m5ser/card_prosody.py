"""Pitch, energy and rate by emotion, against the same voice's neutral speech; and the pictures of it."""

from __future__ import annotations

import collections
import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from mser_jax.evaluation.plots import STYLE

AXES = ("pitch, semitones", "loudness, dB", "rate, %")
_COLUMNS = ("pitch_hz", "loudness_db", "rate")
_DPI = 110
_MAX_POINTS = 1500  # of an emotion


def shifts(index: pa.Table) -> np.ndarray:
    """float64 [rows, 3]: AXES of each row against the median of the same speaker's neutral speech in its language.

    Where a speaker has none, or where no row is neutral, against the median of all that the speaker says. NaN where
    the value itself is missing, as the pitch of what is whispered and the rate of what has no transcript.
    """
    values = np.stack([index[name].to_numpy().astype(np.float64) for name in _COLUMNS], axis=1)
    values[:, [0, 2]] = np.log2(values[:, [0, 2]])
    is_neutral = np.array([emotion == "neutral" for emotion in index["emotion"].to_pylist()])
    voices = collections.defaultdict(list)
    for row, voice in enumerate(zip(index["speaker"].to_pylist(), index["language"].to_pylist(), strict=True)):
        voices[voice].append(row)
    out = np.full_like(values, np.nan)
    for rows in map(np.array, voices.values()):
        neutral = rows[is_neutral[rows]]
        base = values[neutral if len(neutral) else rows]
        middle = [np.median(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan for column in base.T]
        out[rows] = values[rows] - middle
    out[:, 0] *= 12
    out[:, 2] = 100 * (np.exp2(out[:, 2]) - 1)
    return np.where(np.isfinite(out), out, np.nan)


def medians(index: pa.Table, moved: np.ndarray) -> dict[str, np.ndarray]:
    """emotion -> [3] medians of `shifts`, NaN where there is nothing."""
    emotions = np.array(index["emotion"].to_pylist())
    out = {}
    for emotion in sorted(set(emotions) - {""}):
        columns = (column[np.isfinite(column)] for column in moved[emotions == emotion].T)
        out[emotion] = np.array([np.median(column) if len(column) else np.nan for column in columns])
    return out


def draw_boxes(index: pa.Table, moved: np.ndarray, real: Mapping[str, np.ndarray]) -> bytes:
    """PNG: a panel for each of AXES with a box an emotion, a dot a language, and a diamond for the `real` median."""
    names, emotions = medians(index, moved), np.array(index["emotion"].to_pylist())
    languages = np.array(index["language"].to_pylist())
    figure = Figure(figsize=(11, 0.5 * len(names) + 1.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axis, (panel, title) in enumerate(zip(panels, AXES, strict=True)):
        column = moved[:, axis]
        for height, emotion in enumerate(names):
            colour, _ = STYLE.get(emotion, ("#000000", "."))
            found = column[(emotions == emotion) & np.isfinite(column)]
            if not len(found):
                continue
            box = panel.boxplot(
                found, positions=[height], orientation="horizontal", widths=0.55, showfliers=False, patch_artist=True,
                whis=(5, 95), medianprops={"color": "black"}, boxprops={"facecolor": colour, "alpha": 0.55},
                manage_ticks=False,
            )  # fmt: skip
            box["boxes"][0].set_edgecolor(colour)
            for language in sorted(set(languages)):
                own = column[(emotions == emotion) & (languages == language) & np.isfinite(column)]
                if len(own):
                    panel.plot(np.median(own), height + 0.38, ".", color=colour, markersize=5, clip_on=True)
            if emotion in real and np.isfinite(real[emotion][axis]):
                panel.plot(real[emotion][axis], height, "D", mfc="white", mec="black", markersize=7, zorder=5)
        panel.axvline(0, color="#999999", linewidth=0.8, zorder=0)
        panel.set_xlabel(title)
        panel.grid(axis="x", color="#e4e4e4")
        panel.set_axisbelow(True)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(left=False)
    panels[0].set_yticks(range(len(names)), list(names))
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return _png(figure)


def draw_clouds(index: pa.Table, moved: np.ndarray) -> bytes:
    """PNG: a panel an emotion with pitch against loudness, coloured by rate."""
    emotions = np.array(index["emotion"].to_pylist())
    names = list(medians(index, moved))
    across = min(len(names), 4) if len(names) != 6 else 3
    down = -(-len(names) // across)
    figure = Figure(figsize=(2.9 * across + 1.0, 2.6 * down + 0.4), dpi=_DPI, layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    is_whole = np.isfinite(moved).all(axis=1)
    everything = moved[is_whole] if is_whole.any() else np.zeros((1, 3))
    low, high = np.percentile(everything, 0.5, axis=0), np.percentile(everything, 99.5, axis=0)
    span = max(abs(low[2]), abs(high[2]), 1.0)
    rng, drawn = np.random.default_rng(0), None
    for panel, emotion in zip(panels.flat, names, strict=False):
        points = moved[is_whole & (emotions == emotion)]
        points = points[rng.permutation(len(points))[:_MAX_POINTS]]
        drawn = panel.scatter(
            points[:, 0], points[:, 1], c=points[:, 2], cmap="coolwarm", vmin=-span, vmax=span, s=5, linewidths=0
        )
        panel.set_title(emotion, fontsize=11)
        panel.axhline(0, color="#999999", linewidth=0.6, zorder=0)
        panel.axvline(0, color="#999999", linewidth=0.6, zorder=0)
    margin = 0.05 * (high - low) + 0.5
    panels[0, 0].set_xlim(low[0] - margin[0], high[0] + margin[0])
    panels[0, 0].set_ylim(low[1] - margin[1], high[1] + margin[1])
    for panel in list(panels.flat)[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel(AXES[0], fontsize=10)
    figure.supylabel(AXES[1], fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=panels, label=AXES[2], shrink=0.8)
    return _png(figure)


def draw_measures(measures: Mapping[str, Sequence[float]], limits: Mapping[str, Sequence[float]]) -> bytes:
    """PNG: a histogram of each measure over what passed, with the thresholds that lie within its range."""
    across = min(len(measures), 4)
    down = -(-len(measures) // across)
    figure = Figure(figsize=(2.75 * across, 2.0 * down + 0.2), dpi=_DPI, layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel, (name, values) in zip(panels, measures.items(), strict=False):
        panel.hist(values, bins=40, color="#0072B2", alpha=0.75)
        low, high = panel.get_xlim()
        for limit in limits.get(name, ()):
            if low - 0.25 * (high - low) <= limit <= high + 0.25 * (high - low):
                panel.axvline(limit, color="#D55E00", linestyle="--")
        panel.set_title(name, fontsize=10)
        panel.set_yticks([])
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    for panel in panels[len(measures) :]:
        panel.set_visible(False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
