"""Stage 2 scores any labels by their likelihood: log p(label | speech, question), over an ensemble of questions.

For every question the label's log-probability is divided by its number of tokens; what it is where nobody speaks
(`evaluate.prior`) is subtracted; the mean over the questions goes through a softmax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from scipy.special import softmax

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.data import audio, device, instructions, prompts, sources, tokenizer_check
from mser_jax.data.chat import Chat
from mser_jax.evaluation import calibration, rows, zero_shot
from mser_jax.models.label_trie import LabelTrie
from mser_jax.models.speech_llm import log_likelihood
from mser_jax.parallel import sharding
from mser_jax.stages import frozen_features, scoring
from mser_jax.stages.base import Batch, Params
from mser_jax.stages.embedding import SpeechEmbedder
from mser_jax.stages.speech_data import SpeechData, names

PRIORS = ("none", "content_free")
# Clips without speech that a prior is averaged over; see audio.content_free.
_CLIPS = 4


@dataclasses.dataclass(frozen=True)
class Question:
    """One member of the ensemble, in one language; `words`: what is scored for each label, in that language."""

    language: str
    text: str
    words: tuple[str, ...]


def ensemble(labels: Sequence[str], languages: Sequence[str], paraphrases: int) -> list[Question]:
    """The first `paraphrases` questions for the emotion in each of `languages`.

    A label that is a spelling of a canonical emotion is scored by that emotion's word in the question's language; any
    other word is scored as it stands.

    Raises:
        ValueError: a language without questions.
    """
    unknown = [language for language in languages if language not in instructions.languages()]
    if unknown or not languages or paraphrases < 1:
        raise ValueError(
            f"{paraphrases} questions in {tuple(languages)}: expected 1 or more, in some of {instructions.languages()}"
        )
    known = scoring.canonical_labels(labels)
    return [
        Question(language, text, tuple(prompts.label_word(known[label], language) for label in labels))
        for language in languages
        for text in instructions.questions("emotion", language)[:paraphrases]
    ]


class LikelihoodScorer:
    """Probabilities of labels: speech is encoded once for all questions, each question read once for all labels."""

    scoring = "label_likelihood"

    def __init__(
        self,
        config: ConfigDict,
        definition: state.ModelDefinition,
        chat: Chat,
        mesh: Mesh,
        labels: Sequence[str],
        languages: Sequence[str],
    ) -> None:
        """Raises ConfigError for labels that are none, languages without questions, or an unknown `evaluate.prior`."""
        self.labels, self.languages = scoring.check_labels(labels), tuple(languages)
        config_lib.choice(config, "evaluate.prior", PRIORS)
        self._mesh, self._whole = mesh, NamedSharding(mesh, P())
        with config_lib.blame("evaluate.prompt_languages"):
            self.questions = ensemble(self.labels, languages, config.evaluate.paraphrases)
        tokens = [chat.prompt(question.text) for question in self.questions]
        length = max(map(len, tokens))
        # One length for all: right-padded, as batches are.
        self._tokens = np.stack([np.pad(ids, (0, length - len(ids))) for ids in tokens])
        self._mask = np.arange(length) < np.array([len(ids) for ids in tokens])[:, None]
        # One program a language: its questions share their words.
        self._programs: dict[tuple[str, ...], Any] = {}
        for question in self.questions:
            if question.words not in self._programs:
                with scoring.labels_blamed():
                    words = dict(zip(self.labels, question.words, strict=True))
                    tokenizer_check.check_words(chat.tokenizer, words, f"word in {question.language!r}")
                trie = LabelTrie([chat.label(word) for word in question.words], end=chat.end)
                self._programs[question.words] = self._program(definition, trie)
        self._soft = jax.jit(lambda params, batch: frozen_features.soft_tokens(definition.merge(params), batch))
        self._samples = round(max(config.data.length_classes) * audio.SAMPLE_RATE)
        self.has_prior = config.evaluate.prior != "none"
        self.prior = scoring.OnceFor(self._prior)
        self._combine = jax.jit(
            lambda found, prior: jax.nn.softmax((found - prior).mean(1), axis=-1), out_shardings=self._whole
        )

    def _program(self, definition: state.ModelDefinition, trie: LabelTrie) -> Any:
        def score(params: Params, soft: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
            rows_of = (soft.shape[0], tokens.shape[0])
            batch = P(sharding.BATCH_AXES, None)
            tokens, mask = (sharding.constrain(jnp.broadcast_to(x, rows_of), batch) for x in (tokens, mask))
            total = log_likelihood(definition.merge(params), soft, tokens, mask, trie)
            return total / jnp.asarray(trie.lengths, jnp.float32)

        return jax.jit(score, out_shardings=self._whole)

    def __call__(self, params: Params, batch: Batch) -> jax.Array:
        """Probabilities f32 [B, labels] of a device batch of speech."""
        return self._combine(self.log_likelihoods(params, batch), self.prior(params))

    def log_likelihoods(self, params: Params, batch: Batch) -> jax.Array:
        """Mean log-probability of a token of each label, f32 [B, questions, labels], before any calibration."""
        soft = self._soft(params, batch)
        each = [
            self._programs[question.words](params, soft, tokens, mask)
            for question, tokens, mask in zip(self.questions, self._tokens, self._mask, strict=True)
        ]
        return jnp.stack(each, axis=1)

    def _prior(self, params: Params) -> np.ndarray:
        """What is subtracted, f32 [questions, labels]: the mean over clips in which nobody speaks, or 0."""
        if not self.has_prior:
            return np.zeros((len(self.questions), len(self.labels)), np.float32)
        parts = sharding.batch_parts(self._mesh)
        size = -(-_CLIPS // parts) * parts
        clips = {
            "waveform": audio.content_free(self._samples, size),
            "num_samples": np.full(size, self._samples, np.int32),
        }
        return np.asarray(self.log_likelihoods(params, device.to_device(clips, self._mesh)))[:_CLIPS].mean(0)


class LikelihoodEvaluator:
    """Scores every utterance of `config.evaluate` by label likelihood; writes results.json and its plots."""

    name = "label_likelihood"

    def __init__(
        self, config: ConfigDict, definition: state.ModelDefinition, data: SpeechData, chat: Chat, mesh: Mesh
    ) -> None:
        """Raises ConfigError for what would fail after hours of training; see LikelihoodScorer."""
        self._data, self._mesh = data, mesh
        self._embed = SpeechEmbedder(definition, data, mesh)
        self._evaluation = scoring.Evaluation(config, data)
        languages = names(config.evaluate.prompt_languages)
        self._scorer = LikelihoodScorer(config, definition, chat, mesh, self._evaluation.labels, languages)

    def run(self, params: Params, step: int, run: epath.Path, folder: epath.Path) -> Iterator[tuple[str, float]]:
        """Yields the averages over languages, each language's UA, ECE before and after, and incongruence.

        `evaluate.adapt` asks for rows from which the mean of the corpus, or of the speaker, is subtracted label by
        label: a prior from unlabelled speech of the test side (batch calibration, Zhou et al. 2023, arXiv:2309.17249).
        "…_em": what is left is where clusters of the encoder's features start (evaluation/transduction.py).
        """
        evaluation, prior = self._evaluation, self._scorer.prior(params)
        raw, places = self._over(params, evaluation.table)
        kept, owner = scoring.by_utterance(places)
        scores = (raw - prior).mean(1)

        def strict(table: sources.MixtureTable) -> tuple[np.ndarray, np.ndarray]:
            dev, dev_places = self._over(params, table)
            return softmax((dev - prior).mean(1), axis=-1), dev_places

        calibrated = evaluation.calibrate(strict, run, step, self._scorer.scoring, self._scorer.languages)
        found, answers = [], {}
        features = self._embed.layer_means_of(params, evaluation.table, kept) if evaluation.together else None
        of_voice, of_windows = evaluation.columns(kept), evaluation.columns(kept[owner])
        by_corpus = softmax(
            (scores - zero_shot.centres(scores, of_windows, "corpus")[0]) / calibrated.temperature, axis=-1
        )
        for adapt in evaluation.adapt:
            statistics = adapt.removesuffix(rows.TOGETHER)
            mean, fallback = zero_shot.centres(scores, of_windows, statistics, by_corpus)
            said = calibration.averaged(softmax((scores - mean) / calibrated.temperature, axis=-1), owner)
            if adapt != statistics:
                each = calibration.averaged(by_corpus, owner)
                said = zero_shot.together(said, features, of_voice, statistics, each)
            answers[adapt] = said
            fell = calibration.averaged(fallback, owner) > 0
            found += evaluation.rows(said, kept, adapt=adapt, fallback=fell)
        before, after = (
            calibration.averaged(softmax(scores / t, axis=-1), owner) for t in (1.0, calibrated.temperature)
        )
        results = evaluation.results(
            found, before, kept, run=run, step=step, scoring=self._scorer.scoring, calibrated=calibrated,
            tempered=after, facts=self._facts(raw, prior, kept, owner),
        )  # fmt: skip
        if jax.process_index() == 0:
            written = evaluation.write(results, folder, before, kept, calibrated, after, answers=answers)
            logging.info("Written: %s", ", ".join(map(str, written)))
        yield from scoring.summary(results)

    def _over(self, params: Params, table: Any) -> tuple[np.ndarray, np.ndarray]:
        return scoring.over_table(
            self._scorer.log_likelihoods, params, self._data, table, self._mesh, "label likelihood"
        )

    def _facts(self, raw: np.ndarray, prior: np.ndarray, kept: np.ndarray, owner: np.ndarray) -> dict[str, Any]:
        """What each question scores by itself, and all of them without the prior: UA, the mean over languages."""

        def ua(scores: np.ndarray) -> float | None:
            said = calibration.averaged(softmax(scores, axis=-1), owner)
            return rows.macro(self._evaluation.rows(said, kept))["all"]["ua"]

        questions = [
            {"language": question.language, "text": question.text, "ua": ua(raw[:, i] - prior[i])}
            for i, question in enumerate(self._scorer.questions)
        ]
        kind = "content_free" if self._scorer.has_prior else "none"
        return {"prior": {"kind": kind, "ua_without": ua(raw.mean(1))}, "questions": questions}
