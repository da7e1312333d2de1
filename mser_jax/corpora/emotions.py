"""Canonical emotions, the label spaces scores are given in, and how every corpus's own label maps onto them.

A native label is either a *spelling* of a canonical emotion (another word form, code or language: "ANG",
"Wut", "tristezza") or a *merge*: another state folded into one ("excited" into happy), which changes what a
score means and is therefore returned by name, counted in the build report and written into every result file.
Single letters mean different things in different corpora (A is anger in ShEMO, fear in EmoDB): builders spell
those out.
"""

from __future__ import annotations

import difflib
import tomllib
import unicodedata
from collections.abc import Iterator
from importlib import resources

# The position is the integer id, in records, batches and checkpoints: never reorder.
EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

# Number of classes -> names in id order. 4 is common to most corpora; 5 is ESD's, 6 M5SER's and CAMEO's set.
LABEL_SPACES: dict[int, tuple[str, ...]] = {
    4: ("angry", "happy", "neutral", "sad"),
    5: ("angry", "happy", "neutral", "sad", "surprise"),
    6: ("angry", "fear", "happy", "neutral", "sad", "surprise"),
    7: EMOTIONS,
}


def _words() -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """Read emotion_words.toml: (SPELLINGS, MERGES)."""
    text = resources.files(__package__).joinpath("emotion_words.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    return found["languages"] | {"codes": found["codes"]}, found["merges"]


# Language (or "codes") -> emotion -> comma-separated spellings; emotion -> the state that is folded into it -> the
# same. Case, accents and _ or - do not matter.
SPELLINGS, MERGES = _words()


# Letters that are typed either way and that Unicode does not decompose: Turkish dotless i, Polish and Nordic strokes,
# Arabic and Persian forms of one letter, the apostrophes of Uzbek.
_VARIANTS = str.maketrans("ıłđøیکةى\u2018\u2019\u02bb\u02bc_-", "ildoيكهي''''  ", "\ufe0e\ufe0f")


def normalize(native: str) -> str:
    """Return the form in which labels are compared.

    Case is folded; accents, invisible marks (category Cf, and those that choose how an emoji looks) and variants of one
    letter are dropped; `_`, `-` and runs of blanks are one blank. Punctuation and symbols around a word are dropped,
    but for "?" and a "!" before it; a label of nothing else keeps them.
    """
    decomposed = unicodedata.normalize("NFKD", native.casefold())
    plain = "".join(c for c in decomposed if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")
    words = " ".join(plain.translate(_VARIANTS).split())
    first, last = 0, len(words)
    while first < last and _is_around(words[first]) and words[first] != "!":
        first += 1
    while first < last and _is_around(words[last - 1]):
        last -= 1
    return words[first:last] or words


def _is_around(character: str) -> bool:
    """Whether it is punctuation or a symbol that leaves a label's meaning ("sad?" is a doubt, "!sad" a no)."""
    return unicodedata.category(character)[0] in "PSZ" and character != "?"


def _entries() -> Iterator[tuple[str, tuple[str, str | None]]]:
    for emotions in SPELLINGS.values():
        for emotion, names in emotions.items():
            yield from ((normalize(name), (emotion, None)) for name in names.split(","))
    for emotion, states in MERGES.items():
        for state, names in states.items():
            merge = f"{state}→{emotion}"
            yield from ((normalize(name), (emotion, merge)) for name in names.split(","))


def _table() -> dict[str, tuple[str, str | None]]:
    table: dict[str, tuple[str, str | None]] = {}
    for name, target in _entries():
        if table.setdefault(name, target) != target:
            raise ValueError(f"emotion_words.toml: {name!r} is listed for both {table[name]} and {target}")
    return table


_ALIASES = _table()


def canonical(native: str) -> tuple[str, str | None]:
    """Maps a corpus's own label to a canonical emotion.

    Returns:
      (emotion, merge): emotion of EMOTIONS, or "" where the label fits none; merge as "excited→happy" where a
      different state was folded into the emotion, else None.
    """
    return _ALIASES.get(normalize(native), ("", None))


def merge(native: str, emotion: str) -> str | None:
    """The merge by which a corpus's own label became a canonical emotion, as "excited→happy"; None where it is none.

    Where the corpus decided otherwise than `canonical`, its label is named as it is.
    """
    usual, name = canonical(native)
    if not emotion or not native:
        return None
    return name if emotion == usual else f"{native}→{emotion}"


def emotion_id(emotion: str) -> int:
    """Index of a canonical emotion in EMOTIONS; -1 for "" (unknown). ValueError for any other name."""
    if not emotion:
        return -1
    if emotion not in EMOTIONS:
        raise ValueError(_unknown(emotion))
    return EMOTIONS.index(emotion)


def label_space(spec: int | str) -> tuple[str, ...]:
    """Label space from its size (4, "4") or its names ("angry,sad"); names come back in id order.

    Utterances whose emotion lies outside are left out and counted by the evaluation, never folded in.

    Raises:
      ValueError: unknown size or name (nearest valid one named), a name twice, or fewer than two names.
    """
    text = str(spec).strip()
    if text.lstrip("-").isdigit():
        if int(text) not in LABEL_SPACES:
            raise ValueError(f"label space {text}: sizes are {sorted(LABEL_SPACES)}, or give names: 'angry,sad'")
        return LABEL_SPACES[int(text)]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in EMOTIONS:
            raise ValueError(_unknown(name))
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(f"label space {text!r}: expected at least two names, each once")
    return tuple(emotion for emotion in EMOTIONS if emotion in names)


def _unknown(name: str) -> str:
    near = [canonical(name)[0]] if canonical(name)[0] else difflib.get_close_matches(name, EMOTIONS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown emotion {name!r}.{hint} Canonical emotions: {', '.join(EMOTIONS)}"
