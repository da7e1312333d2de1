"""M5SER-mini, the embedded corpus: eight languages, six emotions, eight voices, spoken on first use.

The design is factorial within cells. A cell is one voice in one language; it speaks its share of the
sentences, each in all six emotions, so emotion is exactly balanced over voices, languages, sentences and
the emotion of the words: nothing but the prosody tells it. A sentence with emotional words is heard once
with the matching voice and five times against it. The shares shift from cell to cell, so the same words
come in every language, mostly from different voices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from mser_jax.corpora.builder import CorpusBuilder, RawUtterance
from mser_jax.corpora.emotions import LABEL_SPACES
from mser_jax.m5ser import prosody
from mser_jax.m5ser.espeak import EspeakEngine
from mser_jax.m5ser.texts import Sentence, load_sentences

EMOTIONS = LABEL_SPACES[6]
INTENSITY = (0.7, 1.2)  # drawn uniformly for each utterance
_LICENSE = "Apache-2.0 (sentences by the mser_jax authors, spoken by espeak-ng)"


@dataclasses.dataclass(eq=False, kw_only=True)
class M5serMiniConfig(tfds.core.BuilderConfig):
    """What is spoken. `name`, and so the folder, follows from values, sentences, prosody and espeak version.

    seed: of the choice of sentences and of every utterance's variation.
    train_languages / test_languages: the latter are split "test" as a whole, for zero-shot scores.
    train_voices / validation_voices: espeak-ng variants; in training languages the voice decides the split.
    neutral_sentences, emotional_sentences: sentences of either kind in a cell (voice × language).
    """

    name: str = ""
    seed: int = 0
    train_languages: tuple[str, ...] = ("en", "fr", "de", "it", "zh", "es")
    test_languages: tuple[str, ...] = ("fa", "pl")
    train_voices: tuple[str, ...] = ("m1", "m3", "m7", "f1", "f2", "f4")
    validation_voices: tuple[str, ...] = ("m6", "f3")
    neutral_sentences: int = 7
    emotional_sentences: int = 5

    def __post_init__(self) -> None:
        fields = {k: v for k, v in vars(self).items() if k not in ("name", "version", "description")}
        facts = (sorted(fields.items()), load_sentences(), prosody.TARGETS, prosody.JITTER, INTENSITY)
        facts += (importlib.metadata.version("espeakng-loader"),)
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
        self.name = f"seed{self.seed}_{len(design(self))}_{digest}"


@dataclasses.dataclass(frozen=True)
class Line:
    """One utterance to speak."""

    language: str
    voice: str
    sentence: Sentence
    emotion: str
    split: str

    @property
    def id(self) -> str:
        """language-voice-sentence-content-emotion, e.g. "fr-m1-h03-happy-sad"."""
        return "-".join((self.language, self.voice, self.sentence.id, self.sentence.content, self.emotion))


def design(config: M5serMiniConfig) -> list[Line]:
    """Every utterance of the corpus in the order of its records: cells, then sentences, then emotions.

    Raises:
      ValueError: a cell asks for more sentences than there are, or a language lacks translations.
    """
    sentences, rng = load_sentences(), np.random.default_rng(config.seed)
    neutral = [s for s in sentences if s.content == "neutral"]
    by_content = [[s for s in sentences if s.content == e] for e in EMOTIONS if e != "neutral"]
    # Columns of one sentence of each emotion: any window of them is as mixed as its length allows.
    emotional = [s for column in zip(*by_content, strict=True) for s in column]
    neutral = [neutral[i] for i in rng.permutation(len(neutral))]
    voices = (*config.train_voices, *config.validation_voices)
    languages = (*config.train_languages, *config.test_languages)
    if unknown := set(languages) - set(sentences[0].texts):
        raise ValueError(f"no translations into {sorted(unknown)}; sentences.tsv has {list(sentences[0].texts)}")
    lines = []
    for i, language in enumerate(languages):
        for j, voice in enumerate(voices):
            split = "train" if voice in config.train_voices else "validation"
            split = "test" if language in config.test_languages else split
            chosen = _share(neutral, config.neutral_sentences, i + j)
            chosen += _share(emotional, config.emotional_sentences, i + j)
            lines += [Line(language, voice, s, e, split) for s in chosen for e in EMOTIONS]
    return lines


def _share(sentences: list[Sentence], count: int, cell: int) -> list[Sentence]:
    """`count` sentences in a row, starting where the previous cell's share ended."""
    if count > len(sentences):
        raise ValueError(f"a cell asks for {count} of {len(sentences)} sentences; lower the config's counts")
    return [sentences[(cell * count + k) % len(sentences)] for k in range(count)]


class M5serMini(CorpusBuilder):
    """TFDS builder `m5ser_mini`; nothing is downloaded."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [M5serMiniConfig()]  # noqa: RUF012 - TFDS reads a class attribute
    DESCRIPTION = "Short sentences in eight languages and six emotions, spoken by espeak-ng with rule-based prosody."

    @classmethod
    def from_argument(cls, argument: str, data_dir: str = "") -> M5serMini:
        """Builder for "m5ser_mini:field=value;field=value" (fields of M5serMiniConfig, tuples joined by "+").

        Example: "m5ser_mini:seed=1;neutral_sentences=2;train_voices=m1+f1".

        Raises:
          ValueError: no such field, or a value of the wrong type.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(M5serMiniConfig) if f.default is not None}
        changed = {}
        for pair in filter(None, argument.split(";")):
            name, _, value = pair.partition("=")
            try:
                kind = {int: int, tuple: lambda v: tuple(v.split("+"))}[type(defaults[name])]
                changed[name] = kind(value)
            except (KeyError, ValueError):
                fields = ", ".join(k for k, v in defaults.items() if isinstance(v, int | tuple))
                raise ValueError(f"m5ser_mini: {pair!r} is no setting; write field=value with {fields}") from None
        return cls(config=M5serMiniConfig(**changed), data_dir=data_dir or None)

    def expected_count(self) -> int:
        """Number of utterances of the design."""
        return len(design(self.builder_config))

    def raw_utterances(self) -> Iterator[RawUtterance]:
        """Speaks the design line by line."""
        engine, seed = EspeakEngine(), self.builder_config.seed
        for line in design(self.builder_config):
            # A hash of the id, not a counter: an utterance sounds the same in a smaller or larger design.
            digest = hashlib.sha256(f"{seed}:{line.id}".encode()).digest()
            speech = engine.speak(
                text := line.sentence.texts[line.language],
                language=line.language,
                voice=line.voice,
                emotion=line.emotion,
                intensity=float(np.random.default_rng(list(digest)).uniform(*INTENSITY)),
                seed=int.from_bytes(digest[:4], "big"),
            )
            yield RawUtterance(
                id=line.id,
                audio=speech.waveform,
                sampling_rate=speech.sampling_rate,
                language=line.language,
                corpus="m5ser_mini",
                speaker=f"m5ser_mini:{line.voice}",
                gender={"m": "male", "f": "female"}.get(line.voice[0], ""),
                emotion_native=line.emotion,
                emotion=line.emotion,
                transcript=text,
                parallel_id=line.sentence.id,
                domain=engine.name,
                split=line.split,
                license=_LICENSE,
            )
