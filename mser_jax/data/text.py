"""Token ids and text identities."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mser_jax import storage

PAD = 0

# Any of these is a tokenizer; vocab.json needs merges.txt beside it.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt"),
    *("vocab.json", "merges.txt"),
)
# What ends a turn, whatever else a model's files name.
TURN_ENDS = (
    *("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<turn|>", "<|return|>"),
    *("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"),
)

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

    @property
    def unknown(self) -> int | None:
        """The id of what the vocabulary lacks; None where it lacks nothing."""

    @property
    def vocabulary(self) -> dict[str, int]:
        """{token: id}, added tokens left out."""

    def ends(self, also: Sequence[int]) -> tuple[int, ...]:
        """Ids that end what a model writes: its own, and those of `also` that are added tokens of the vocabulary."""

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
    unknown = None

    @property
    def vocabulary(self) -> dict[str, int]:
        """See `Tokenizer.vocabulary`."""
        return {chr(byte): byte + 3 for byte in range(256)}

    def ends(self, also: Sequence[int]) -> tuple[int, ...]:
        """See `Tokenizer.ends`."""
        del also
        return (1,)

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
        FileNotFoundError: no such directory. ValueError (at first use): it holds no tokenizer that can be read.
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
            self._check_files()
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(
                    self.directory, local_files_only=True, trust_remote_code=False
                )
            except Exception as error:  # Its readers raise what they like.
                raise ValueError(
                    f"{self.directory}: transformers cannot read its tokenizer ({type(error).__name__}: "
                    f"{(str(error).strip() or 'no reason given').splitlines()[0]}); fetch its files again"
                ) from error
        return self._tokenizer

    def _check_files(self) -> None:
        """Raise ValueError where transformers would make up a tokenizer that knows nothing."""
        found = tokenizer_files(Path(self.directory))
        if "vocab.json" in found and found[0] == "vocab.json" and "merges.txt" not in found:
            raise ValueError(f"{self.directory}: its tokenizer has vocab.json but no merges.txt; fetch it again")
        if not set(found) - {"merges.txt"}:
            there = sorted(path.name for path in Path(self.directory).iterdir())
            raise ValueError(
                f"{self.directory}: no tokenizer here ({', '.join(TOKENIZER_FILES[:-2])}, or vocab.json and "
                f"merges.txt), but {there}. Copy the tokenizer's files from where the weights came from"
            )

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

    @property
    def unknown(self) -> int | None:
        """See `Tokenizer.unknown`."""
        with _LOCK:
            return self._loaded().unk_token_id

    @property
    def vocabulary(self) -> dict[str, int]:
        """See `Tokenizer.vocabulary`."""
        with _LOCK:
            added = self._loaded().get_added_vocab()
            return {token: one for token, one in self._loaded().get_vocab().items() if token not in added}

    def beyond(self, rows: int) -> list[int]:
        """Ids that a table of `rows` rows lacks, but for added tokens (Gemma 3's for images)."""
        return [one for one in self.vocabulary.values() if one >= rows]

    def ends(self, also: Sequence[int]) -> tuple[int, ...]:
        """See `Tokenizer.ends`."""
        with _LOCK:
            added, eos = self._loaded().added_tokens_decoder, self._loaded().eos_token_id
        named = {one for one, token in added.items() if token.special and token.content in TURN_ENDS}
        return tuple(sorted({eos} - {None} | named | {*also} & {*added}))

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


def tokenizer_files(directory: Path) -> list[str]:
    """Return those of TOKENIZER_FILES that are there, in their order."""
    return [name for name in TOKENIZER_FILES if (directory / name).exists()]


def _pack(rows: Sequence[Sequence[int]], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(rows), max_tokens), PAD, np.int32)
    lengths = np.array([len(row) for row in rows])
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, np.arange(max_tokens) < lengths[:, None]


@functools.lru_cache
def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`: "byt5" or a directory. Raises FileNotFoundError for anything else."""
    return ByteTokenizer() if name == "byt5" else DirectoryTokenizer(os.fspath(storage.absolute(name)))
