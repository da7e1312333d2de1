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

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer.encode`."""
        rows = [self._ids(text) for text in texts]
        return _pack([np.append(row[: max_tokens - 1], 1) for row in rows], max_tokens)

    def _ids(self, text: str) -> np.ndarray:
        """Ids without the closing </s>, int32 [n]."""
        if "<" in text:
            with _LOCK:
                return np.asarray(_byt5()(text, add_special_tokens=False)["input_ids"], np.int32)
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
