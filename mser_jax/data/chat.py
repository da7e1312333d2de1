"""A question about speech, and its answer, as the token ids of one LLM.

The tokenizer's own chat template is rendered with a mark where the speech stands; the text is then cut at the mark and
its parts are tokenised, so that any template will do. A tokenizer without one (base models, bytes) gets the plain
"{bos}{speech}\\n{question}\\n{answer}{eos}".
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from mser_jax.data.text import Tokenizer, get_tokenizer

# The id that stands where a soft token goes (models/speech_llm.py); no row of any table.
SPEECH = -1

_SPEECH_MARK, _ANSWER_MARK = "[[speech]]", "[[answer]]"


class Chat:
    """Turns of one tokenizer.

    end: the token that ends an answer, the template's own or </s>; what is trained and scored. stops: `end` and every
    other token that ends what a model writes.
    """

    def __init__(self, tokenizer: str, num_speech: int, eos: Sequence[int] = ()) -> None:
        """`tokenizer`: see `text.get_tokenizer`; `num_speech`: soft tokens that stand for an utterance; `eos`: the ids
        that the model's own files say end a text.

        Raises:
            ValueError: the template drops the speech or the answer, or nothing ends a turn.
        """
        self._tokenizer, self._num_speech = get_tokenizer(tokenizer), num_speech
        self._question = functools.lru_cache(maxsize=4096)(self._make_prompt)
        self._answer = functools.lru_cache(maxsize=4096)(lambda text: (*self.label(text), self.end))
        after = self._render(f"{_SPEECH_MARK}\n?", _ANSWER_MARK).rpartition(_ANSWER_MARK)[2].strip()
        closing = self._tokenizer.ids(after, special=True)
        if not closing:
            raise ValueError(f"tokenizer {tokenizer!r}: its template ends an answer with nothing, and it has no </s>")
        self.end = closing[0]
        self.stops = tuple(sorted({self.end, *self._tokenizer.ends(eos)}))

    def prompt(self, question: str) -> np.ndarray:
        """Speech and question up to where the answer begins: int32 [P], `num_speech` of them SPEECH, in a row."""
        return np.array(self._question(question), np.int32)

    def answer(self, text: str) -> np.ndarray:
        """int32 [A], `end` the last of them. Special tokens that are spelled in `text` are read as plain text."""
        return np.array(self._answer(text), np.int32)

    def label(self, text: str) -> list[int]:
        """The answer without its end, for scoring.

        It begins with a space: a vocabulary made of running text has whole words with one (all of 40 English emotions
        are single tokens of Gemma's that way, 12 without), and each further token costs a pass through the LLM.
        """
        return self._tokenizer.ids(f" {text}", special=False)

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the ids."""
        return self._tokenizer

    def decode(self, ids: np.ndarray) -> str:
        """The text of generated ids [n], up to the first of `stops` where one is among them."""
        found = np.flatnonzero(np.isin(np.asarray(ids), self.stops))
        return self._tokenizer.decode(np.asarray(ids)[: found[0] if len(found) else None].tolist()).strip()

    def _make_prompt(self, question: str) -> tuple[int, ...]:
        before, _, after = self._render(f"{_SPEECH_MARK}\n{question}", None).partition(_SPEECH_MARK)
        ids = (self._tokenizer.ids(part, special=True) for part in (before, after))
        return (*next(ids), *(SPEECH,) * self._num_speech, *next(ids))

    def _render(self, content: str, answer: str | None) -> str:
        """One user turn, and the model's if there is one, else the text before it."""
        tokenizer = self._tokenizer
        text = tokenizer.render(content, answer)
        if text is None:
            text = f"{tokenizer.bos}{content}\n" + ("" if answer is None else f"{answer}{tokenizer.eos}")
        for mark in (_SPEECH_MARK, *([] if answer is None else [answer])):
            if text.count(mark) != 1:
                raise ValueError(f"the chat template shows {mark!r} {text.count(mark)} times, expected once:\n{text}")
        return text


@functools.lru_cache
def get_chat(tokenizer: str, num_speech: int, eos: tuple[int, ...] = ()) -> Chat:
    """The `Chat` of these arguments, made once in a process. Raises ValueError as it does."""
    return Chat(tokenizer, num_speech, eos)
