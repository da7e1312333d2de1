"""Engines by name, with their options, and what identifies one."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Any

from mser_jax.m5ser import prosody
from mser_jax.m5ser.engine import Engine

# Imported when first used.
ENGINES = {"espeak": "mser_jax.m5ser.espeak:EspeakEngine"}


class EngineError(RuntimeError):
    """An engine failed on a line, after its retries; a later run may try the line again."""


def build_engine(name: str, options: Mapping[str, Any]) -> Engine:
    """The engine of a name of ENGINES with its options.

    Raises:
      ValueError: no such engine or option; the nearest one is named.
    """
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}.{_nearest(name, ENGINES)} There is {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    engine = getattr(importlib.import_module(module), attribute)
    known = inspect.signature(engine).parameters
    for option in options:
        if option not in known:
            raise ValueError(
                f"engine {name}: no option {option!r}.{_nearest(option, known)} Options: {', '.join(known)}"
            )
    return engine(**options)


def fingerprint(engine: Engine) -> str:
    """12 hex digits over all that decides how the engine sounds: its name, options, prosody, version."""
    facts = (engine.name, sorted(vars(engine).items()), prosody.TARGETS, prosody.JITTER)
    facts += (importlib.metadata.version("espeakng-loader"),)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
