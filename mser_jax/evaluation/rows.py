"""Result rows: one per corpus × language × adaptation, each saying whether, or why not, it is zero-shot.

Shared by every way of scoring (similarity in stage 1, label likelihood and generation in stage 2): all of
them end in probabilities over a label space.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mser_jax.corpora.seen_by import are_one
from mser_jax.evaluation import finite, metrics

# What is taken from the unlabelled utterances that are scored (zero_shot.py); "…_em": and they answer together.
TOGETHER = "_em"
ADAPTATIONS = ("none", "corpus", "speaker", f"corpus{TOGETHER}", f"speaker{TOGETHER}")
# By what training saw: neither, the corpus, the language, both; zero_shot is the strict one.
PROTOCOLS = ("zero_shot", "leave_one_language_out", "leave_one_corpus_out", "in_corpus")
COLUMNS = ("corpus", "language", "speaker", "emotion")
# Of a row while it is not yet in results.json: {speaker: confusion counts [labels, labels + 1]}, see `macro`.
BY_SPEAKER = "by_speaker"
Row = dict[str, Any]

# Tags that name the same language as another one in use: a corpus tagged "cmn" is not unseen by a model
# trained on "zh" (ISO 639-3 members that BCP-47 data mixes with their macrolanguage).
_SAME_LANGUAGE = {
    "cmn": "zh",
    "arb": "ar",
    "pes": "fa",
    "nb": "no",
    "nn": "no",
    "zsm": "ms",
    "ekk": "et",
    "swh": "sw",
}
_NO_LANGUAGE = ("", "und", "mul", "mis", "zxx")


def primary(language: str) -> str:
    """Primary subtag of a BCP-47 tag, lower case ("zh-CN" -> "zh"); "" where no one language is named."""
    tag = language.replace("_", "-").split("-")[0].lower()
    return "" if tag in _NO_LANGUAGE else _SAME_LANGUAGE.get(tag, tag)


def why_not_zero_shot(
    corpus: str,
    language: str,
    trained_on: Mapping[str, Iterable[str]],
    seen_by: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
) -> str:
    """Why a row is not zero-shot, or "" where it is: corpus and language absent from every training there
    was.

    Args:
      corpus, language: of the row.
      trained_on: {"corpora": names, "languages": BCP-47 tags} of the training mix.
      seen_by: the same for each pretrained part, {"whisper-base": {"corpora": …, "languages": …}}.
    """
    of_corpus, of_language = _exposure(corpus, language, trained_on, seen_by)
    return "; ".join([*of_corpus, *of_language])


def protocol(
    corpus: str,
    language: str,
    trained_on: Mapping[str, Iterable[str]],
    seen_by: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
) -> str:
    """Which of PROTOCOLS a row follows; arguments as in `why_not_zero_shot`."""
    of_corpus, of_language = _exposure(corpus, language, trained_on, seen_by)
    return PROTOCOLS[2 * bool(of_language) + bool(of_corpus)]


def _exposure(
    corpus: str,
    language: str,
    trained_on: Mapping[str, Iterable[str]],
    seen_by: Mapping[str, Mapping[str, Iterable[str]]] | None,
) -> tuple[list[str], list[str]]:
    """Reasons why the corpus, and why the language, counts as seen."""
    of_corpus, of_language = [], []
    for who, seen in {
        "training": trained_on,
        **{f"pretraining of {k}": v for k, v in (seen_by or {}).items()},
    }.items():
        corpora = {_plain(name) for name in seen.get("corpora", ())}
        languages = {primary(tag): tag for tag in seen.get("languages", ())}
        if any(are_one(_plain(corpus), name) for name in corpora):
            of_corpus.append(f"corpus {corpus} in {who}")
        if primary(language) and primary(language) in languages:
            of_language.append(f"language {languages[primary(language)]} in {who}")
        if "" in languages:
            of_language.append(f"speech of unknown language in {who}")
    if not primary(language):
        of_language.append("its language is unknown")
    return of_corpus, of_language


def _plain(corpus: str) -> str:
    """A corpus's name as it is compared: "CREMA-D", "crema_d" and "cremad" are one."""
    return re.sub(r"[^\w/]|_", "", corpus.casefold())


def check_columns(columns: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """The COLUMNS as numpy string arrays [n]; ValueError naming what is missing or of another length."""
    missing = [name for name in COLUMNS if name not in columns]
    wrong = [f"{name}: {len(columns[name])}" for name in COLUMNS if name in columns and len(columns[name]) != n]
    if missing or wrong:
        raise ValueError(f"evaluation columns: missing {missing}, lengths {wrong}; expected {COLUMNS}, {n} rows each")
    return {name: np.asarray(columns[name], dtype=str) for name in COLUMNS}


def corpora_by_language(columns: Mapping[str, np.ndarray]) -> list[tuple[str, str, np.ndarray]]:
    """(corpus, language, positions) of every pair that occurs, by language and then corpus."""
    pairs = sorted({(lang, corpus) for corpus, lang in zip(columns["corpus"], columns["language"], strict=True)})
    return [
        (
            str(corpus),
            str(lang),
            np.flatnonzero((columns["corpus"] == corpus) & (columns["language"] == lang)),
        )
        for lang, corpus in pairs
    ]


def make_rows(
    probabilities: np.ndarray,
    columns: Mapping[str, np.ndarray],
    label_space: Sequence[str],
    *,
    trained_on: Mapping[str, Iterable[str]],
    seen_by: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
    adapt: str = "none",
    fallback: np.ndarray | None = None,
    resamples: int = 1000,
    unreadable: Mapping[str, np.ndarray] | None = None,
) -> list[Row]:
    """Scores probabilities against the canonical emotions, one row per corpus × language.

    Args:
      probabilities: [n, labels] over `label_space`; the answer is the largest. A row of zeros is an answer that names
        none of them: it is wrong, and counted as `unparseable`.
      columns: COLUMNS as arrays [n] of strings. Utterances whose emotion is outside the label space are
        skipped and counted by label. An unknown speaker ("") counts as one speaker.
      label_space: names of the labels.
      trained_on, seen_by: as in `why_not_zero_shot`.
      adapt: one of ADAPTATIONS, noted on the rows.
      fallback: bool [n], utterances of whose speaker's mean more than half is the corpus's (adapt="speaker…").
      resamples: bootstrap draws.
      unreadable: utterances without probabilities, as they could not be decoded: COLUMNS, "id" and "reason". With `n`
        and `skipped` their count `unreadable` adds up to all there were.

    Returns:
      Rows of results.json, and BY_SPEAKER for `macro`; figures are None where no utterance could be scored, `ua_ci95`
      and `ua_se` (bootstrap standard error) where there are fewer than two speakers. `unreadable_ids` has five.

    Raises:
      NotFiniteError: probabilities that are not finite.
    """
    columns, n = check_columns(columns, len(probabilities)), len(probabilities)
    finite.check(probabilities, f"probabilities (adapt={adapt})")
    lost = {name: np.asarray((unreadable or {}).get(name, ()), str) for name in (*COLUMNS, "id", "reason")}
    ids = {label: i for i, label in enumerate(label_space)}
    references = np.array([ids.get(emotion, -1) for emotion in columns["emotion"]], np.int64)
    rows = []
    every = {name: np.concatenate([columns[name], lost[name]]) for name in COLUMNS}
    for corpus, language, there in corpora_by_language(every):
        where, missing = there[there < n], there[there >= n] - n
        scored = where[references[where] >= 0]
        left_out = Counter(str(e) or "unknown" for e in columns["emotion"][where[references[where] < 0]])
        why_not = why_not_zero_shot(corpus, language, trained_on, seen_by)
        row = {"corpus": corpus, "language": language, "adapt": adapt}
        row |= {"n": len(scored), "skipped": left_out.total(), "left_out": dict(sorted(left_out.items()))}
        row |= {"unreadable": len(missing), "unreadable_ids": lost["id"][missing][:5].tolist()}
        row |= {"unreadable_reasons": dict(Counter(why or "unknown" for why in lost["reason"][missing].tolist()))}
        row |= {"protocol": protocol(corpus, language, trained_on, seen_by)}
        row |= {"zero_shot": not why_not} | ({"why_not": why_not} if why_not else {})
        # Nobody knows whether the unknown speakers of two rows are the same: here they are not.
        speakers = [str(name) or f"unknown of {corpus} in {language}" for name in columns["speaker"][scored]]
        row |= _figures(probabilities[scored], references[scored], np.array(speakers, str), resamples)
        if adapt.startswith("speaker") and fallback is not None:
            row["fallback_utterances"] = int(fallback[where].sum())
            row["fallback_speakers"] = len(np.unique(columns["speaker"][where[fallback[where]]]))
        rows.append(row)
    return rows


def _figures(probabilities: np.ndarray, references: np.ndarray, speakers: np.ndarray, resamples: int) -> Row:
    """Figures of one row from probabilities [n, labels], class ids [n] and speakers [n]."""
    classes = probabilities.shape[1]
    # One column more than there are classes: no answer.
    predictions = np.where(probabilities.any(-1), probabilities.argmax(-1), classes)
    names, who = np.unique(speakers, return_inverse=True)
    by_speaker = np.stack(
        [metrics.confusion(references[who == s], predictions[who == s], classes + 1)[:-1] for s in range(len(names))]
        or [np.zeros((classes, classes + 1), np.int64)]
    )
    matrix = by_speaker.sum(0)
    draws = metrics.bootstrap(by_speaker, resamples)["ua"] if len(names) > 1 else None
    out: Row = {"speakers": len(names)}
    out |= {name: _number(value) for name, value in metrics.figures(matrix).items()}
    out["ua_ci95"] = None if draws is None else list(metrics.interval95(draws))
    out["ua_se"] = None if draws is None else float(draws.std())
    out["ece"] = _number(metrics.expected_calibration_error(probabilities, references))
    out["recall"] = [_number(value) for value in metrics.recall(matrix)]
    out["confusion"] = matrix[:, :classes].tolist()
    out["unparseable"] = int(matrix[:, classes].sum())
    out[BY_SPEAKER] = dict(zip(names.tolist(), by_speaker.tolist(), strict=False))
    return out


def _number(value: float | np.ndarray) -> float | None:
    return None if np.isnan(value) else float(value)


def macro(rows: Sequence[Row], resamples: int = 1000) -> dict[str, Any]:
    """Averages over languages (within a language over corpora first), zero-shot rows and all rows apart.

    Rows with adapt="none" give {"zero_shot": figures, "all": figures} and one for every other protocol there
    is; adapted rows are never mixed in: they stand below "adapt" as {"corpus": {"zero_shot": …, "all": …}, …}.
    `ua_ci95` and `ua_se` draw a speaker once for all rows that the speaker is in; rows are those of `make_rows`.
    """

    def both(adapt: str) -> dict[str, Any]:
        mine = [row for row in rows if row["adapt"] == adapt]
        others = [name for name in PROTOCOLS[1:] if any(row["protocol"] == name for row in mine)]
        groups = {n: [row for row in mine if row["protocol"] == n] for n in ("zero_shot", *others)} | {"all": mine}
        return {name: _average(group, resamples) for name, group in groups.items()}

    adapted = [name for name in ADAPTATIONS[1:] if any(row["adapt"] == name for row in rows)]
    return {**both("none"), "adapt": {name: both(name) for name in adapted}}


def language_weights(languages: Sequence[str]) -> np.ndarray:
    """The weight [rows] of each row in an average over languages, and within a language over corpora; sums to 1."""
    count = Counter(map(primary, languages))
    return np.array([1 / count[primary(language)] / len(count) for language in languages])


def _average(rows: Sequence[Row], resamples: int) -> dict[str, Any]:
    rows = [row for row in rows if row["n"]]
    weights = language_weights([row["language"] for row in rows])
    out: dict[str, Any] = {
        "languages": sorted({primary(row["language"]) for row in rows}),
        "rows": len(rows),
        "n": sum(row["n"] for row in rows),
    }
    for name in (*metrics.FIGURES, "ece"):
        values = [row[name] for row in rows]
        # Rounding in the weights must not push a perfect score above 1.
        out[name] = min(float(np.dot(weights, values)), 1.0) if rows and None not in values else None
    out["ua_ci95"] = out["ua_se"] = None
    if rows and all(row["speakers"] > 1 for row in rows):
        draws = np.minimum(weights @ ua_draws([row[BY_SPEAKER] for row in rows], resamples), 1.0)
        out |= {"ua_ci95": list(metrics.interval95(draws)), "ua_se": float(np.nanstd(draws))}
    return out


def ua_draws(by_speaker: Sequence[Mapping[str, Any]], resamples: int, seed: int = 0) -> np.ndarray:
    """UA [rows, resamples] of joint draws of speakers (metrics.joint_draws); NaN where a draw leaves a row empty.

    `by_speaker`: of each row {speaker: confusion counts [labels, …]}.
    """
    times = metrics.joint_draws([list(counts) for counts in by_speaker], resamples, seed)
    each = [np.array(list(counts.values())) for counts in by_speaker]
    return np.stack(
        [metrics.figures(np.tensordot(t, counts, axes=1))["ua"] for t, counts in zip(times, each, strict=True)]
    )
