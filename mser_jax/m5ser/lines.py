"""What the generator passes on: a text, and a line = a text with everything that decides how it sounds."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A sentence in one language.

    id: unique over all texts of a plan.
    text: ordinary orthography.
    language: BCP-47 tag.
    content: canonical emotion of the words alone, "neutral", or "" where nobody said.
    parallel_id: the same words in other languages have the same; "" = none.
    source: the collection it comes from ("xed", "brighter", …).
    license: of the text.
    """

    id: str
    text: str
    language: str
    content: str = ""
    parallel_id: str = ""
    source: str = ""
    license: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One utterance to make.

    engine: name in `engines.ENGINES`.
    engine_print: `engines.fingerprint` of the engine with its options: another model or other options sound
      different, so they are part of the id.
    voice: one of the engine's voices of `text.language`.
    emotion: canonical emotion to speak with.
    intensity: 0 = neutral prosody, 1 = the engine's own idea of the emotion.
    seed: non-negative, below 2**32.
    split: "train" or "validation".
    """

    text: Text
    engine: str
    voice: str
    emotion: str
    intensity: float
    seed: int
    split: str = "train"
    engine_print: str = ""

    @property
    def language(self) -> str:
        """Language of the text."""
        return self.text.language

    @functools.cached_property
    def id(self) -> str:
        """Content hash, 20 hex digits: equal exactly when everything that conditions the sound is equal."""
        facts = (self.engine, self.engine_print, self.voice, self.emotion, self.intensity, self.seed)
        facts += (self.text.text, self.language)
        return hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode()).hexdigest()[:20]
