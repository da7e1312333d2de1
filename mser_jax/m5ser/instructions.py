"""An emotion and its intensity in words, for engines that are told how to speak."""

from __future__ import annotations

import functools
import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path

from mser_jax import storage
from mser_jax.m5ser.engine import UnsupportedSpeechError

OWN = Path(__file__).with_name("instructions.toml")
_DEGREES = (0.5, 0.85, 1.15)  # upper bounds of all but the last


class Instructions:
    """The sentences of a TOML file of the form of instructions.toml (the default)."""

    def __init__(self, path: str = "", language: str = "en"):
        """language: of the words; "own": that of the text, and English where the file lacks it.

        Raises:
          ValueError: there is no such file, or it is not of that form, or lacks the language.
        """
        self._path, self._language = path or str(OWN), language
        self._table = _load(self._path)
        if language != "own" and language not in self._table:
            raise ValueError(f"{self._path} has no instructions in {language!r}; there is {', '.join(self._table)}")

    def fill(self, *, language: str, emotion: str, intensity: float, seed: int) -> str:
        """What to tell the engine.

        Raises:
          UnsupportedSpeechError: the file has no words for the emotion.
        """
        wanted = language if self._language == "own" else self._language
        section = self._table.get(wanted) or self._table.get(wanted.partition("-")[0]) or self._table["en"]
        if emotion not in section:
            known = ", ".join(sorted(set(section) - {"degrees"}))
            raise UnsupportedSpeechError(f"{self._path} has no words for {emotion!r}; there is {known}")
        sentences = section["neutral"] if intensity == 0 and "neutral" in section else section[emotion]
        degree = section["degrees"][sum(intensity >= bound for bound in _DEGREES)]
        # Not seed % n: that of neighbouring lines may have a pattern.
        choice = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big") % len(sentences)
        return sentences[choice].format(
            degree=degree, intensity=f"{intensity:g}", emotion=emotion, language=language
        )  # fmt: skip

    def facts(self) -> tuple:
        """What decides the words."""
        return self._language, sorted((tag, sorted(section.items())) for tag, section in self._table.items())


@functools.cache
def _load(path: str) -> Mapping[str, Mapping[str, list[str]]]:
    try:
        table = tomllib.loads(storage.absolute(path).read_text())
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path} with instructions") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if "en" not in table:
        raise ValueError(f"{path}: the section [en] is missing, which other languages fall back on")
    for tag, section in table.items():
        lists = isinstance(section, dict) and all(isinstance(v, list) and v for v in section.values())
        if not lists or len(section.get("degrees", ())) != len(_DEGREES) + 1:
            raise ValueError(
                f"{path}: section [{tag}] must have degrees = [four adverbs] and lists of sentences by emotion"
            )
        for emotion in set(section) - {"degrees"}:
            for sentence in section[emotion]:
                try:
                    sentence.format(degree="", intensity="", emotion="", language="")
                except (KeyError, IndexError, ValueError) as error:
                    raise ValueError(
                        f"{path}: [{tag}] {emotion}: {sentence!r} may only use {{degree}}, {{intensity}}, {{emotion}}, "
                        "{language}"
                    ) from error
    return table
