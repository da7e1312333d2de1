"""Tells of compilations before they begin: minutes without a word look like a hang."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from absl import logging

from mser_jax.telemetry.throughput import duration

T = TypeVar("T")


class Compilations:
    """The programs of a run, each known by its name and the shapes of the batches that it has met."""

    def __init__(self) -> None:
        self._met: set[Any] = set()

    def call(self, what: str, function: Callable[..., T], *args: Any, batch: Mapping[str, Any]) -> tuple[T, float]:
        """Call `function(*args)`, with a line before and one after where it has to be compiled for `batch`.

        Returns:
            Its value; the seconds that the call took where it compiled, else 0.
        """
        shapes = {name: tuple(array.shape) for name, array in batch.items()}
        key = what, tuple(sorted(shapes.items()))
        if key in self._met:
            return function(*args), 0.0
        self._met.add(key)
        largest = max(shapes, key=lambda name: math.prod(shapes[name]))
        logging.info("Compiling %s (%s %s); this may take minutes", what, largest, list(shapes[largest]))
        begin = time.monotonic()
        value = function(*args)
        seconds = time.monotonic() - begin
        logging.info("Compiled %s in %s", what, duration(seconds))
        return value, seconds
