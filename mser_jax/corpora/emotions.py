"""Canonical emotions, the label spaces scores are given in, and how every corpus's own label maps onto them.

A native label is either a *spelling* of a canonical emotion (another word form, code or language: "ANG",
"Wut", "tristezza") or a *merge*: another state folded into one ("excited" into happy), which changes what a
score means and is therefore returned by name, counted in the build report and written into every result file.
Single letters mean different things in different corpora (A is anger in ShEMO, fear in EmoDB): builders spell
those out.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator

# The position is the integer id, in records, batches and checkpoints: never reorder.
EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

# Number of classes -> names in id order. 4 is common to most corpora; 5 is ESD's, 6 M5SER's and CAMEO's set.
LABEL_SPACES: dict[int, tuple[str, ...]] = {
    4: ("angry", "happy", "neutral", "sad"),
    5: ("angry", "happy", "neutral", "sad", "surprise"),
    6: ("angry", "fear", "happy", "neutral", "sad", "surprise"),
    7: EMOTIONS,
}

# emotion -> language (or kind of code) -> comma-separated spellings. Case, accents and _ or - do not matter.
SPELLINGS: dict[str, dict[str, str]] = {
    "angry": {
        "en": "angry, anger, angriness, mad",
        "codes": "ang, an, rab",
        "de": "Wut, Ärger, Zorn, Ärger/Wut, wütend, ärgerlich",
        "es": "ira, enojo, enfado, enojado, enojada, enfadado, enfadada, rabia",
        "fr": "colère, en colère",
        "it": "rabbia, arrabbiato, arrabbiata",
        "pl": "złość, gniew, zły",
        "pt": "raiva",
        "nl": "boos, boosheid",
        "tr": "kızgın, öfke, öfkeli",
        "ru": "злость, гнев, злой",
        "zh": "生气, 愤怒, 怒",
        "fa": "خشم, عصبانی",
    },
    "disgust": {
        "en": "disgust, disgusted",
        "codes": "dis, di",
        "de": "Ekel, angeekelt",
        "es": "asco",
        "fr": "dégoût",
        "it": "disgusto",
        "pl": "wstręt, obrzydzenie",
        "pt": "nojo",
        "nl": "walging",
        "tr": "iğrenme, tiksinti",
        "ru": "отвращение",
        "zh": "厌恶",
    },
    "fear": {
        "en": "fear, fearful, afraid, scared",
        "codes": "fea, fe, pau",
        "de": "Angst, Furcht, ängstlich",
        "es": "miedo, temor, asustado",
        "fr": "peur",
        "it": "paura",
        "pl": "strach, lęk",
        "pt": "medo",
        "nl": "bang, angst",
        "tr": "korku",
        "ru": "страх",
        "zh": "恐惧, 害怕",
        "fa": "ترس",
    },
    "happy": {
        "en": "happy, happiness, joy, joyful",
        "codes": "hap, ha, gio",
        "de": "Freude, fröhlich, glücklich",
        "es": "alegría, alegre, felicidad, feliz",
        "fr": "joie, heureux, joyeux",
        "it": "gioia, felice, felicità",
        "pl": "radość, szczęście",
        "pt": "alegria, felicidade",
        "nl": "blij, blijdschap",
        "tr": "mutlu, mutluluk",
        "ru": "радость, счастье",
        "zh": "高兴, 快乐, 开心",
        "fa": "شادی",
    },
    "neutral": {
        "en": "neutral, neutrality, nuetral",
        "codes": "neu",
        "de": "Neutral",
        "es": "neutro, neutra, neutralidad",
        "fr": "neutre",
        "it": "neutro, neutrale, neutralità",
        "pl": "neutralny, neutralne",
        "nl": "neutraal",
        "tr": "nötr",
        "ru": "нейтральный, нейтрально",
        "zh": "中性, 中立",
        "fa": "خنثی",
    },
    "sad": {
        "en": "sad, sadness",
        "codes": "sa, tri",
        "de": "Trauer, traurig, Traurigkeit",
        "es": "tristeza, triste",
        "fr": "tristesse",
        "it": "tristezza",
        "pl": "smutek, smutny",
        "nl": "verdrietig, verdriet",
        "tr": "üzgün, üzüntü",
        "ru": "грусть, печаль",
        "zh": "悲伤, 难过, 伤心",
        "fa": "غم, ناراحتی",
    },
    "surprise": {
        "en": "surprise, surprised, suprise, suprised",
        "codes": "sur, su, sor",
        "de": "Überraschung, überrascht",
        "es": "sorpresa, sorprendido, sorprendida",
        "fr": "surpris",
        "it": "sorpresa, sorpreso",
        "pl": "zaskoczenie, zdziwienie",
        "nl": "verrassing, verrast",
        "tr": "şaşkın, şaşkınlık",
        "ru": "удивление",
        "zh": "惊讶, 惊喜, 惊奇",
        "fa": "تعجب",
    },
}

# emotion -> the state that is folded into it -> comma-separated spellings of that state.
MERGES: dict[str, dict[str, str]] = {
    "angry": {
        "rage": "rage, furious, fury",
        "hot anger": "hot anger",
        "cold anger": "cold anger",
    },
    "fear": {"panic": "panic", "terror": "terror, terrified"},
    "happy": {"excited": "excited, excitement, exc", "elation": "elation, elated", "positive": "positive"},
    "neutral": {"calm": "calm, calmness, 平静"},
    "surprise": {"pleasant surprise": "pleasant surprise, pleasant surprised, ps"},
}


def normalize(native: str) -> str:
    """The form labels are compared in: case folded, no accents, `_`, `-` and runs of blanks as one blank."""
    decomposed = unicodedata.normalize("NFKD", native.casefold())
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(plain.replace("_", " ").replace("-", " ").split())


def _entries() -> Iterator[tuple[str, tuple[str, str | None]]]:
    for emotion, languages in SPELLINGS.items():
        for names in languages.values():
            yield from ((normalize(name), (emotion, None)) for name in names.split(","))
    for emotion, states in MERGES.items():
        for state, names in states.items():
            merge = f"{state}→{emotion}"
            yield from ((normalize(name), (emotion, merge)) for name in names.split(","))


def _table() -> dict[str, tuple[str, str | None]]:
    table: dict[str, tuple[str, str | None]] = {}
    for name, target in _entries():
        if table.setdefault(name, target) != target:
            raise ValueError(f"emotions.py: {name!r} is listed for both {table[name]} and {target}")
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
