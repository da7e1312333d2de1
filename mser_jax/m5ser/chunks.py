"""One chunk of a plan: spoken, filtered, and written so that it is there as a whole or not at all.

A chunk is an ArrayRecord file, named as TFDS reads it from the start, and the index rows of all its lines, the rejected
ones with their reasons. Both are written under other names and renamed, the rows last: with them the chunk is complete.
Lines are content-addressed and engines deterministic, so whoever makes a chunk again makes the same bytes, and two who
make it at once do no harm.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import example_serializer

from mser_jax import storage
from mser_jax.corpora import acoustics, audio_check, builder, record, shards
from mser_jax.m5ser.engine import Engine, Speech
from mser_jax.m5ser.engines import EngineError
from mser_jax.m5ser.filters.base import Candidate, Filter, Verdict
from mser_jax.m5ser.lines import Line
from mser_jax.m5ser.plan import Plan

NAME = "m5ser"
ROWS = "rows"  # folder of the index rows
SHARD_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
ENGINE_FAILED = "engine"  # after its retries; a resumed run tries again
UNBALANCED = "partner"  # passes, but the same words by the same voice with another emotion do not


def shard_template(folder: epath.Path) -> tfds.core.ShardedFileTemplate:
    """How TFDS names the record files: by number alone, as their count is known only at the end."""
    return tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split=shards.SPLIT, filetype_suffix="array_record", template=SHARD_TEMPLATE
    )


def shard_path(folder: epath.Path, number: int) -> epath.Path:
    """The record file of a chunk."""
    return shard_template(folder).sharded_filepath(shard_index=number, num_shards=1)


def rows_path(folder: epath.Path, number: int) -> epath.Path:
    """The index rows of a chunk."""
    return folder / ROWS / f"{number:05d}.parquet"


@dataclasses.dataclass(frozen=True)
class Rows:
    """A chunk's rows: those of index.parquet, and `provenance` (JSON), `reason` ("" = passed).

    facts: fingerprint of the plan, first and last line, bytes of the shard, CPU seconds by engine and of the rest.
    """

    table: pa.Table
    facts: Mapping[str, Any]

    @property
    def failed(self) -> int:
        """Lines that an engine failed on."""
        return self.table["reason"].to_pylist().count(ENGINE_FAILED)


def read_rows(folder: epath.Path, number: int, columns: Sequence[str] | None = None) -> Rows | None:
    """A chunk's rows (`columns` of them); None where it is not there, or damaged."""
    try:
        table = pa.parquet.read_table(io.BytesIO(rows_path(folder, number).read_bytes()), columns=columns)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return Rows(table, json.loads(table.schema.metadata[b"m5ser"]))


def is_complete(folder: epath.Path, number: int, plan: Plan, fingerprint: str, *, retry: bool) -> bool:
    """Whether a chunk of the plan is there. `retry`: not where an engine failed on some of its lines."""
    rows = read_rows(folder, number, ["reason"])
    if rows is None or rows.facts["plan"] != fingerprint or rows.facts["lines"] != _ends(plan, number):
        return False
    shard = shard_path(folder, number)
    if not shard.exists() or shard.stat().length != rows.facts["shard_bytes"]:
        return False
    return not (retry and rows.failed)


def make(
    folder: epath.Path,
    number: int,
    plan: Plan,
    fingerprint: str,
    *,
    engines: Mapping[str, Engine],
    filters: Sequence[Filter],
    keep_balanced: bool,
) -> None:
    """Speaks, filters and writes a chunk. Audio that an earlier, incomplete version of it holds is not spoken again.

    Raises:
      UnsupportedSpeechError: the plan asks an engine for what it lacks.
    """
    lines, cpu = plan.chunk(number), collections.Counter()
    takes = _speak_all(lines, engines, _audio_there(folder, number), cpu)
    begin = time.process_time()
    verdicts = judge(lines, takes, filters)
    if keep_balanced:
        _reject_partners(lines, verdicts, len(plan.emotions))
    records, rows = [], []
    for line, take, verdict in zip(lines, takes, verdicts, strict=True):
        utterance, row = _record(line, take, verdict)
        rows.append(row)
        if not verdict.reason:
            records.append(utterance)
    with tempfile.TemporaryDirectory(prefix="m5ser-") as scratch:
        size = _write_shard(folder, number, records, Path(scratch))
    cpu["rest"] += time.process_time() - begin
    facts = {"plan": fingerprint, "lines": _ends(plan, number), "shard_bytes": size, "cpu_seconds": dict(cpu)}
    table = _table(rows).replace_schema_metadata({"m5ser": json.dumps(facts)})
    buffer = io.BytesIO()
    pa.parquet.write_table(table, buffer)
    storage.replace(rows_path(folder, number), buffer.getvalue())


@dataclasses.dataclass(frozen=True)
class Take:
    """What came of a line: int16 [time] at 16 kHz (empty: nothing), the engine's metadata, why nothing came."""

    waveform: np.ndarray
    metadata: Mapping[str, Any]
    engine: str
    reason: str = ""
    detail: str = ""


def _speak_all(
    lines: Sequence[Line], engines: Mapping[str, Engine], there: Mapping[str, Take], cpu: collections.Counter
) -> list[Take]:
    """Takes in the order of the lines; an engine that says `concurrency` gets as many lines at once."""

    def speak(line: Line) -> Take:
        if line.id in there:
            return there[line.id]
        begin = time.thread_time()
        take = _speak(line, engines[line.engine])
        cpu[line.engine] += time.thread_time() - begin
        return take

    at_once = max(getattr(engine, "concurrency", 1) for engine in engines.values())
    if at_once == 1:
        return [speak(line) for line in lines]
    with futures.ThreadPoolExecutor(at_once, thread_name_prefix="speak") as pool:
        try:
            return list(pool.map(speak, lines))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _speak(line: Line, engine: Engine) -> Take:
    nothing = np.zeros(0, np.int16)
    try:
        speech: Speech = engine.speak(
            line.text.text, language=line.language, voice=line.voice, emotion=line.emotion, intensity=line.intensity,
            seed=line.seed,
        )  # fmt: skip
    except EngineError as error:
        return Take(nothing, {}, engine.name, ENGINE_FAILED, str(error))
    try:
        waveform, _ = audio_check.load(speech.waveform, speech.sampling_rate)
    except audio_check.BadAudio as bad:
        return Take(nothing, speech.metadata, engine.name, str(bad.reason), bad.detail)
    return Take(waveform, speech.metadata, engine.name)


def judge(lines: Sequence[Line], takes: Sequence[Take], filters: Sequence[Filter]) -> list[Verdict]:
    """All measures of every take, and the first reason against it. A filter gets what passed those before it."""
    measures: list[dict[str, float]] = [{} for _ in lines]
    reasons = [take.reason for take in takes]
    for filter_ in filters:
        rows = [row for row, reason in enumerate(reasons) if not reason]
        batch = [Candidate(waveform=takes[row].waveform, line=lines[row]) for row in rows]
        for row, verdict in zip(rows, filter_.measure(batch) if batch else (), strict=True):
            measures[row] |= verdict.measures
            reasons[row] = verdict.reason
    return [Verdict(measures=found, reason=reason) for found, reason in zip(measures, reasons, strict=True)]


def _reject_partners(lines: Sequence[Line], verdicts: list[Verdict], block: int) -> None:
    """Rejects whole blocks, in place, as what is left would let words or voice tell the emotion."""
    for begin in range(0, len(lines), block):
        rows = range(begin, begin + block)
        if any(verdicts[row].reason for row in rows):
            for row in rows:
                if not verdicts[row].reason:
                    verdicts[row] = dataclasses.replace(verdicts[row], reason=UNBALANCED)


def _record(line: Line, take: Take, verdict: Verdict) -> tuple[record.Utterance, dict[str, Any]]:
    """The record of a line and its index row."""
    rate, heard = audio_check.SAMPLING_RATE, len(take.waveform) > 0
    voice = f"{take.engine}/{line.voice}"
    utterance = record.Utterance(
        id=line.id,
        audio=audio_check.encode_flac(take.waveform, rate) if not verdict.reason else b"",
        sampling_rate=rate,
        duration_s=len(take.waveform) / rate,
        language=line.language,
        corpus=NAME,
        speaker=f"{NAME}:{voice}",
        gender=str(take.metadata.get("gender", "")) or _gender(line.voice),
        emotion_native=line.emotion,
        emotion=line.emotion,
        transcript=line.text.text,
        parallel_id=line.text.parallel_id,
        domain=take.engine,
        split=line.split,
        license=f"{line.text.license}; spoken by {take.engine}" if line.text.license else f"spoken by {take.engine}",
    )
    row = {field: value for field, value in vars(utterance).items() if field != "audio"}
    row |= {
        "emobox_fold": 0,
        "pitch_hz": acoustics.pitch_hz(take.waveform, rate) if heard else math.nan,
        "loudness_db": acoustics.loudness_db(take.waveform) if heard else math.nan,
        "rate": acoustics.speaking_rate(line.text.text, utterance.duration_s) if heard else math.nan,
    }
    provenance = {
        "engine": line.engine, "engine_print": line.engine_print, "voice": line.voice, "intensity": line.intensity,
        "seed": line.seed, "text_id": line.text.id, "text_source": line.text.source, "content": line.text.content,
        "parameters": dict(take.metadata), "measures": dict(verdict.measures),
    } | ({"detail": take.detail} if take.detail else {})  # fmt: skip
    return utterance, row | {"provenance": json.dumps(provenance, ensure_ascii=False), "reason": verdict.reason}


def _gender(voice: str) -> str:
    """Of espeak-ng's and Kokoro's names: m1, f2, whisperf no; am_adam, bf_emma."""
    match = re.fullmatch(r"([mf])\d+|[a-z]([mf])_\w+", voice)
    return {"m": "male", "f": "female"}[match[1] or match[2]] if match else ""


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    table = builder.index_table(list(rows))
    for column in ("provenance", "reason"):
        table = table.append_column(column, pa.array([row[column] for row in rows], pa.string()))
    return table


def _write_shard(folder: epath.Path, number: int, records: Sequence[record.Utterance], scratch: Path) -> int:
    """Writes the record file under another name and renames it; array_record cannot write to gs://. Returns bytes."""
    target = shard_path(folder, number)
    remote = storage.is_remote(folder)
    part = scratch / target.name if remote else Path(folder) / f".{target.name}.{uuid.uuid4().hex[:8]}.part"
    features = record.features()
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    writer = array_record_module.ArrayRecordWriter(os.fspath(part), shards.OPTIONS)
    for utterance in records:
        writer.write(serializer.serialize_example(features.encode_example(utterance.to_example())))
    writer.close()
    size = part.stat().st_size
    if remote:
        storage.file_system(folder).put_file(os.fspath(part), os.fspath(target))
    else:
        part.replace(target)
    return size


def _audio_there(folder: epath.Path, number: int) -> dict[str, Take]:
    """What an earlier version of the chunk holds, by id of the line."""
    rows = read_rows(folder, number)
    shard = shard_path(folder, number)
    if rows is None or not shard.exists() or shard.stat().length != rows.facts["shard_bytes"]:
        return {}
    passed = {row["id"]: row for row in rows.table.to_pylist() if not row["reason"]}
    takes = {}
    for utterance in read_shard(shard):
        waveform, _ = soundfile.read(io.BytesIO(utterance.audio), dtype="int16")
        row = passed[utterance.id]
        takes[utterance.id] = Take(waveform, json.loads(row["provenance"])["parameters"], row["domain"])
    return takes


def read_shard(shard: epath.Path) -> Iterator[record.Utterance]:
    """The utterances of a record file."""
    features = record.features()
    parser = tfds.core.example_parser.ExampleParserNp(features.get_serialized_info())
    with tempfile.TemporaryDirectory(prefix="m5ser-") as scratch:
        local = os.fspath(shard)
        if storage.is_remote(shard):
            local = os.fspath(Path(scratch) / shard.name)
            storage.file_system(shard).get_file(os.fspath(shard), local)
        reader = array_record_module.ArrayRecordReader(local)
        count = reader.num_records()
        for serialized in reader.read(list(range(count))) if count else ():
            yield record.Utterance.from_example(features.decode_example_np(parser.parse_example(serialized)))
        reader.close()


def _ends(plan: Plan, number: int) -> list[int]:
    lines = plan.chunk_range(number)
    return [lines.start, lines.stop]
