"""Zero-shot scoring by similarity: an utterance gets the label whose prompts it lies closest to.

`adapt` says which unlabelled statistics of the test side are used; each is reported apart:

- "none": none. Every utterance is scored by itself; the strict setting.
- "corpus": the mean of the corpus (in one language) is subtracted and every dimension divided by its spread.
- "speaker": the speaker's own mean is subtracted, shrunk towards the corpus's as far as the speaker has few or
  one-sided utterances (pooling.py); the spread is that around these means, over the corpus. Speakers of whose mean less
  than half is left are counted.
- "corpus_em", "speaker_em": what these say is where clusters of the encoder's features start (transduction.py).

The label anchors are centred on their own mean: what is left on both sides is the direction away from "an
average emotion". Statistics use every utterance given, those outside the label space too, as no label may be
looked at. Simulated with 6 labels, 12 speakers of 40 utterances and nuisance whose spectrum falls as 1/k, UA
is .60 as it is, .74 centred and .80 centred and scaled by corpus, .87 and .91 by speaker; with a flat
spectrum scaling changes nothing. With 6 utterances a speaker (1/√k), a speaker's own spread gives .75, none
.77, the pooled one .78.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mser_jax.evaluation import calibration, finite, pooling, transduction
from mser_jax.evaluation.rows import ADAPTATIONS, TOGETHER, Row, check_columns, corpora_by_language, make_rows

# A dimension that hardly varies is not blown up beyond this share of the average spread.
_SPREAD_FLOOR = 0.1
# Utterances of a corpus that tell too little of its speakers: their means count half. Without it, 20 to 50 utterances,
# 3 to 8 one-sided ones a speaker, lost 0.015 UA against the corpus's mean in German and in Mandarin.
_FEW = 50


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def label_anchors(prompt_embeddings: Mapping[str, np.ndarray], label_space: Sequence[str]) -> np.ndarray:
    """Anchors [labels, d] float64: the normalised mean of each label's unit-norm prompt embeddings [prompts,
    d].

    Raises:
      ValueError: a label of the space has no prompts.
    """
    missing = [label for label in label_space if label not in prompt_embeddings or not len(prompt_embeddings[label])]
    if missing:
        raise ValueError(f"no prompt embeddings for {missing}; there are {sorted(prompt_embeddings)}")
    means = [_unit(np.asarray(prompt_embeddings[label], np.float64)).mean(0) for label in label_space]
    return _unit(np.stack(means))


def adapted(
    embeddings: np.ndarray,
    anchors: np.ndarray,
    columns: Mapping[str, np.ndarray],
    adapt: str,
    answers: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and anchors after unlabelled adaptation (see the module's docstring).

    Args:
      embeddings: unit-norm [n, d], float64.
      anchors: unit-norm [labels, d].
      columns: rows.COLUMNS as string arrays [n].
      adapt: "none", "corpus" or "speaker".
      answers: probabilities [n, labels] after adapt="corpus"; only "speaker" needs them.

    Returns:
      embeddings [n, d] and anchors [labels, d], unit-norm again (or zero), and bool [n]: most of the speaker's mean was
      shrunk away.
    """
    if adapt == "none":
        return embeddings, anchors, np.zeros(len(embeddings), bool)
    centre, fallback = centres(embeddings, columns, adapt, answers)
    out = np.empty_like(embeddings)
    for _, _, where in corpora_by_language(columns):
        moved = embeddings[where] - centre[where]
        spread = np.sqrt((moved**2).mean(0))
        floor = _SPREAD_FLOOR * np.sqrt((spread**2).mean())
        out[where] = _unit(moved / (np.maximum(spread, floor) if floor > 0 else 1.0))
    return out, _unit(anchors - anchors.mean(0)), fallback


def centres(
    values: np.ndarray, columns: Mapping[str, np.ndarray], adapt: str, answers: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where the group of each utterance lies: its corpus in one language, or its speaker there (pooling.py).

    Args:
      values: [n, d].
      columns: rows.COLUMNS as string arrays [n].
      adapt: "none" gives zeros, "corpus" means, "speaker" means shrunk towards those (the more, the fewer utterances
        the corpus has).
      answers: probabilities [n, labels] after adapt="corpus"; only "speaker" needs them.

    Returns:
      [n, d], and bool [n]: more than half of the distance from the corpus's mean was shrunk away.
    """
    out, fallback = np.zeros_like(values), np.zeros(len(values), bool)
    for _, _, where in corpora_by_language(columns) if adapt != "none" else ():
        out[where] = values[where].mean(0)
        if adapt == "speaker":
            means, shrunk = pooling.speaker_means(values[where], answers[where], columns["speaker"][where])
            trust = len(where) ** 4 / (len(where) ** 4 + _FEW**4)
            out[where] += trust * (means - out[where])
            fallback[where] = 1 - trust * (1 - shrunk) > 0.5
    return out, fallback


def probabilities(embeddings: np.ndarray, anchors: np.ndarray, logit_scale: float) -> np.ndarray:
    """softmax(logit_scale · cosine): [n, d], [labels, d] -> [n, labels], float64."""
    logits = logit_scale * embeddings @ anchors.T
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def together(
    probabilities: np.ndarray,
    features: np.ndarray | None,
    columns: Mapping[str, np.ndarray],
    adapt: str,
    answers: np.ndarray | None = None,
) -> np.ndarray:
    """What the utterances of each corpus (in one language) say together, float64 [n, labels].

    Args:
      probabilities: [n, labels], what each says by itself, after `adapt`.
      features: [n, d]; those of each corpus are clustered, after the mean of the group that `adapt` names is gone.
      columns: rows.COLUMNS as string arrays [n].
      adapt: "corpus" or "speaker".
      answers: as of `centres`.

    Raises:
      ValueError: there are no features.
      NotFiniteError: some are not finite.
    """
    if features is None:
        raise ValueError(f"adapt={adapt}{TOGETHER}: there are no features to find clusters in")
    finite.check(features, "features")
    moved = features - centres(features, columns, adapt, answers)[0]
    out = np.empty(probabilities.shape)
    for _, _, where in corpora_by_language(columns):
        out[where] = transduction.transduce(probabilities[where], moved[where])
    return out


def answers(
    embeddings: np.ndarray,
    prompt_embeddings: Mapping[str, np.ndarray],
    logit_scale: float,
    columns: Mapping[str, np.ndarray],
    label_space: Sequence[str],
    *,
    adapt: Sequence[str] = ("none", "corpus", "speaker"),
    features: np.ndarray | None = None,
    owner: np.ndarray | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give what each adaptation answers: {adapt: (probabilities [n, labels], bool [n] as of `adapted`)}.

    Args:
      embeddings: [windows, d] of the utterances; only their direction counts.
      prompt_embeddings: {label: [prompts, d]}, the prompt ensemble of each label.
      logit_scale: what the cosine is multiplied with before the softmax (moves ECE, never the answer).
      columns: {"corpus", "language", "speaker", "emotion"}: string arrays [n]; emotion canonical, "" unknown.
      label_space: labels to choose from, any subset of the prompts' labels.
      adapt: which of ADAPTATIONS to score.
      features: [n, d], what "…_em" finds clusters in.
      owner: int [windows], the utterance of each; by default each has one. An utterance is answered by the mean over
        its windows, as predict does.

    Raises:
      ValueError: unknown adaptation, missing prompts, columns or features.
      NotFiniteError: embeddings or features that are not finite.
    """
    unknown = [name for name in adapt if name not in ADAPTATIONS]
    if unknown:
        raise ValueError(f"adapt={unknown}: expected some of {ADAPTATIONS}")
    embeddings = np.asarray(embeddings, np.float64)
    finite.check(embeddings, "embeddings")
    owner = np.arange(len(embeddings)) if owner is None else owner
    columns = check_columns(columns, int(owner.max(initial=-1)) + 1)
    of_windows = {name: values[owner] for name, values in columns.items()}
    embeddings, anchors = _unit(embeddings), label_anchors(prompt_embeddings, label_space)
    speech, labels, _ = adapted(embeddings, anchors, of_windows, "corpus")
    by_corpus = probabilities(speech, labels, logit_scale)
    found = {}
    for name in adapt:
        statistics = name.removesuffix(TOGETHER)
        speech, labels, fallback = adapted(embeddings, anchors, of_windows, statistics, by_corpus)
        said = calibration.averaged(probabilities(speech, labels, logit_scale), owner)
        if name != statistics:
            said = together(said, features, columns, statistics, calibration.averaged(by_corpus, owner))
        found[name] = said, calibration.averaged(fallback, owner) > 0
    return found


def score(
    embeddings: np.ndarray,
    prompt_embeddings: Mapping[str, np.ndarray],
    logit_scale: float,
    columns: Mapping[str, np.ndarray],
    label_space: Sequence[str],
    *,
    trained_on: Mapping[str, Iterable[str]],
    seen_by: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
    resamples: int = 1000,
    **options: Any,
) -> list[Row]:
    """Rows of results.json: one per adaptation × corpus × language.

    Args:
      embeddings, prompt_embeddings, logit_scale, columns, label_space, options: as of `answers`.
      trained_on, seen_by: who saw what, see rows.why_not_zero_shot.
      resamples: bootstrap draws.

    Raises:
      ValueError: as `answers`.
    """
    exposure = {"trained_on": trained_on, "seen_by": seen_by, "resamples": resamples}
    given = answers(embeddings, prompt_embeddings, logit_scale, columns, label_space, **options)
    return [
        row
        for name, (said, fallback) in given.items()
        for row in make_rows(said, columns, label_space, adapt=name, fallback=fallback, **exposure)
    ]
