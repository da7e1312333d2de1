"""The part of the card on what passed: rates by filter and reason, and what the filters measured."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from etils import epath

from mser_jax.corpora import builder
from mser_jax.m5ser import card_prosody, chunks
from mser_jax.m5ser.card_page import Block, Heading, Paragraph, Picture, Table
from mser_jax.m5ser.dataset import PROVENANCE
from mser_jax.m5ser.filters import DEFAULTS, FILTERS

_MAX_ROWS = 20_000
# measure -> filter, and its thresholds.
_THRESHOLDS = {
    "letters_per_second": ("duration", "min_letters_per_second", "max_letters_per_second"),
    "silent_share": ("silence", "max_share"),
    "leading_s": ("silence", "max_edge_seconds"),
    "trailing_s": ("silence", "max_edge_seconds"),
    "clipped_share": ("clipping", "max_share"),
    "lufs": ("loudness", "min_lufs", "max_lufs"),
    "similarity": ("duplicates", "min_similarity"),
    "cer": ("intelligibility", "max_cer"),
    "agreement": ("emotion", "min_probability"),
}


def blocks(path: epath.Path, report: Mapping[str, Any]) -> list[Block]:
    """Of the finished data set in `path`, whose report.json is `report`."""
    out: list[Block] = [Heading("What passed"), *_rates(path, report)]
    hashes, measures = _measured(path)
    if measures:
        sections = _sections(path)
        limits = {name: [sections[key][k] for k in keys] for name, (key, *keys) in _THRESHOLDS.items()}
        rows = [
            (
                name,
                f"{len(values):,}",
                *(f"{x:.4g}".replace("-", "−") for x in np.percentile(values, (1, 5, 50, 95, 99))),
            )
            for name, values in measures.items()
        ]
        caption = "What the filters measured of utterances that passed; dashed: their thresholds, where they are near."
        out.append(Picture("measures.png", card_prosody.draw_measures(measures, limits), caption))
        out.append(Table(("measure", "utterances", "1 %", "5 %", "median", "95 %", "99 %"), rows))
    if len(hashes):
        copies = len(hashes) - len(pc.unique(hashes))
        out.append(Paragraph(
            f"Exact copies in the whole set, of {len(hashes):,} utterances: {copies:,}. Within a chunk they are "
            "rejected; what is counted here lies in different chunks."
        ))  # fmt: skip
    return out


def _sections(path: epath.Path) -> dict[str, dict[str, Any]]:
    """config.filters as the data set was generated with, completed from DEFAULTS; not enabled where it names none."""
    told = json.loads((path / "config.json").read_text())["filters"]
    return {name: {**section, "enabled": False, **told.get(name, {})} for name, section in DEFAULTS.items()}


def _rates(path: epath.Path, report: Mapping[str, Any]) -> list[Block]:
    rejected = collections.Counter(report["rejected_by_reason"])
    crossed = report["rejected_by_reason_and_emotion"]
    emotions = sorted(report["pass_rates"]["emotion"])
    owner = {reason: name for name, made in FILTERS.items() for reason in made.reasons}
    stages = ["engine and audio", *(name for name, section in _sections(path).items() if section["enabled"]), "balance"]
    by_stage: dict[str, list[str]] = {stage: [] for stage in stages}
    for reason in rejected:
        stage = "balance" if reason == chunks.UNBALANCED else owner.get(reason, stages[0])
        by_stage.setdefault(stage, []).append(reason)
    rows, left = [], report["planned"]
    for stage, reasons in by_stage.items():
        lost = sum(rejected[reason] for reason in reasons)
        rows.append((stage, f"{left:,}", f"{lost:,}", f"{1 - lost / left:.2%}" if left else "", ", ".join(reasons)))
        left -= lost
    told = (
        "In the order in which they judge; each gets what those before let pass. “balance” is what goes, though fine, "
        "since another emotion of the same words and voice was rejected."
    )
    rates = [
        (axis, ", ".join(f"{name} {rate:.1%}" for name, rate in report["pass_rates"][key].items()))
        for axis, key in (("language", "language"), ("emotion", "emotion"), ("engine", "domain"), ("split", "split"))
    ]
    out: list[Block] = [
        Paragraph(told), Table(("filter", "judged", "rejected", "passed", "reasons"), rows),
        Table(("passed, by", "of all that were planned"), rates),
    ]  # fmt: skip
    if rejected:
        header = ("reason", *emotions, "all")
        table = [
            (reason, *(f"{crossed[reason].get(emotion, 0):,}" for emotion in emotions), f"{count:,}")
            for reason, count in rejected.items()
        ]
        out.append(Table(header, table))
    if texts := _texts_left_out(report):
        out += [Paragraph("Sentences that are spoken, and those left out before, by reason:"), texts]
    return out


def _texts_left_out(report: Mapping[str, Any]) -> Table | None:
    left_out = report.get("texts_left_out", {})
    reasons = sorted({reason for counts in left_out.values() for reason in counts})
    rows = [
        (language, f"{kept:,}", *(f"{left_out.get(language, {}).get(reason, 0):,}" for reason in reasons))
        for language, kept in report.get("texts", {}).items()
    ]
    return Table(("language", "sentences", *(reason.replace("_", " ") for reason in reasons)), rows) if rows else None


def _measured(path: epath.Path) -> tuple[pa.ChunkedArray, dict[str, list[float]]]:
    """(audio hashes of all utterances as text, measure -> values of a sample of at most _MAX_ROWS)."""
    file = pa.parquet.ParquetFile(pa.BufferReader((path / builder.INDEX_FILE).read_bytes()))
    count = file.metadata.num_rows
    drawn = np.zeros(count, bool)
    drawn[np.random.default_rng(0).permutation(count)[:_MAX_ROWS]] = True
    hashes, measures, begin = [], collections.defaultdict(list), 0
    # In parts, and hashes by a pattern: of millions of rows the provenance is a gigabyte.
    for batch in file.iter_batches(columns=[PROVENANCE]):
        texts = batch.column(0)
        hashes.append(pc.struct_field(pc.extract_regex(texts, r'"audio_hash": (?P<hash>[0-9.]+)'), "hash").drop_null())
        for row in np.flatnonzero(drawn[begin : begin + len(texts)]):
            for name, value in json.loads(texts[int(row)].as_py())["measures"].items():
                measures[name].append(value)
        begin += len(texts)
    measures.pop("audio_hash", None)
    return pa.chunked_array(hashes, pa.string()), dict(measures)
