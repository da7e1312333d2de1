"""What is to be spoken, as arithmetic: line n of a factorial of texts, voices, intensities and emotions.

A *block* is one text spoken by one voice at one intensity with every emotion; nothing but the emotion varies in it, so
emotion is exactly balanced over texts (and what their words say), languages, voices, engines and intensities in any
number of whole blocks. A *round* is one block of every language. A plan is a number of rounds, and the first rounds of
it are the same however many follow: a limit cuts it, and a higher one goes on from there. Within a language the blocks
walk all texts, each time with the next voice, until every text was spoken by every voice at every intensity; then a
new take begins, with other seeds. Any line is found by division, so a chunk of them is known wherever the texts are.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from etils import epath

from mser_jax import storage
from mser_jax.corpora import emotions as emotions_lib
from mser_jax.m5ser.lines import Line, Text

PLAN_FILE = "plan.json"
TEXTS_FILE = "texts.parquet"
_SAVED = ("emotions", "intensities", "seed", "chunk_utterances", "rounds", "texts_left_out", "seconds")


class PlanError(ValueError):
    """No plan can be made of this, or another plan is in the folder; the message says what to change."""


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice of an engine (its name in ENGINES, and fingerprint); `split` is that of all it says."""

    engine: str
    engine_print: str
    name: str
    split: str = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Texts and voices of every language, and how many rounds of blocks are spoken.

    texts, voices: by language, in the order in which they are gone through; neither may be empty.
    emotions: canonical. intensities: levels, each with the same share of blocks.
    chunk_utterances: of what is made, kept or repeated as a whole; a multiple of the emotions.
    texts_left_out: language -> reason -> number, for the report.
    seconds: language -> of audio that passes, of a planned block: in any case, and more a character of its text;
      empty where nobody asked.
    """

    texts: Mapping[str, Sequence[Text]]
    voices: Mapping[str, Sequence[Voice]]
    emotions: Sequence[str]
    intensities: Sequence[float]
    seed: int
    chunk_utterances: int
    rounds: int = 0
    texts_left_out: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    @property
    def languages(self) -> tuple[str, ...]:
        """In the order of the blocks of a round."""
        return tuple(self.texts)

    @property
    def round_utterances(self) -> int:
        """Lines of a round."""
        return len(self.texts) * len(self.emotions)

    def __len__(self) -> int:
        return self.rounds * self.round_utterances

    @property
    def num_chunks(self) -> int:
        """Chunks, the last of which may be shorter."""
        return -(-len(self) // self.chunk_utterances)

    def chunk(self, number: int) -> list[Line]:
        """Lines of a chunk."""
        return [self.line(n) for n in self.chunk_range(number)]

    def chunk_range(self, number: int) -> range:
        """Numbers of the lines of a chunk."""
        begin = number * self.chunk_utterances
        return range(begin, min(begin + self.chunk_utterances, len(self)))

    def block_text(self, language: str, round_: int) -> Text:
        """The text of a language's block in a round."""
        return self.texts[language][round_ % len(self.texts[language])]

    def line(self, number: int) -> Line:
        """Line `number`, of any number of rounds (the plan's own do not limit it)."""
        block, which = divmod(number, len(self.emotions))
        round_, row = divmod(block, len(self.texts))
        language = self.languages[row]
        texts, voices, levels = self.texts[language], self.voices[language], len(self.intensities)
        take, round_ = divmod(round_, len(texts) * len(voices) * levels)
        walk, t = divmod(round_, len(texts))
        # The next voice in every walk through the texts; shifted by language, so that parallel texts meet other voices.
        v = (t + walk + row) % len(voices)
        # The voice comes around every len(voices) walks: then the next level.
        level = (walk // len(voices) + t // len(voices) + v) % levels
        text, voice, emotion = texts[t], voices[v], self.emotions[which]
        # A hash, not a counter: an utterance sounds the same in a smaller or larger plan.
        facts = (self.seed, text.id, voice.engine, voice.name, emotion, self.intensities[level], take)
        digest = hashlib.sha256(json.dumps(facts).encode()).digest()
        return Line(
            text=text, engine=voice.engine, engine_print=voice.engine_print, voice=voice.name, emotion=emotion,
            intensity=self.intensities[level], seed=int.from_bytes(digest[:4], "big"), split=voice.split,
        )  # fmt: skip

    def with_utterances(self, count: int) -> Plan:
        """The plan cut to `count` utterances, rounded down to whole rounds, at least one."""
        return dataclasses.replace(self, rounds=max(count // self.round_utterances, 1))

    def with_hours(self, hours: float) -> Plan:
        """The plan cut to about `hours` of audio that passes the filters, by `seconds`; at least one round."""
        step = 1 << 14
        rounds, wanted = 0, hours * 3600
        while wanted > 0:
            blocks = np.zeros(step)
            for language, (base, per_character) in self.seconds.items():
                lengths = np.array([len(text.text) for text in self.texts[language]])
                blocks += base + per_character * lengths[np.arange(rounds, rounds + step) % len(lengths)]
            ends = np.cumsum(blocks)
            within = int(np.searchsorted(ends, wanted))
            rounds, wanted = rounds + within, (wanted - ends[-1] if within == step else 0.0)
        return dataclasses.replace(self, rounds=max(rounds, 1))

    @functools.cached_property
    def fingerprint(self) -> str:
        """12 hex digits of all that decides line n; not of how many are spoken."""
        facts = [self.seed, list(self.emotions), list(self.intensities), self.chunk_utterances]
        facts += [[language, [dataclasses.astuple(v) for v in voices]] for language, voices in self.voices.items()]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for texts in self.texts.values():
            for text in texts:
                digest.update(json.dumps(dataclasses.astuple(text)).encode())
        return digest.hexdigest()[:12]

    def save(self, folder: epath.Path) -> None:
        """Writes the plan; texts first, so that a plan.json that is there can be read."""
        rows = [dataclasses.asdict(text) for texts in self.texts.values() for text in texts]
        buffer = io.BytesIO()
        pa.parquet.write_table(pa.Table.from_pylist(rows), buffer)
        storage.replace(folder / TEXTS_FILE, buffer.getvalue())
        facts = {
            "fingerprint": self.fingerprint, "rounds": self.rounds, "utterances": len(self), "seed": self.seed,
            "emotions": list(self.emotions), "intensities": list(self.intensities),
            "chunk_utterances": self.chunk_utterances, "texts_left_out": self.texts_left_out, "seconds": self.seconds,
            "voices": {language: [dataclasses.asdict(v) for v in voices] for language, voices in self.voices.items()},
        }  # fmt: skip
        storage.replace(folder / PLAN_FILE, json.dumps(facts, indent=1) + "\n")


def load(folder: epath.Path) -> Plan:
    """The plan that was saved in `folder`."""
    facts = json.loads((folder / PLAN_FILE).read_text())
    texts: dict[str, list[Text]] = {language: [] for language in facts["voices"]}
    for row in pa.parquet.read_table(io.BytesIO((folder / TEXTS_FILE).read_bytes())).to_pylist():
        texts[row["language"]].append(Text(**row))
    return Plan(
        texts=texts,
        voices={language: [Voice(**voice) for voice in voices] for language, voices in facts["voices"].items()},
        **{name: facts[name] for name in _SAVED},
    )


def make(
    texts: Iterable[Text],
    voices: Mapping[str, Sequence[Voice]],
    *,
    emotions: Sequence[str],
    intensities: Sequence[float],
    seed: int,
    chunk_utterances: int,
) -> Plan:
    """A plan without rounds yet, of texts in the languages of `voices`.

    Texts that every language has in parallel come first, in the same order everywhere, so that any cut has them; the
    others follow in an order that their ids and the seed decide.

    Raises:
      PlanError: a language without texts or voices, an emotion that is not canonical, a wrong intensity.
    """
    by_language: dict[str, list[Text]] = {language: [] for language in voices}
    for text in texts:
        if text.language in by_language:
            by_language[text.language].append(text)
    for language in voices:
        if not by_language[language] or not voices[language]:
            lacking = "texts" if not by_language[language] else "voices"
            raise PlanError(f"no {lacking} for language {language!r}: give some, or take it out of config.languages")
    for emotion in emotions:
        if emotion not in emotions_lib.EMOTIONS:
            raise PlanError(f"emotion {emotion!r} is none of {', '.join(emotions_lib.EMOTIONS)}")
    if len(set(emotions)) != len(emotions) or len(emotions) < 2:
        raise PlanError(f"emotions {','.join(emotions)!r}: expected at least two, each once")
    if not intensities or not all(0 < level < float("inf") for level in intensities):
        raise PlanError(f"intensities {tuple(intensities)}: expected positive numbers")
    owners = collections.defaultdict(set)
    for text in (text for texts_ in by_language.values() for text in texts_):
        owners[text.parallel_id].add(text.language)

    def order(text: Text) -> tuple[bool, str]:
        parallel = bool(text.parallel_id) and len(owners[text.parallel_id]) == len(voices)
        name = text.parallel_id if parallel else text.id
        return not parallel, hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    return Plan(
        texts={language: sorted(found, key=order) for language, found in by_language.items()},
        voices=dict(voices), emotions=tuple(emotions), intensities=tuple(intensities), seed=seed,
        chunk_utterances=max(chunk_utterances // len(emotions), 1) * len(emotions),
    )  # fmt: skip
