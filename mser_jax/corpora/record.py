"""The one record schema: what is known of an utterance, from the corpus builder to the result table."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# Units and encodings of every field that a name alone does not tell.
FIELD_NOTES = {
    "audio": "an encoded audio file (FLAC), mono",
    "sampling_rate": "Hz of the encoded audio",
    "duration_s": "seconds",
    "language": "BCP-47",
    "speaker": "unique over corpora, as 'corpus:speaker'",
    "age": "years as text, or ''",
    "emotion_native": "the corpus's own label",
    "emotion": "canonical label of corpora/emotions.py, or '' where none fits",
    "votes": "JSON object label -> votes, or ''",
    "valence": "as published, NaN where missing (likewise arousal, dominance)",
    "parallel_id": "the same words across languages share it, or ''",
    "domain": "'real' or the name of the engine that spoke",
    "split": "'train' | 'validation' | 'test', or '' where the corpus has none",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """One utterance. Missing is '' for text and NaN for numbers; see FIELD_NOTES for units."""

    id: str
    audio: bytes
    sampling_rate: int
    duration_s: float
    language: str
    corpus: str
    speaker: str
    gender: str = ""
    age: str = ""
    emotion_native: str = ""
    emotion: str = ""
    votes: str = ""
    valence: float = math.nan
    arousal: float = math.nan
    dominance: float = math.nan
    transcript: str = ""
    parallel_id: str = ""
    domain: str = "real"
    split: str = ""
    license: str = ""

    def to_example(self) -> dict[str, Any]:
        """The dict that a TFDS builder with `features()` yields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_example(cls, example: dict[str, Any]) -> Utterance:
        """Inverse of `to_example`, from what a TFDS data source returns (bytes and numpy scalars)."""
        return cls(**{f.name: _python(f, example[f.name]) for f in dataclasses.fields(cls)})


def _python(field: dataclasses.Field[Any], value: Any) -> Any:
    if field.type == "str":
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    if field.type == "bytes":
        return bytes(value)
    return {"int": int, "float": float}[str(field.type)](value)


def storable(text: str) -> str:
    """Return text that UTF-8 can hold; other bytes of a file's name and halves of surrogate pairs are escaped."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def text_fields() -> tuple[str, ...]:
    """Names of the string fields, in schema order."""
    return tuple(f.name for f in dataclasses.fields(Utterance) if f.type == "str")


def features() -> tfds.features.FeaturesDict:
    """The TFDS features of an Utterance. Audio is stored as bytes, so no TensorFlow is needed to read it."""
    kinds = {"str": tfds.features.Text, "bytes": tfds.features.Text, "int": np.int32, "float": np.float32}
    out = {}
    for field in dataclasses.fields(Utterance):
        kind = kinds[str(field.type)]
        out[field.name] = kind() if kind is tfds.features.Text else tfds.features.Scalar(kind)
    return tfds.features.FeaturesDict(out)
