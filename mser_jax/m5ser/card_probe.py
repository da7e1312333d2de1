"""How well a linear probe tells real from synthetic speech, and what synthetic emotion says of real emotion."""

from __future__ import annotations

import collections
import dataclasses
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mser_jax.corpora import record
from mser_jax.corpora.audio_check import SAMPLING_RATE
from mser_jax.corpora.registry import PreparedCorpus
from mser_jax.evaluation.probes import probe

PER_LANGUAGE = 240  # utterances of either kind
_MELS = 40


@dataclasses.dataclass(frozen=True)
class Pool:
    """Utterances of one kind: features float64 [n, d]; language, emotion, speaker: str [n]."""

    features: np.ndarray
    language: np.ndarray
    emotion: np.ndarray
    speaker: np.ndarray


def pool(corpora: Sequence[PreparedCorpus], languages: Sequence[str], emotions: Sequence[str]) -> Pool:
    """Features of at most PER_LANGUAGE utterances of each language, the emotions as equal in number as may be."""
    rng = np.random.default_rng(0)
    places = collections.defaultdict(list)
    for corpus in corpora:
        rows = corpus.index.select(["language", "emotion", "speaker"]).to_pylist()
        for place, row in enumerate(rows):
            language = _primary(row["language"])
            if language in languages and row["emotion"] in emotions:
                places[language, row["emotion"]].append((corpus, place, row["speaker"]))
    chosen = []
    for (language, emotion), found in sorted(places.items()):
        present = len([1 for other, _ in places if other == language])
        for which in rng.permutation(len(found))[: PER_LANGUAGE // present]:
            chosen.append((language, emotion, *found[which]))
    features = [_features(corpus, place) for _, _, corpus, place, _ in chosen]
    text = [np.array([row[column] for row in chosen], dtype=str) for column in (0, 1, 4)]
    return Pool(np.array(features).reshape(len(chosen), 2 * _MELS), *text)


def _features(corpus: PreparedCorpus, row: int) -> np.ndarray:
    """Mean and deviation of log-mel energies over the sounding frames, the level of the whole taken out: [80]."""
    import librosa

    encoded = record.Utterance.from_example(corpus.source[row]).audio
    waveform, _ = soundfile.read(io.BytesIO(encoded), dtype="float32")
    power = librosa.feature.melspectrogram(y=waveform, sr=SAMPLING_RATE, n_fft=400, hop_length=160, n_mels=_MELS)
    # Silence around the words and the level are habits of a recording studio, not of speech.
    level = power.sum(axis=0)
    power = power[:, level > 1e-3 * level.max()]
    decibels = 10 * np.log10(power / power.mean() + 1e-6)
    return np.concatenate([decibels.mean(axis=1), decibels.std(axis=1)])


def real_or_synthetic(real: Pool, synthetic: Pool) -> dict[str, dict[str, Any]]:
    """language -> evaluation.probes.probe of speakers that it has not met.

    Within a language, as between languages a probe would hear the language. Languages with fewer than two speakers of
    either kind are left out.
    """
    out = {}
    for language in sorted(set(real.language) & set(synthetic.language)):
        parts = [(kind, pool_.language == language) for kind, pool_ in (("real", real), ("synthetic", synthetic))]
        pools = (real, synthetic)
        speakers = [pool_.speaker[rows] for pool_, (_, rows) in zip(pools, parts, strict=True)]
        if min(len(set(names)) for names in speakers) < 2:
            continue
        features = np.concatenate([pool_.features[rows] for pool_, (_, rows) in zip(pools, parts, strict=True)])
        target = np.concatenate([np.full(rows.sum(), kind) for kind, rows in parts])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sklearn's on folds that hold one class where speakers are few
            found = probe(features, target, np.concatenate(speakers))
        out[language] = found | {"speakers": tuple(len(set(names)) for names in speakers)}
    return out


def emotion_transfer(real: Pool, synthetic: Pool) -> dict[str, Any]:
    """Emotion told of one kind of speech by a probe that learned from another, over all languages.

    Features are centred and scaled by language within each kind, without labels. Returns balanced accuracies
    "real from synthetic" and "synthetic from real", beside "chance" and "emotions" (those that both have).
    """
    shared = sorted(set(real.emotion) & set(synthetic.emotion))
    sides = {}
    for name, pool_ in (("real", real), ("synthetic", synthetic)):
        rows = np.isin(pool_.emotion, shared)
        features = np.zeros_like(pool_.features)
        for language in set(pool_.language):
            own = pool_.language == language
            features[own] = StandardScaler().fit_transform(pool_.features[own])
        sides[name] = features[rows], pool_.emotion[rows]
    out: dict[str, Any] = {"chance": 1 / max(len(shared), 1), "emotions": shared}
    for test, train in (("real", "synthetic"), ("synthetic", "real")):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=500))
        told = model.fit(*sides[train]).predict(sides[test][0])
        out[f"{test} from {train}"] = float(balanced_accuracy_score(sides[test][1], told))
    return out


def _primary(language: str) -> str:
    return language.partition("-")[0].lower()
