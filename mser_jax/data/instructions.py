"""Questions about utterances and their answers, from instructions.toml and the words of prompts.toml."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mser_jax.data import prompts
from mser_jax.data.chat import get_chat

# A batch's `task` is the position in this tuple.
KINDS = ("emotion", "language", "acoustics", "transcript")
# The kind that long sequences are for; all others are short.
LONG = "transcript"


@functools.cache
def _tables() -> dict[str, dict[str, list[str]]]:
    return tomllib.loads(Path(__file__).with_name("instructions.toml").read_text(encoding="utf-8"))


def languages() -> tuple[str, ...]:
    """The languages that have questions, in the order of the file."""
    return tuple(_tables())


def questions(kind: str, language: str) -> tuple[str, ...]:
    """The paraphrases of one of KINDS in one of `languages()`."""
    return tuple(_tables()[language][kind])


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A question and its answer; `kind` is one of KINDS."""

    kind: str
    question: str
    answer: str


def instruction(
    facts: prompts.Facts, rng: np.random.Generator, kinds: Sequence[tuple[str, float]], among: Sequence[str]
) -> Instruction:
    """One question about an utterance, drawn by `rng`: its kind, its language (alike) and its words.

    A kind that the utterance lacks the facts for becomes "emotion"; an emotion outside the tables is asked for in
    English.

    Args:
        facts: of the utterance.
        rng: draws.
        kinds: (one of KINDS, weight).
        among: languages of the question.

    Raises:
        ValueError: the emotion is empty.
    """
    language = among[int(rng.integers(len(among)))]
    kind = prompts.draw(kinds, rng.random())
    answer = _answer(kind, facts, language)
    if not answer:
        kind, language = "emotion", language if prompts.has_emotion(facts.emotion, language) else "en"
        answer = prompts.label_word(facts.emotion, language)
    asked = questions(kind, language)
    return Instruction(kind, asked[int(rng.integers(len(asked)))], answer)


def _answer(kind: str, facts: prompts.Facts, language: str) -> str | None:
    """None or "" where it is not known. "emotion" is left to the caller."""
    if kind == "language":
        return prompts.language_word(facts.language, language)
    if kind == "acoustics":
        return prompts.acoustic_words(facts, language)
    return facts.transcript.strip() if kind == LONG else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionOptions:
    """What is asked, and in how much room.

    kinds: (one of KINDS, weight). A step is long with the share of LONG among all weights; its rows then all ask for
      the transcript, those of a short step draw among the other kinds.
    languages: of the questions.
    short, long: (tokens of a row, speech and answer included; tokens of its answer) of either kind of step.
    """

    kinds: tuple[tuple[str, float], ...] = (("emotion", 2.0), ("language", 1.0), ("acoustics", 1.0), (LONG, 1.0))
    languages: tuple[str, ...] = ("en", "fr", "de", "it", "zh", "es")
    short: tuple[int, int] = (112, 48)
    long: tuple[int, int] = (192, 128)

    def __post_init__(self) -> None:
        names = dict(self.kinds)
        if set(names) - set(KINDS) or not any(names.values()) or min(names.values()) < 0:
            raise ValueError(f"tasks={names}: expected weights ≥ 0, one of them > 0, for some of {KINDS}")
        prompts.check_languages(self.languages)
        for name, room in (("short", self.short), ("long", self.long)):
            if len(room) != 2 or not 0 < room[1] < room[0]:
                raise ValueError(f"sequences.{name}={room}: expected (tokens, tokens of the answer), the latter fewer")

    @property
    def long_share(self) -> float:
        """How often a step is long."""
        return dict(self.kinds).get(LONG, 0.0) / sum(weight for _, weight in self.kinds)

    @property
    def short_kinds(self) -> tuple[tuple[str, float], ...]:
        """The kinds of short steps, with their weights."""
        return tuple((kind, weight) for kind, weight in self.kinds if kind != LONG and weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instructions:
    """The text of stage 2's batches (pipeline.TextMaker).

    tokenizer: see `text.get_tokenizer`. num_speech: soft tokens of an utterance.
    """

    options: InstructionOptions
    tokenizer: str
    num_speech: int

    def __call__(
        self, facts: Sequence[prompts.Facts], rngs: Sequence[np.random.Generator], step_rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Rows of T tokens of which A are targets, by the kind of step that `step_rng` draws.

        tokens int32 [n, T]: prompt (chat.SPEECH where soft tokens go) and answer but for its last token, 0 where
        token_mask bool [n, T] is False. targets int32 [n, A], target_positions int32 [n, A] of the hidden states that
        predict them, target_mask bool [n, A]. task int32 [n], a position in KINDS. An answer that is too long is cut,
        and then lacks its end.
        """
        options, chat = self.options, get_chat(self.tokenizer, self.num_speech)
        is_long = step_rng.random() < options.long_share
        kinds = ((LONG, 1.0),) if is_long else options.short_kinds
        length, room = options.long if is_long else options.short
        drawn = [instruction(one, rng, kinds, options.languages) for one, rng in zip(facts, rngs, strict=True)]
        n = len(drawn)
        tokens, targets, positions = (np.zeros((n, size), np.int32) for size in (length, room, room))
        num_tokens, num_targets = np.zeros(n, np.int32), np.zeros(n, np.int32)
        for i, one in enumerate(drawn):
            prompt = chat.prompt(one.question)
            answer = chat.answer(one.answer)[: min(room, length - len(prompt) + 1)]
            row = np.concatenate([prompt, answer[:-1]])
            tokens[i, : len(row)], targets[i, : len(answer)] = row, answer
            positions[i, : len(answer)] = len(prompt) - 1 + np.arange(len(answer))
            num_tokens[i], num_targets[i] = len(row), len(answer)
        return {
            "tokens": tokens,
            "token_mask": np.arange(length) < num_tokens[:, None],
            "targets": targets,
            "target_positions": positions,
            "target_mask": np.arange(room) < num_targets[:, None],
            "task": np.array([KINDS.index(one.kind) for one in drawn], np.int32),
        }

    def shapes(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """{name: (shape of a row, dtype)} of the longest batch."""
        share = self.options.long_share
        length, room = max([self.options.short] * (share < 1) + [self.options.long] * (share > 0))
        return {
            "tokens": ((length,), np.int32),
            "token_mask": ((length,), np.bool_),
            "targets": ((room,), np.int32),
            "target_positions": ((room,), np.int32),
            "target_mask": ((room,), np.bool_),
            "task": ((), np.int32),
        }

    def check(self, vocab_size: int) -> None:
        """Raises ValueError where a question, or an answer other than a transcript, is cut or has unknown tokens."""
        options, chat = self.options, get_chat(self.tokenizer, self.num_speech)
        asked, answered = {}, {}
        for kind in KINDS:
            texts = [text for name in options.languages for text in questions(kind, name)]
            asked[kind] = max(len(chat.prompt(text)) for text in texts)
            words = [word for name in options.languages for word in prompts.all_words(kind, name)]
            answered[kind] = max((len(chat.answer(word)) for word in words), default=1)
        # len(tokenizer) would refuse Gemma 3, whose tokenizer knows a token for images that its text models have no row
        # for.
        highest = max(max(chat.prompt(text)) for name in options.languages for text in questions("emotion", name))
        if max(highest, chat.end) >= vocab_size:
            raise ValueError(f"tokenizer {self.tokenizer!r} makes token {highest} of a table of {vocab_size} rows")
        # What lacks its facts becomes a question for the emotion.
        short = {"emotion", *dict(options.short_kinds)}
        needed = max(asked[kind] + answered[kind] - 1 for kind in short), max(answered[kind] for kind in short)
        if options.long_share < 1 and any(have < need for have, need in zip(options.short, needed, strict=True)):
            raise ValueError(f"sequences.short={options.short}: its questions and answers need {needed}")
        if options.long_share and options.long[0] <= asked[LONG]:
            raise ValueError(f"sequences.long={options.long}: a question alone has {asked[LONG]} tokens")
