"""What every speech engine offers to the generator: one call that speaks, and what it is able to speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np


class UnsupportedSpeechError(ValueError):
    """An engine was asked for a language, voice or emotion that it lacks; the message lists what there is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speech:
    """What an engine returns.

    waveform: float32 [samples] in [-1, 1], mono.
    sampling_rate: Hz.
    metadata: everything that conditioned the rendering (engine, voice, prosody values …), for manifests.
    """

    waveform: np.ndarray
    sampling_rate: int
    metadata: Mapping[str, str | float]


@runtime_checkable
class Engine(Protocol):
    """A text-to-speech engine. The same arguments give the same samples, in any order and in any process.

    name: what records carry as `domain`.
    """

    name: str

    def languages(self) -> tuple[str, ...]:
        """Language tags (BCP-47, lower case) that `speak` accepts."""
        ...

    def voices(self, language: str) -> tuple[str, ...]:
        """Voices that can speak `language`.

        Raises:
          UnsupportedSpeechError: unknown language.
        """
        ...

    def speak(self, text: str, *, language: str, voice: str, emotion: str, intensity: float, seed: int) -> Speech:
        """Speaks `text` (ordinary orthography of `language`) with an emotion.

        Args:
          text: one sentence.
          language: a tag of `languages()`.
          voice: a name of `voices(language)`.
          emotion: canonical emotion.
          intensity: 0 = neutral prosody, 1 = the engine's own idea of the emotion; any value ≥ 0 is allowed.
          seed: non-negative; chooses the rendering's own variation.

        Raises:
          UnsupportedSpeechError: a language, voice or emotion that the engine lacks.
        """
        ...
