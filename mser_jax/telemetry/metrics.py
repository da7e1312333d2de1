"""Metrics to TensorBoard event files and `metrics.jsonl`, from process 0."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class MetricWriter:
    """Writes {name: number} by step. TensorBoard's own event writer: it needs no TensorFlow."""

    def __init__(self, workdir: epath.PathLike) -> None:
        """Files appear below `workdir`; every process but the first writes nothing."""
        self._events = self._lines = None
        if jax.process_index() == 0:
            folder = epath.Path(workdir)
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventFileWriter(os.fspath(folder / "tensorboard"))
            self._lines = (folder / "metrics.jsonl").open("a")

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

    def close(self) -> None:
        """Flushes both files."""
        if self._events is not None:
            self._events.close()
            self._lines.close()
