"""The end of a generation: from complete chunks to a folder that TFDS reads, with index and report."""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import tensorflow_datasets as tfds
from etils import epath

from mser_jax import storage
from mser_jax.corpora import builder, shards
from mser_jax.m5ser import chunks
from mser_jax.m5ser.dataset import M5ser
from mser_jax.m5ser.plan import Plan

REJECTED_FILE = "rejected.parquet"  # index rows of what did not pass, with reason and provenance
AXES = ("language", "emotion", "domain", "speaker", "split")
_AXES_OF_ALL = ("corpus", *AXES)
_READERS = 32  # chunks read at once: on gs:// each is a request


def finish(folder: epath.Path, plan: Plan) -> dict[str, Any]:
    """Writes rejected.parquet, report.json, TFDS's json files and, last, index.parquet; returns the report.

    Raises:
      RuntimeError: nothing passed the filters.
    """
    index, rejected, small, facts, lengths = _Parquet(), _Parquet(), [], [], []
    with futures.ThreadPoolExecutor(_READERS) as pool:
        for rows in _in_order(pool, lambda number: chunks.read_rows(folder, number), plan.num_chunks):
            table = rows.table.replace_schema_metadata(None)
            passed = pc.equal(table["reason"], "")
            lengths.append(pc.sum(passed).as_py())
            index.write(table.filter(passed).drop_columns("reason"))
            rejected.write(table.filter(pc.invert(passed)))
            small.append(table.select([*_AXES_OF_ALL, "duration_s", "reason"]))
            facts.append(rows.facts)
    report = make_report(plan, pa.concat_tables(small), facts)
    if not report["built"]:
        raise RuntimeError(
            f"{folder}: none of {len(plan)} utterances passed the filters; reasons: {report['rejected_by_reason']}."
            " Look at config.filters, listen to what the engine says, and start in another folder"
        )
    storage.replace(folder / REJECTED_FILE, rejected.close())
    storage.replace(folder / builder.REPORT_FILE, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    dataset = M5ser(data_dir=os.fspath(folder))
    split = tfds.core.SplitInfo(
        name=shards.SPLIT,
        shard_lengths=lengths,
        num_bytes=sum(fact["shard_bytes"] for fact in facts),
        filename_template=chunks.shard_template(folder),
    )
    dataset.info.set_splits(tfds.core.splits.SplitDict([split]))
    dataset.info.write_to_directory(folder)
    storage.replace(folder / builder.INDEX_FILE, index.close())
    return report


def make_report(plan: Plan, lines: pa.Table, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of report.json: what builds of other corpora report, and pass rates by AXES ("domain" = engine).

    Args:
      lines: reason, duration_s and axes of every line. facts: of every chunk's rows.
    """
    passed = pc.equal(lines["reason"], "")
    index, rejected = lines.filter(passed), lines.filter(pc.invert(passed))
    hours = {axis: _sums(index, axis, "duration_s", 3600) for axis in _AXES_OF_ALL}
    counts = {axis: _counts(index, axis) for axis in _AXES_OF_ALL}
    rates = {}
    for axis in AXES:
        lost = _counts(rejected, axis)
        planned = {name: counts[axis].get(name, 0) + lost.get(name, 0) for name in sorted({*counts[axis], *lost})}
        rates[axis] = {name: round(counts[axis].get(name, 0) / count, 4) for name, count in planned.items()}
    cpu: collections.Counter = collections.Counter()
    for fact in facts:
        cpu.update(fact["cpu_seconds"])
    crossed: dict[str, dict[str, int]] = collections.defaultdict(dict)
    grouped = index.group_by(["language", "emotion"]).aggregate([([], "count_all")]).sort_by("emotion")
    for row in grouped.sort_by("language").to_pylist():
        crossed[row["language"]][row["emotion"]] = row["count_all"]
    return {
        "corpus": f"{chunks.NAME}/{plan.fingerprint}",
        "planned": len(plan),
        "built": len(index),
        "rejected": len(rejected),
        "rejected_by_reason": dict(sorted(_counts(rejected, "reason").items(), key=lambda pair: -pair[1])),
        "rejected_by_reason_and_emotion": _crossed_reasons(rejected),
        "pass_rate": round(len(index) / max(len(plan), 1), 4),
        "pass_rates": rates,
        "speakers": len(counts["speaker"]),
        "hours_total": round(sum(hours["corpus"].values()), 4),
        "hours": hours,
        "utterances": counts,
        "by_language_and_emotion": dict(crossed),
        "texts": {language: len(texts) for language, texts in plan.texts.items()},
        "texts_left_out": plan.texts_left_out,
        "megabytes": round(sum(fact["shard_bytes"] for fact in facts) / 2**20, 2),
        "cpu_seconds": {name: round(seconds, 1) for name, seconds in sorted(cpu.items())},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def summary(report: Mapping[str, Any]) -> str:
    """The report in a few lines: hours, pass rates, what was rejected and why."""
    lines = [
        f"{report['built']} of {report['planned']} utterances passed ({report['pass_rate']:.1%}): "
        f"{report['hours_total']:.2f} h, {report['megabytes'] / 1024:.2f} GiB, {report['speakers']} voices"
    ]
    for axis in ("language", "emotion", "domain"):
        parts = (f"{name} {hours:.2f} h ({report['pass_rates'][axis].get(name, 0):.1%})"
                 for name, hours in report["hours"][axis].items())  # fmt: skip
        lines.append(f"  by {'engine' if axis == 'domain' else axis}: {', '.join(parts)}")
    for reason, count in report["rejected_by_reason"].items():
        detail = {
            chunks.UNBALANCED: " (fine, but another emotion of the same words and voice was rejected)",
            chunks.ENGINE_FAILED: " (the engine failed; run the same command again to try these again)",
        }.get(reason, "")
        by_emotion = ", ".join(f"{k} {v}" for k, v in report["rejected_by_reason_and_emotion"][reason].items())
        lines.append(f"  rejected, {reason}: {count}{detail}: {by_emotion}")
    return "\n".join(lines)


def _sums(table: pa.Table, axis: str, column: str, unit: float) -> dict[str, float]:
    grouped = table.group_by(axis).aggregate([(column, "sum")]).sort_by(axis)
    values = np.asarray(grouped[f"{column}_sum"].to_numpy(), np.float64) / unit
    return {name: round(float(value), 4) for name, value in zip(grouped[axis].to_pylist(), values, strict=True)}


def _counts(table: pa.Table, axis: str) -> dict[str, int]:
    grouped = table.group_by(axis).aggregate([([], "count_all")]).sort_by(axis)
    return dict(zip(grouped[axis].to_pylist(), grouped["count_all"].to_pylist(), strict=True))


def _crossed_reasons(rejected: pa.Table) -> dict[str, dict[str, int]]:
    crossed: dict[str, dict[str, int]] = collections.defaultdict(dict)
    grouped = rejected.group_by(["reason", "emotion"]).aggregate([([], "count_all")]).sort_by("emotion")
    for row in grouped.to_pylist():
        crossed[row["reason"]][row["emotion"]] = row["count_all"]
    return dict(crossed)


class _Parquet:
    """A parquet file that is written table by table, in memory as it will be on disk."""

    def __init__(self) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer: pa.parquet.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Appends a table, all of one schema; an empty one still tells the schema."""
        self._writer = self._writer or pa.parquet.ParquetWriter(self._sink, table.schema)
        if len(table):
            self._writer.write_table(table)

    def close(self) -> bytes:
        """The file."""
        self._writer.close()
        return self._sink.getvalue().to_pybytes()


def _in_order(pool: futures.Executor, read: Callable[[int], Any], count: int) -> Iterator[Any]:
    """`read` of 0 … count − 1 in order, a few ahead and not all: there may be thousands."""
    waiting: collections.deque[futures.Future] = collections.deque()
    for number in range(count):
        waiting.append(pool.submit(read, number))
        if len(waiting) > _READERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
