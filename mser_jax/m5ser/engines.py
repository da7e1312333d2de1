"""Engines by name, with their options, and what identifies one."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

from mser_jax.m5ser.engine import Engine, UnsupportedSpeechError

# Imported when first used.
ENGINES = {
    "espeak": "mser_jax.m5ser.espeak:EspeakEngine",
    "kokoro": "mser_jax.m5ser.kokoro:KokoroEngine",
    "openai_http": "mser_jax.m5ser.openai_http:OpenAIEngine",
    "command": "mser_jax.m5ser.command:CommandEngine",
}


class EngineError(RuntimeError):
    """An engine failed on a line, after its retries; a later run may try the line again."""


class EngineUnavailableError(RuntimeError):
    """An engine would fail on every line (no server, a refused key, a missing program): the run must stop."""


def build_engine(name: str, options: Mapping[str, Any]) -> Engine:
    """The engine of a name of ENGINES with its options.

    An option `engine` names the engine where `name` is only what a section of a config is called, so that a plan may
    have two servers: build_engine("qwen", {"engine": "openai_http", …}).

    Raises:
      ValueError: no such engine or option (the nearest one is named), one is missing, or a package is.
    """
    kind, options = options.get("engine", name), {k: v for k, v in options.items() if k != "engine"}
    if kind not in ENGINES:
        raise ValueError(f"no engine {kind!r}.{_nearest(kind, ENGINES)} There is {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[kind].partition(":")
    engine = getattr(importlib.import_module(module), attribute)
    known = inspect.signature(engine).parameters
    for option in options:
        if option not in known:
            raise ValueError(
                f"engine {name}: no option {option!r}.{_nearest(option, known)} Options: {', '.join(known) or 'none'}"
            )
    needed = [key for key, parameter in known.items() if parameter.default is parameter.empty]
    if missing := [key for key in needed if options.get(key) in (None, "", [], ())]:
        raise ValueError(f"engine {name}: option {missing[0]!r} is missing")
    try:
        return engine(**options)
    except ImportError as error:
        raise ValueError(f"engine {name}: {error}") from error


def fingerprint(engine: Engine) -> str:
    """12 hex digits over all that decides how the engine sounds.

    That is its name and what its method `facts` returns (anything with a stable repr): options, prosody, version, but
    not where its server is or how often it is asked. Without the method: all of the object's attributes.
    """
    facts = engine.facts() if hasattr(engine, "facts") else (sorted(vars(engine).items()),)
    return hashlib.sha256(repr((engine.name, *facts)).encode()).hexdigest()[:12]


def voice_table(languages: str, voices: str | Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Language -> its voices, of an engine that cannot be asked for them.

    Args:
      languages: "en,de", where every voice speaks all of them; else "".
      voices: "anna,ben"; or by language, "en: anna, ben; de: carla" or {"en": "anna,ben", "de": "carla"}.

    Raises:
      ValueError: no language or no voice.
    """
    if isinstance(voices, str) and ":" in voices:
        voices = {tag: listed for tag, _, listed in (row.partition(":") for row in voices.split(";"))}
    if isinstance(voices, str):
        table = {tag: _names(voices) for tag in _names(languages)}
    else:
        table = {tag.strip(): _names(listed) for tag, listed in voices.items()}
    told = set(_names(languages))
    if not table or not all(table.values()) or (told and told != set(table)):
        raise ValueError(
            f"languages={languages!r} and voices={voices!r} do not say which voices speak which languages; write "
            "languages='en,de' and voices='anna,ben', or voices='en: anna, ben; de: carla'"
        )
    return table


def voices_of(table: Mapping[str, tuple[str, ...]], language: str, engine: str) -> tuple[str, ...]:
    """A row of the table. Raises UnsupportedSpeechError: the language is not there."""
    if language not in table:
        raise UnsupportedSpeechError(f"{engine} does not speak {language!r}; there is {', '.join(sorted(table))}")
    return table[language]


def check_voice(table: Mapping[str, tuple[str, ...]], language: str, voice: str, engine: str) -> None:
    """Raises UnsupportedSpeechError: the engine lacks the language, or the voice in it."""
    if voice not in voices_of(table, language, engine):
        raise UnsupportedSpeechError(
            f"{engine} has no voice {voice!r} in {language!r}; there is {', '.join(table[language])}"
        )


def secret(variable: str) -> str:
    """An environment variable's value, "" for the variable "".

    Raises:
      ValueError: it is not set.
    """
    if variable and not os.environ.get(variable):
        raise ValueError(f"the environment variable {variable} is not set; put the server's key there")
    return os.environ[variable] if variable else ""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
