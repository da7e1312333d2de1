"""Captions and zero-shot prompts from the templates of prompts.toml."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mser_jax.corpora import persons
from mser_jax.data.text import get_tokenizer, hash31

KINDS = ("emotion", "facts", "acoustics")

# Words for pitch, loudness and rate are given below the first and above the second of these quantiles.
QUANTILES = (0.3, 0.7)


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    """prompts.toml, parsed once: prompt language -> templates and words."""
    return tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))


def prompt_languages() -> tuple[str, ...]:
    """The languages that have templates, in the order of the file."""
    return tuple(_tables())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a caption may tell of an utterance. Missing is "" (text) or 0 (levels).

    emotion: a canonical emotion, or any English word. language: BCP-47. gender: a word of
      corpora/persons.py, or "".
    age: years as text. pitch, loudness, rate: -1 low, 1 high, 0 neither or unknown (see `levels`).
    """

    emotion: str
    language: str = ""
    gender: str = ""
    age: str = ""
    pitch: int = 0
    loudness: int = 0
    rate: int = 0
    transcript: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How captions are drawn.

    kinds: weight of each kind of caption ("emotion", "facts", "acoustics"); a kind that an utterance lacks
      the facts for falls back to "emotion".
    languages: prompt languages, drawn alike; an emotion outside the tables is always put in English.
    transcript_probability: how often the transcript is appended where there is one.
    """

    kinds: tuple[tuple[str, float], ...] = (("emotion", 2.0), ("facts", 1.0), ("acoustics", 1.0))
    languages: tuple[str, ...] = ("en", "fr", "de", "it", "zh", "es")
    transcript_probability: float = 0.0

    def __post_init__(self) -> None:
        names = dict(self.kinds)
        if set(names) - set(KINDS) or not any(names.values()) or min(names.values()) < 0:
            raise ValueError(f"captions.kinds={self.kinds}: expected weights ≥ 0, one of them > 0, for some of {KINDS}")
        check_languages(self.languages)
        if not 0 <= self.transcript_probability <= 1:
            raise ValueError(f"captions.transcript_probability={self.transcript_probability}: expected a probability")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """The text of stage 1's batches (pipeline.TextMaker): a caption for each row, its tokens and its identity.

    tokenizer: see `text.get_tokenizer`. max_tokens: longer captions are cut.
    """

    options: CaptionOptions = dataclasses.field(default_factory=CaptionOptions)
    tokenizer: str = "byt5"
    max_tokens: int = 96

    def __call__(
        self, facts: Sequence[Facts], rngs: Sequence[np.random.Generator], step_rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """tokens int32 [n, max_tokens], token_mask bool [n, max_tokens], caption_id int32 [n]."""
        del step_rng
        texts = [caption(one, rng, self.options) for one, rng in zip(facts, rngs, strict=True)]
        tokens, mask = get_tokenizer(self.tokenizer).encode(texts, self.max_tokens)
        return {
            "tokens": tokens,
            "token_mask": mask,
            "caption_id": np.array([hash31(text) for text in texts], np.int32),
        }

    def every_text(self, emotions: Sequence[str]) -> list[str] | None:
        """All captions of utterances with these emotions, each once; None where facts or transcripts come into them."""
        weights = dict(self.options.kinds)
        if self.options.transcript_probability or any(weights.get(kind) for kind in KINDS if kind != "emotion"):
            return None
        # English stands in for a language that has no word for an emotion.
        languages = tuple(dict.fromkeys((*self.options.languages, "en")))
        return list(dict.fromkeys(text for emotion in emotions for text in label_prompts(emotion, languages)))

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """{name: (shape of a row, dtype)} of the longest batch."""
        tokens = (self.max_tokens,)
        return {"tokens": (tokens, np.int32), "token_mask": (tokens, np.bool_), "caption_id": ((), np.int32)}


def check_languages(languages: Sequence[str]) -> None:
    """Raises ValueError unless every one of `languages` has templates."""
    unknown = [language for language in languages if language not in _tables()]
    if unknown or not languages:
        raise ValueError(f"prompt languages {tuple(languages)}: expected some of {prompt_languages()}")


def levels(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """-1, 0 or 1 (int8 [n]): below, within or above the .3 and .7 quantiles of the value's own group.

    values: float [n], NaN = unknown (gives 0). groups: any [n], the corpus or (corpus, language) of each row.
    """
    out = np.zeros(len(values), np.int8)
    for group in np.unique(groups):
        rows = (groups == group) & np.isfinite(values)
        if rows.any():
            low, high = np.quantile(values[rows], QUANTILES)
            out[rows] = (values[rows] > high).astype(np.int8) - (values[rows] < low)
    return out


def caption(facts: Facts, rng: np.random.Generator, options: CaptionOptions) -> str:
    """One caption of an utterance, drawn by `rng`: kind, prompt language, template.

    Raises:
        ValueError: the emotion is empty.
    """
    tables = _tables()
    language = options.languages[int(rng.integers(len(options.languages)))]
    table = tables[language if facts.emotion in tables[language]["emotions"] else "en"]
    kind = draw(options.kinds, rng.random())
    extra = (
        _facts_words(facts, table) if kind == "facts" else _acoustic_words(facts, table) if kind == "acoustics" else {}
    )
    if kind != "emotion" and extra is None:
        kind, extra = "emotion", {}
    text = _pick(table["templates"][kind], rng).format(**_emotion_words(facts.emotion, table), **extra)
    if facts.transcript and rng.random() < options.transcript_probability:
        said = _pick(table["templates"]["transcript"], rng).format(transcript=facts.transcript)
        text = f"{text} {said}"
    return text[0].upper() + text[1:]


def label_prompts(label: str, languages: Sequence[str] | None = None) -> list[str]:
    """The evaluation ensemble of a label: its emotion-alone captions in `languages` (default: all).

    `label` is a canonical emotion, or any English word: then only the English templates are used, with it as
    it is.

    Raises:
        ValueError: an empty label or an unknown prompt language.
    """
    languages = prompt_languages() if languages is None else tuple(languages)
    check_languages(languages)
    tables = [_tables()[name] for name in languages if label in _tables()[name]["emotions"]] or [_tables()["en"]]
    texts = []
    for table in tables:
        words = _emotion_words(label, table)
        texts += [template.format(**words) for template in table["templates"]["emotion"]]
    # Two languages may share one ("Emotion: neutral."): it counts once.
    return list(dict.fromkeys(text[0].upper() + text[1:] for text in texts))


def common_languages(labels: Sequence[str], languages: Sequence[str]) -> tuple[str, ...]:
    """Choose the languages of an ensemble: those of `languages` with words for every label, else English alone.

    So all labels are put in the same templates, and no label's anchor is the mean of more languages than another's.

    Raises:
        ValueError: an unknown prompt language.
    """
    check_languages(languages)
    known = [language for language in languages if all(has_emotion(label, language) for label in labels)]
    return tuple(known) or ("en",)


def label_word(emotion: str, language: str) -> str:
    """The noun for an emotion ("anger", "Wut"); one that is in no table stays what it is."""
    return _emotion_words(emotion, _tables()[language if has_emotion(emotion, language) else "en"])["label"]


def has_emotion(emotion: str, language: str) -> bool:
    """Whether `language` has words for this emotion."""
    return emotion in _tables()[language]["emotions"]


def language_word(tag: str, language: str) -> str | None:
    """The name of the language `tag` (BCP-47), or None where it has none."""
    return _tables()[language]["languages"].get(tag.split("-")[0].lower())


def acoustic_words(facts: Facts, language: str) -> str | None:
    """What stands out in the voice ("high-pitched and loud"), or None where nothing does."""
    found = _acoustic_words(facts, _tables()[language])
    return found and found["acoustics"]


def all_words(kind: str, language: str) -> list[str]:
    """Every `label_word` ("emotion"), `language_word` ("language") or `acoustic_words` ("acoustics"); else none."""
    table = _tables()[language]
    if kind == "emotion":
        return [words["label"] for words in table["emotions"].values()]
    if kind == "language":
        return list(table["languages"].values())
    if kind != "acoustics":
        return []
    levels_of_voice = itertools.product((-1, 0, 1), repeat=3)
    voices = (Facts(emotion="", pitch=p, loudness=v, rate=r) for p, v, r in levels_of_voice)
    return [words for voice in voices if (words := acoustic_words(voice, language))]


def draw(weights: Sequence[tuple[str, float]], uniform: float) -> str:
    """One of the names, by their weights and a number in [0, 1)."""
    target = uniform * sum(weight for _, weight in weights)
    for name, weight in weights:
        target -= weight
        if target < 0:
            return name
    return max(weights, key=lambda pair: pair[1])[0]


def _pick(templates: Sequence[str], rng: np.random.Generator) -> str:
    return templates[int(rng.integers(len(templates)))]


def _emotion_words(emotion: str, table: Mapping[str, Any]) -> dict[str, str]:
    if not emotion:
        raise ValueError("A caption needs an emotion; got ''. Filter unlabelled records out of the mixture.")
    words = table["emotions"].get(emotion)
    return words or {form: text.format(label=emotion) for form, text in table["other"].items()}


def _facts_words(facts: Facts, table: Mapping[str, Any]) -> dict[str, str] | None:
    """Words for {language} and {speaker}, or None where the language has no name in this table."""
    name = table["languages"].get(facts.language.split("-")[0].lower())
    return name and {"language": name, "speaker": _speaker(facts, table)}


def _speaker(facts: Facts, table: Mapping[str, Any]) -> str:
    gender = persons.gender(facts.gender)
    gender = gender if gender in ("female", "male") else "person"
    years = int(facts.age) if facts.age.isdecimal() else None
    if years is not None and years < 14:
        return table["speakers"]["child"]
    if gender != "person" and years is not None:
        gender = f"young_{gender}" if years < 30 else f"older_{gender}" if years >= 60 else gender
    return table["speakers"][gender]


def _acoustic_words(facts: Facts, table: Mapping[str, Any]) -> dict[str, str] | None:
    """Words for {acoustics} and {speaker}, or None where nothing stands out."""
    words = table["acoustics"]
    named = [words[name][level > 0] for name in ("pitch", "loudness", "rate") if (level := getattr(facts, name))]
    if not named:
        return None
    listed = words["join"].join(named[:-1])
    return {
        "acoustics": f"{listed}{words['last']}{named[-1]}" if listed else named[-1],
        "speaker": _speaker(facts, table),
    }
