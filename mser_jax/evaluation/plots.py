"""Pictures of an evaluation: confusion matrices by language, reliability diagrams, and the embedding space."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA

from mser_jax.evaluation.rows import Row, primary

# Okabe & Ito's colours, told apart with any colour vision; one an emotion in every picture, with a shape of
# its own.
STYLE: dict[str, tuple[str, str]] = {
    "angry": ("#D55E00", "^"),
    "disgust": ("#009E73", "P"),
    "fear": ("#CC79A7", "X"),
    "happy": ("#E69F00", "o"),
    "neutral": ("#666666", "s"),
    "sad": ("#0072B2", "v"),
    "surprise": ("#56B4E9", "D"),
}
_OTHER = ("#000000", ".")
_BACKGROUND = "#E4E4E4"
_MAX_POINTS = 2000
_DPI = 130


def _grid(n: int) -> tuple[int, int]:
    """Rows and columns for n panels: one row up to 3, else the least wide grid of at most 4 columns."""
    if n <= 3:
        return 1, n
    rows = math.ceil(n / 4)
    return rows, math.ceil(n / rows)


def _save(figure: Figure, path: epath.PathLike) -> epath.Path:
    buffer = io.BytesIO()
    # A figure without pyplot draws with Agg: no display, no global state. Tight: nothing is ever cut off.
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.1)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def save_confusions(rows: Sequence[Row], label_space: Sequence[str], path: epath.PathLike) -> epath.Path:
    """PNG with one confusion matrix a language: per cent of the reference class, and counts.

    Args:
      rows: of results.json; only those with adapt="none" and n > 0 are drawn, corpora of one language pooled.
      label_space: labels in the order of the matrices.
      path: PNG to write, local or gs://.

    Raises:
      ValueError: no row to draw.
    """
    by_language: dict[str, list[Row]] = {}
    for row in rows:
        if row["adapt"] == "none" and row["n"]:
            by_language.setdefault(primary(row["language"]) or "unknown", []).append(row)
    if not by_language:
        raise ValueError(f"no confusion matrix to draw: none of {len(rows)} rows is adapt='none' with utterances")
    down, across = _grid(len(by_language))
    side = 0.5 * len(label_space) + 0.5
    ragged = 0.5 * (down * across > len(by_language))
    figure = Figure(figsize=(across * side + 1.9, down * (side + 0.2) + 0.9 + ragged), dpi=_DPI, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(by_language) :]:
        panel.set_visible(False)
    for i, (language, mine) in enumerate(sorted(by_language.items())):
        image = _confusion(panels.flat[i], mine, label_space)
        panels.flat[i].set_title(_title(language, mine), fontsize=9)
        # The panel above a hidden one carries the labels of its column.
        panels.flat[i].tick_params(labelbottom=i + across >= len(by_language))
    figure.colorbar(image, ax=panels, shrink=0.6, label="% of the reference class", ticks=[0, 25, 50, 75, 100])
    figure.supxlabel("predicted", fontsize=10)
    figure.supylabel("reference", fontsize=10)
    return _save(figure, path)


def _title(language: str, rows: Sequence[Row]) -> str:
    ua = np.mean([row["ua"] for row in rows])
    corpora = f", {len(rows)} corpora" if len(rows) > 1 else ""
    protocols = " + ".join(sorted({row["protocol"].replace("_", "-") for row in rows}))
    return f"{language} ({protocols})\nUA {100 * ua:.1f} %, n = {sum(row['n'] for row in rows)}{corpora}"


def _confusion(panel: Axes, rows: Sequence[Row], label_space: Sequence[str]) -> AxesImage:
    counts = np.sum([row["confusion"] for row in rows], axis=0)
    support = counts.sum(1, keepdims=True)
    percent = np.divide(100.0 * counts, support, out=np.full(counts.shape, np.nan), where=support > 0)
    image = panel.imshow(np.ma.masked_invalid(percent), cmap="Blues", vmin=0, vmax=100)
    panel.set_facecolor("#F2F2F2")
    for (i, j), count in np.ndenumerate(counts):
        if not support[i, 0]:
            continue
        text = f"{percent[i, j]:.0f}%\n{count}" if count else "0"
        dark = percent[i, j] > 55
        panel.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "#222222")
    ticks = range(len(label_space))
    panel.set_xticks(ticks, label_space, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    panel.set_yticks(ticks, label_space, fontsize=8)
    panel.tick_params(length=0)
    return image


def save_reliability(diagrams: Mapping[str, Mapping[str, np.ndarray]], path: epath.PathLike) -> epath.Path:
    """PNG of reliability diagrams side by side: accuracy by bin of confidence, and how far it is off.

    Args:
      diagrams: {title: what metrics.reliability returned}.
      path: PNG to write, local or gs://.
    """
    figure = Figure(figsize=(3.1 * len(diagrams) + 0.4, 4.2), dpi=_DPI, layout="constrained")
    panels = figure.subplots(2, len(diagrams), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (title, found), upper, lower in zip(diagrams.items(), panels[0], panels[1], strict=True):
        bins = len(found["count"])
        centres, width = (np.arange(bins) + 0.5) / bins, 1 / bins
        there = found["count"] > 0
        accuracy, gap = found["accuracy"][there], (found["confidence"] - found["accuracy"])[there]
        edges = {"width": width, "edgecolor": "white", "linewidth": 0.5}
        upper.bar(centres[there], accuracy, color=STYLE["sad"][0], label="accuracy", **edges)
        gaps = {"bottom": accuracy, "color": STYLE["angry"][0], "alpha": 0.35}
        upper.bar(centres[there], gap, **gaps, label="gap to confidence", **edges)
        upper.plot([0, 1], [0, 1], color="#222222", linewidth=0.8, linestyle="--")
        upper.set(title=title, xlim=(0, 1), ylim=(0, 1))
        upper.title.set_fontsize(9)
        lower.bar(centres, found["count"], color="#888888", **edges)
    panels[0, 0].set_ylabel("accuracy")
    panels[0, 0].legend(fontsize=7, loc="upper left", frameon=False)
    panels[1, 0].set_ylabel("answers")
    figure.supxlabel("confidence of the answer", fontsize=10)
    return _save(figure, path)


def save_embeddings(
    embeddings: np.ndarray,
    columns: Mapping[str, np.ndarray],
    anchors: Mapping[str, np.ndarray],
    path: epath.PathLike,
    *,
    title: str = "",
    seed: int = 0,
) -> epath.Path:
    """PNG of the embedding space, one panel a language over all others in grey, label anchors as stars.

    The plane is that of the first two principal components of the utterances: linear and without chance, so
    panels and runs may be compared and the anchors go through the same map.

    Args:
      embeddings: [n, d]; at most 2000 are drawn, spread evenly over the languages.
      columns: {"language", "emotion"}: string arrays [n].
      anchors: {label: [d]}.
      path: PNG to write, local or gs://.
      title: line above the panels.
      seed: of the choice of utterances.

    Raises:
      ValueError: fewer than three utterances.
    """
    if len(embeddings) < 3:
        raise ValueError(f"an embedding plot needs at least 3 utterances, got {len(embeddings)}")
    language = np.array([primary(str(tag)) or "unknown" for tag in columns["language"]])
    total = Counter(language)
    chosen = _subsample(language, seed)
    language, emotion = language[chosen], np.asarray(columns["emotion"], dtype=str)[chosen]
    pca = PCA(2, svd_solver="full").fit(embeddings[chosen])
    points = pca.transform(embeddings[chosen])
    stars = {label: pca.transform(anchor[None])[0] for label, anchor in anchors.items()}
    names = sorted(set(language))
    down, across = _grid(len(names))
    figure = Figure(figsize=(across * 2.7 + 1.6, down * 2.75 + 0.7), dpi=_DPI, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels.flat, names, strict=False):
        mine = language == name
        panel.scatter(*points[~mine].T, s=6, c=_BACKGROUND, linewidths=0, zorder=1)
        _emotions(panel, points[mine], emotion[mine], stars)
        drawn = f"{mine.sum()} of {total[name]}" if mine.sum() < total[name] else str(total[name])
        panel.set_title(f"{name}, {drawn} utterances", fontsize=9)
        panel.set(xticks=[], yticks=[], box_aspect=1)
    shares = 100 * pca.explained_variance_ratio_
    figure.supxlabel(f"first principal component ({shares[0]:.0f} % of the variance)", fontsize=9)
    figure.supylabel(f"second ({shares[1]:.0f} %)", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.legend(
        handles=_legend({*emotion, *stars}, len(names) > 1),
        loc="outside right center",
        frameon=False,
        fontsize=8,
    )
    return _save(figure, path)


def _subsample(language: np.ndarray, seed: int) -> np.ndarray:
    """Positions of at most _MAX_POINTS utterances, as many of each language as its fair share allows."""
    if len(language) <= _MAX_POINTS:
        return np.arange(len(language))
    shuffled = np.random.default_rng(seed).permutation(len(language))
    # Rank within the language: keeping the lowest ranks takes turns between the languages.
    rank = np.empty(len(language), int)
    for name in np.unique(language):
        mine = shuffled[language[shuffled] == name]
        rank[mine] = np.arange(len(mine))
    return np.sort(shuffled[np.argsort(rank[shuffled], kind="stable")[:_MAX_POINTS]])


def _style(emotion: str) -> tuple[str, str]:
    return STYLE.get(emotion, _OTHER)


def _emotions(panel: Axes, points: np.ndarray, emotion: np.ndarray, stars: Mapping[str, np.ndarray]) -> None:
    for name in sorted(set(emotion)):
        colour, marker = _style(name)
        these = points[emotion == name]
        panel.scatter(*these.T, s=13, c=colour, marker=marker, alpha=0.75, linewidths=0, zorder=2)
    for label, (x, y) in stars.items():
        star = {"s": 170, "c": _style(label)[0], "marker": "*", "edgecolors": "black", "linewidths": 0.9}
        panel.scatter(x, y, **star, zorder=3)


def _legend(emotions: set[str], others_drawn: bool) -> list[Line2D]:
    known = [name for name in STYLE if name in emotions]
    others = sorted(name for name in emotions if name not in STYLE)
    plain = {"linestyle": "none", "markeredgewidth": 0}
    handles = [
        Line2D([], [], color=_style(name)[0], marker=_style(name)[1], label=name or "unknown", **plain)
        for name in (*known, *others)
    ]
    star = {"marker": "*", "linestyle": "none", "markersize": 12, "markeredgecolor": "black"}
    handles.append(Line2D([], [], color="white", label="prompts of a label", **star))
    if others_drawn:
        handles.append(Line2D([], [], color=_BACKGROUND, marker="o", label="other languages", **plain))
    return handles
