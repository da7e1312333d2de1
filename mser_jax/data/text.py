"""Token ids and text identities."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PAD = 0

# Loading transformers and calling its fast tokenizers ("Already borrowed") are both unsafe from several
# threads.
_LOCK = threading.Lock()


def hash31(text: str) -> int:
    """A 31-bit identity of `text` (blake2b): fits an int32 column, and is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=4).digest(), "big") & 0x7FFFFFFF


class Tokenizer(Protocol):
    """What the pipeline and the text tower need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of rows that an embedding table needs."""

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n, max_tokens], mask bool [n, max_tokens]); ids are 0 where the mask is False.

        Longer texts are cut at the end, the closing special token kept; nothing is said about it, so
        captions put what matters first (prompts.py does).
        """

    @property
    def bos(self) -> str:
        """The token that begins a text, spelled out; "" where there is none."""

    @property
    def eos(self) -> str:
        """The token that ends a text, spelled out; "" where there is none."""

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Ids of a piece of text, nothing added; `special`: special tokens spelled in it are read as such."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""

    def render(self, content: str, answer: str | None) -> str | None:
        """A user's turn by the tokenizer's chat template, then `answer`; None: the text that comes before an answer.

        Returns None where there is no template.
        """


@functools.lru_cache
def _byt5() -> Any:
    from transformers import ByT5Tokenizer  # Slow to import, and rarely needed: see ByteTokenizer.

    return ByT5Tokenizer()


class ByteTokenizer:
    """ByT5's byte tokenizer (Xue et al. 2022): id = byte + 3, then </s> = 1; no download.

    Plain text takes a path of its own, 30 times faster than transformers' and equal to it (tested). Text with
    a '<' may hold a special token ("</s>") and goes through transformers.
    """

    vocab_size = 384
    bos, eos = "", "</s>"

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer.encode`."""
        rows = [self._ids(text) for text in texts]
        return _pack([np.append(row[: max_tokens - 1], 1) for row in rows], max_tokens)

    def ids(self, text: str, *, special: bool) -> list[int]:
        """See `Tokenizer.ids`."""
        return (self._ids(text) if special else self._bytes(text)).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return bytes(one - 3 for one in ids if 3 <= one < 259).decode("utf-8", "ignore")

    def render(self, content: str, answer: str | None) -> None:
        """Bytes have no template."""

    def _ids(self, text: str) -> np.ndarray:
        """Ids without the closing </s>, int32 [n]."""
        if "<" in text:
            with _LOCK:
                return np.asarray(_byt5()(text, add_special_tokens=False)["input_ids"], np.int32)
        return self._bytes(text)

    def _bytes(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + 3


class DirectoryTokenizer:
    """The tokenizer in a Hugging Face model directory, loaded at first use: workers get only the path.

    Raises:
        FileNotFoundError: no such directory.
    """

    def __init__(self, directory: str) -> None:
        if not Path(directory).is_dir():
            raise FileNotFoundError(
                f'tokenizer={directory!r}: expected "byt5" or a directory with Hugging Face tokenizer files'
            )
        self.directory = directory
        self._tokenizer: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (DirectoryTokenizer, (self.directory,))

    def _loaded(self) -> Any:
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        with _LOCK:
            return len(self._loaded())

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer.encode`."""
        with _LOCK:
            rows = self._loaded()(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        return _pack(rows, max_tokens)

    @property
    def bos(self) -> str:
        """See `Tokenizer.bos`."""
        with _LOCK:
            return self._loaded().bos_token or ""

    @property
    def eos(self) -> str:
        """See `Tokenizer.eos`."""
        with _LOCK:
            return self._loaded().eos_token or ""

    def ids(self, text: str, *, special: bool) -> list[int]:
        """See `Tokenizer.ids`."""
        with _LOCK:
            return self._loaded()(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        with _LOCK:
            return self._loaded().decode(list(ids), skip_special_tokens=True)

    def render(self, content: str, answer: str | None) -> str | None:
        """See `Tokenizer.render`."""
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        with _LOCK:
            if not self._loaded().chat_template:
                return None
            # Templates may open with today's date (Llama 3.2), or begin to think aloud (Qwen 3).
            return self._loaded().apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None,
                date_string="26 Jul 2024", enable_thinking=False,
            )  # fmt: skip


def _pack(rows: Sequence[Sequence[int]], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), max_tokens), PAD, np.int32)
    lengths = np.array([len(row) for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.arange(max_tokens) < lengths[:, None]


@functools.lru_cache
def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`: "byt5" or a directory. Raises FileNotFoundError for anything else."""
    return ByteTokenizer() if name == "byt5" else DirectoryTokenizer(name)
