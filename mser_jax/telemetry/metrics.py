"""Metrics to TensorBoard event files and `metrics.jsonl`, from process 0, of runs that are stopped and go on.

A line of step n tells of what had been trained when n steps were done, so a run that goes on from the checkpoint of
step n keeps the lines up to n and writes those after it again. Objects on `gs://` cannot be appended to: there both
files grow on this host's disk and are uploaded whole: before each checkpoint (so none is newer than its metrics), at
the end, and in the background once a minute.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mser_jax import storage

FILE = "metrics.jsonl"
EVENTS = "tensorboard"
UPLOAD_SECONDS = 60.0


class MetricWriter:
    """Writes {name: number} by step. TensorBoard's own event writer: it needs no TensorFlow."""

    def __init__(self, workdir: epath.PathLike, step: int = 0) -> None:
        """Files appear below `workdir`; every process but the first writes nothing.

        `step`: where the run goes on. What a run before this one wrote of later steps is removed.
        """
        self._events = None
        if jax.process_index() != 0:
            return
        self._folder = epath.Path(workdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="mser_jax_") if storage.is_remote(workdir) else None
        local = Path(self._temporary.name) if self._temporary else Path(workdir)
        _cut(self._folder / FILE, local / FILE, step)
        self._events = EventFileWriter(os.fspath(local / EVENTS))
        self._lines = (local / FILE).open("a")
        self._local = local
        if step:
            # TensorBoard forgets what older files say of this step and later ones.
            self._events.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._uploader = futures.ThreadPoolExecutor(1, thread_name_prefix="metrics") if self._temporary else None
        self._upload: futures.Future | None = None
        self._uploaded = time.monotonic()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One event and one JSON line; NaN and infinity become null in JSON."""
        if self._events is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=v) for name, v in numbers.items()])
        self._events.add_event(Event(step=step, wall_time=time.time(), summary=summary))
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")
        self._lines.flush()
        if self._uploader and time.monotonic() - self._uploaded > UPLOAD_SECONDS and self._idle():
            self._upload = self._uploader.submit(self._put)
            self._uploaded = time.monotonic()

    def names(self, step: int) -> list[str]:
        """Of all that was written of a step, also by runs before this one; none on other processes."""
        if self._events is None:
            return []
        rows = (json.loads(line) for line in (self._local / FILE).read_text().splitlines())
        return sorted({name for row in rows if row["step"] == step for name in row})

    def flush(self) -> None:
        """Returns when all that was written is safe; where an upload fails it says so, and the next one has it all."""
        if self._events is None:
            return
        self._events.flush()
        if self._uploader:
            self._uploader.submit(self._put).result()
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Flushes both files and lets go of them."""
        if self._events is None:
            return
        self.flush()
        self._events.close()
        self._lines.close()
        if self._uploader:
            self._uploader.shutdown()
            self._temporary.cleanup()
        self._events = None

    def _idle(self) -> bool:
        return self._upload is None or self._upload.done()

    def _put(self) -> None:
        try:
            text = (self._local / FILE).read_text()
            (self._folder / FILE).write_text(text[: text.rfind("\n") + 1])
            for path in sorted((self._local / EVENTS).iterdir()):
                (self._folder / EVENTS / path.name).write_bytes(path.read_bytes())
        except Exception as error:  # of many libraries; metrics must not end a run
            logging.warning("Metrics were not uploaded to %s, next time again: %s", self._folder,
                            storage.explain(error) or error)  # fmt: skip


def _cut(source: epath.Path, target: Path, step: int) -> None:
    """Writes to `target` the whole lines of `source` up to `step`."""
    if not source.exists():
        return
    text = source.read_bytes().decode(errors="replace")
    kept = "".join(f"{line}\n" for line in _until(text, step))
    if kept != text or Path(os.fspath(source)) != target:
        storage.replace(epath.Path(target), kept)


def _until(text: str, step: int) -> Iterator[str]:
    for line in text.splitlines():
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except (ValueError, KeyError, TypeError):  # what was being written when the run was killed, or rotted
            continue
