"""Whether a tokenizer is that of the model: files whole, ids rows of its table, texts and labels told apart by them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mser_jax.data.text import DirectoryTokenizer, Tokenizer, get_tokenizer, tokenizer_files

# Tables are padded to round sizes, by 2 % at most in released models; a smaller vocabulary is another model's.
_LEAST_SHARE = 0.75
# What two tokenizers of one model may differ in: tokens that were added for a fine-tuning.
_MOST_DIFFERENT = 0.001
# More unknown tokens than this are no text of a language.
_MOST_UNKNOWN = 0.5
_SCRIPTS = (
    "The voice sounds angry.",
    "Голос звучит сердито",
    "声音听起来很生气。",
    "  Ça va\n",
    "الصوت غاضب",
    "문장 42",
)
# More than any prompt has.
_WHOLE = 1024


def check(name: str, rows: int, texts: Mapping[str, Sequence[str]], init: Path | None, *, closed: bool = False) -> None:
    """Hold a tokenizer against the table that is indexed with its ids.

    Args:
        name: as `text.get_tokenizer` takes it.
        rows: of the table of token embeddings.
        texts: {language: some texts} that it will have to read.
        init: the directory of the pretrained weights that the table comes from; None: it starts from scratch.
        closed: the model wants special tokens around a text.

    Raises:
        ValueError: files are missing or read otherwise than they are written, ids are beyond the table, the vocabulary
            is another model's, or a language is unknown to it.
    """
    tokenizer = get_tokenizer(name)
    if isinstance(tokenizer, DirectoryTokenizer):
        _check_reading(tokenizer)
        if beyond := tokenizer.beyond(rows):
            raise ValueError(
                f"tokenizer {name!r} has ids up to {max(beyond)} for a table of {rows} rows: it is another model's"
            )
    if init is not None:
        _check_belongs(name, tokenizer, rows, init)
    encoded = {language: [tokenizer.ids(text, special=False) for text in some] for language, some in texts.items()}
    ids = list(itertools.chain.from_iterable(itertools.chain.from_iterable(encoded.values())))
    if not ids or all(one == tokenizer.unknown for one in ids):
        raise ValueError(
            f"tokenizer {name!r} makes {'<unk>' if ids else 'nothing'} of every text: its files are not whole"
        )
    for language, rows_of in encoded.items():
        flat = list(itertools.chain.from_iterable(rows_of))
        share = sum(one == tokenizer.unknown for one in flat) / max(len(flat), 1)
        if share > _MOST_UNKNOWN or not flat:
            raise ValueError(
                f"tokenizer {name!r} does not know {language!r}: {share:.0%} of {texts[language][0]!r} and the like is "
                "<unk>. Leave this language out of captions, questions and prompts, or take another model"
            )
    if (
        closed
        and init is not None
        and len(tokenizer.encode(["a"], 8)[1][0].nonzero()[0]) <= len(tokenizer.ids("a", special=False))
    ):
        raise ValueError(
            f"tokenizer {name!r} puts no special tokens around a text, and this model was trained with them"
        )


def _check_reading(tokenizer: DirectoryTokenizer) -> None:
    """Raise ValueError where transformers reads tokenizer.json otherwise than it is written."""
    path = Path(tokenizer.directory) / "tokenizer.json"
    if not path.exists():
        return
    from tokenizers import Tokenizer as Written  # Slow to import.

    try:
        written = Written.from_file(str(path))
        written.no_truncation()
        written.no_padding()
        same = all(
            written.encode(text, add_special_tokens=False).ids == tokenizer.ids(text, special=True) for text in _SCRIPTS
        )
    except Exception as error:  # tokenizers raises nothing narrower
        what = str(error).splitlines()[0]
        if not (path.parent / "tokenizer_config.json").exists():  # by it transformers knows the kind of tokenizer
            raise ValueError(f"{path}: {what}. There is no tokenizer_config.json beside it; fetch that too") from error
        raise ValueError(f"{path} is damaged: {what}; fetch it again") from error
    if not same:
        missing = [name for name in ("tokenizer_config.json",) if not path.with_name(name).exists()]
        hint = (
            f"{missing[0]} is missing beside it" if missing else "tokenizer_config.json names another tokenizer_class"
        )
        raise ValueError(f"{path} is not what transformers makes of {tokenizer.directory}: {hint}; fetch both again")


def _check_belongs(name: str, tokenizer: Tokenizer, rows: int, init: Path) -> None:
    """Raise ValueError where the vocabulary is not that of the weights in `init`."""
    if tokenizer.vocab_size < _LEAST_SHARE * rows:
        raise ValueError(
            f"tokenizer {name!r} has {tokenizer.vocab_size} ids, and the table in {init} has {rows} rows: "
            "it is another model's"
        )
    if not tokenizer_files(init) or (Path(name).is_dir() and Path(name).resolve() == init.resolve()):
        return
    own = get_tokenizer(str(init)).vocabulary
    given = tokenizer.vocabulary
    different = [token for token, number in given.items() if own.get(token) != number]
    if len(different) > _MOST_DIFFERENT * len(given):
        token = different[0]
        raise ValueError(
            f"tokenizer {name!r} is not that of {init}: {len(different)} of its {len(given)} ids mean something else "
            f"there ({token!r} is {given[token]}, there {own.get(token, 'unknown')}). Leave `tokenizer` empty"
        )


def tell_apart(
    tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]], max_tokens: int, uncut: Collection[str] = ()
) -> None:
    """Make sure that texts of different names that differ are different tokens, once they are cut.

    Args:
        tokenizer: makes the tokens.
        texts: {name: its texts}.
        max_tokens: what is left of a text.
        uncut: names whose texts must not be cut at all.

    Raises:
        ValueError: names the two (or the one) and how many tokens they need.
    """
    pairs = [(name, text) for name, some in texts.items() for text in some]
    _, mask = tokenizer.encode([text for _, text in pairs], max(max_tokens, _WHOLE))
    cut, kept = tokenizer.encode([text for _, text in pairs], max_tokens)
    for (name, text), needed in zip(pairs, mask.sum(-1), strict=True):
        if name in uncut and needed > max_tokens:
            raise ValueError(
                f"{name!r} is cut: {text!r} needs {needed} tokens, data.max_tokens={max_tokens}. Use fewer words"
            )
    seen: dict[tuple[int, ...], tuple[str, str, int]] = {}
    for (name, text), row, of_row, needed in zip(pairs, cut, kept, mask.sum(-1), strict=True):
        key = tuple(row[of_row].tolist())
        other, its_text, its_needed = seen.setdefault(key, (name, text, int(needed)))
        if other == name or its_text == text:
            continue
        need = max(int(needed), its_needed)
        why = (
            f"cut after {max_tokens} tokens (data.max_tokens), they need {need}: use fewer words, or train with more"
            if need > max_tokens
            else "the tokenizer does not know what they differ in"
        )
        raise ValueError(f"{other!r} and {name!r} are the same tokens, {its_text!r} and {text!r}: {why}")


def check_words(tokenizer: Tokenizer, words: Mapping[str, str], what: str) -> None:
    """Make sure that what stands for each label is known, and another label's is something else.

    Args:
        tokenizer: makes the tokens.
        words: {label: the word that is read or scored for it}.
        what: says in which language, for the message.

    Raises:
        ValueError: names the label, or the two.
    """
    seen: dict[tuple[int, ...], str] = {}
    for label, word in words.items():
        ids = tuple(tokenizer.ids(f" {word}", special=False))
        if not ids or tokenizer.unknown in ids:
            raise ValueError(f"label {label!r}: the tokenizer does not know all of {word!r} ({what}): use other words")
        if (other := seen.setdefault(ids, label)) != label:
            raise ValueError(
                f"labels {other!r} and {label!r} are one and the same {what}: {words[other]!r} and {word!r}. Use one "
                "of them, or words that differ"
            )


def eos_tokens(directory: Path) -> tuple[int, ...]:
    """Return the ids that end what a model writes, as generation_config.json and config.json of its directory say."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        try:
            content = json.loads((directory / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        for section in (content, content.get("text_config") or {}):
            given = section.get("eos_token_id")
            found.update(given if isinstance(given, list) else [] if given is None else [given])
    return tuple(sorted(found))
