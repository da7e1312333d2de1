"""Which sentences are spoken: normalisation, length, script, language and near-duplicates, each with its reason.

The language check has two steps. Script: every letter must be of the language's script (Latin where no other is
listed), which finds what a voice could not read at all. Then, among languages of one script, a naive Bayes classifier
over character 1- to 3-grams (after Cavnar & Trenkle 1994), trained on the given texts themselves, half of them judging
the other half: a sentence goes where another language of the plan explains it more than MARGIN times better.
Ready-made classifiers were not taken: they weigh 10–100 MB, know hundreds of languages that a subtitle of four words is
easily mistaken for, and only confusion among the languages of a plan would make its language column wrong.
"""

from __future__ import annotations

import collections
import html
import math
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from mser_jax.m5ser.lines import Text

# What unicodedata calls the letters of scripts other than Latin, by the language's primary subtag.
_SCRIPTS = {
    **dict.fromkeys(("zh", "yue"), ("CJK",)),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk", "sr", "kk", "ky", "tt"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur", "ps"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("am", "ti"), ("ETHIOPIC",)),
    "bn": ("BENGALI",), "ta": ("TAMIL",), "te": ("TELUGU",), "th": ("THAI",), "he": ("HEBREW",), "el": ("GREEK",),
    "ka": ("GEORGIAN",), "hy": ("ARMENIAN",),
}  # fmt: skip
MARGIN = 1000.0
MIN_TEXTS = 200  # of a language, below which its n-grams say little and no other text is judged by them
_FEATURES = 2**16

_MARKUP = re.compile(r"<[^<>]*>|\{[^{}]*\}")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff\ufffe]")
_LEADING = re.compile(r"^[\s\-–—‒―*•·.…,;:'\"“”„«»‹›()]+(?=\w|¿|¡)")
_QUOTES = re.compile(r"[\"“”„«»‹›「」『』]")
_APOSTROPHES = str.maketrans("’‘`´", "''''")
_SPACED_MARK = re.compile(r"\s+([,.!?;:…])")
_SPACED_JOINER = re.compile(r"(\w) (['-]) (\w)")
_REPEATED_DOTS = re.compile(r"\s*(?:\.\s?){2,}|…+")
_HAN_GAP = re.compile(r"(?<=[\u3400-\u9fff])\s+(?=[\u3400-\u9fff])")
# What cannot be spoken as it stands: placeholders of anonymised corpora, links, handles, lyrics, code.
_UNSPEAKABLE = re.compile(r"[\[\]#@♪♫_|\\/^=+~%$£€&]|https?:|www\.")
_SECOND_SPEAKER = re.compile(r"(?:^|\s)[-–—](?=\s?[^\W\d_]|\s?[¿¡])")


def normalize(text: str) -> str:
    """A subtitle or comment as a plain sentence: NFC, no markup, quotes, leading dash or spaces before marks.

    Pieces of a subtitle in Han script, which stand apart by blanks, are joined by commas.

    Example: normalize("- <i>Wenn alles klar ist ,</i>") == "Wenn alles klar ist,".
    """
    text = unicodedata.normalize("NFC", html.unescape(text))
    text = _MARKUP.sub(" ", _INVISIBLE.sub("", text)).translate(_APOSTROPHES)
    text = " ".join(_QUOTES.sub(" ", text).split())
    text = " ".join(_REPEATED_DOTS.sub("… ", text).split())
    text = _LEADING.sub("", text)
    text = _SPACED_JOINER.sub(r"\1\2\3", _SPACED_MARK.sub(r"\1", text))
    return _HAN_GAP.sub("，", text).strip(" ,;:-–—…").strip()


def length(text: str) -> int:
    """Characters, a Han character counted as three: about what one takes to say."""
    return len(text) + 2 * sum("\u3400" <= c <= "\u9fff" for c in text)


def refusal(text: str, language: str, min_length: int, max_length: int) -> str:
    """Why a normalised text cannot be spoken, or "": one of unspeakable, dialogue, script, too_short, too_long."""
    if _UNSPEAKABLE.search(text):
        return "unspeakable"
    if _SECOND_SPEAKER.search(text):
        return "dialogue"
    if not in_script(text, language):
        return "script"
    return "too_short" if length(text) < min_length else "too_long" if length(text) > max_length else ""


def in_script(text: str, language: str) -> bool:
    """Whether the text has letters and all of them are of the language's script."""
    scripts = scripts_of(language)
    names = [unicodedata.name(c, "") for c in text if c.isalpha()]
    return bool(names) and all(name.startswith(scripts) for name in names)


def scripts_of(language: str) -> tuple[str, ...]:
    """How the Unicode names of the language's letters begin."""
    return _SCRIPTS.get(language.split("-")[0], ("LATIN",))


def select(
    texts: Iterable[Text], *, min_length: int, max_length: int, near_duplicates: float, check_language: bool
) -> tuple[list[Text], dict[str, dict[str, int]]]:
    """The texts to speak, in the order given, and what was left out: language -> reason -> number.

    Args:
      texts: as read; their ids are kept.
      min_length, max_length: see `length`.
      near_duplicates: Jaccard similarity of character trigrams (estimated by MinHash, Broder 1997) from which
        the later of two texts of a language is left out; 1 or above: equal words only.
      check_language: whether the n-gram check is made (the script is always checked).
    """
    left_out: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    kept: dict[tuple[str, str], Text] = {}
    for text in texts:
        plain = normalize(text.text)
        key = text.language, _key(plain)
        reason = refusal(plain, text.language, min_length, max_length) or ("duplicate" if key in kept else "")
        if reason:
            left_out[text.language][reason] += 1
        else:
            kept[key] = Text(**{**vars(text), "text": plain})
    chosen = list(kept.values())
    for reason, found in (
        ("language", foreign(chosen) if check_language else set()),
        ("near_duplicate", near(chosen, near_duplicates) if near_duplicates < 1 else set()),
    ):
        for text in chosen:
            left_out[text.language][reason] += text.id in found
        chosen = [text for text in chosen if text.id not in found]
    return chosen, {language: dict(+counts) for language, counts in left_out.items()}


def near(texts: Sequence[Text], threshold: float) -> set[str]:
    """Ids of texts that nearly repeat an earlier one of their language.

    Parallel texts and sentences of one collection are treated alike. Needs datasketch (`pip install mser_jax[m5ser]`).
    """
    from datasketch import MinHash, MinHashLSH

    found: set[str] = set()
    for language in sorted({text.language for text in texts}):
        mine = [text for text in texts if text.language == language]
        index, signatures = MinHashLSH(threshold=threshold, num_perm=64), {}
        shingles = ([s.encode() for s in sorted(_trigrams(_key(text.text)))] for text in mine)
        for text, signature in zip(mine, MinHash.generator(shingles, num_perm=64, seed=1), strict=True):
            if any(signature.jaccard(signatures[rival]) >= threshold for rival in index.query(signature)):
                found.add(text.id)
            else:
                index.insert(text.id, signature)
                signatures[text.id] = signature
    return found


def foreign(texts: Sequence[Text]) -> set[str]:
    """Ids of texts that are more likely in another language of `texts` than in their own (see the module)."""
    found: set[str] = set()
    by_script: dict[tuple[str, ...], list[Text]] = collections.defaultdict(list)
    for text in texts:
        by_script[scripts_of(text.language)].append(text)
    for group in by_script.values():
        counts = collections.Counter(text.language for text in group)
        languages = sorted(language for language, count in counts.items() if count >= MIN_TEXTS)
        if len(languages) > 1:
            found |= _foreign_in([text for text in group if text.language in languages], languages)
    return found


def _foreign_in(texts: Sequence[Text], languages: Sequence[str]) -> set[str]:
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), n_features=_FEATURES, alternate_sign=False, norm=None
    )
    counts = vectorizer.transform(text.text for text in texts)
    own = np.array([languages.index(text.language) for text in texts])
    half = np.array([zlib.crc32(text.id.encode()) % 2 for text in texts])  # whatever the order of the texts
    found: set[str] = set()
    for judged in (0, 1):
        sums = [np.asarray(counts[(half != judged) & (own == k)].sum(axis=0)).ravel() for k in range(len(languages))]
        smoothed = np.stack(sums) + 0.1
        log_p = np.log(smoothed / smoothed.sum(axis=1, keepdims=True))
        rows = np.flatnonzero(half == judged)
        scores = counts[rows] @ log_p.T
        ahead = scores.max(axis=1) - scores[np.arange(len(rows)), own[rows]]
        found |= {texts[row].id for row in rows[ahead > math.log(MARGIN)]}
    return found


def _key(text: str) -> str:
    """What two texts that say the same have in common: letters and digits, case folded."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _trigrams(text: str) -> set[str]:
    padded = f" {text} "
    return {padded[i : i + 3] for i in range(max(len(padded) - 2, 1))}
