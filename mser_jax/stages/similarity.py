"""Zero-shot scoring of stage 1: the label whose prompts lie closest to the speech."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath, epy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.corpora import emotions
from mser_jax.data import prompts, sources, tokenizer_check
from mser_jax.data.text import Tokenizer
from mser_jax.evaluation import calibration, zero_shot
from mser_jax.stages import frozen_features, scoring
from mser_jax.stages.base import Batch, Params
from mser_jax.stages.embedding import SpeechEmbedder
from mser_jax.stages.speech_data import SpeechData, names

# matplotlib is imported when it is used: half of a program's start is its libraries.
with epy.lazy_imports():
    from mser_jax.evaluation import plots


class SimilarityScorer:
    """Probabilities of labels: softmax of the scaled cosine between speech and each label's mean prompt."""

    scoring = "similarity"

    def __init__(
        self,
        config: ConfigDict,
        definition: state.ModelDefinition,
        tokenizer: Tokenizer,
        mesh: Mesh,
        labels: Sequence[str],
        languages: Sequence[str],
    ) -> None:
        """`labels`: spellings of canonical emotions ("Wut"), or any English words; `languages` of the prompts.

        With a word of no table among them all labels have English prompts, and no other.

        Raises:
            ConfigError: no such labels, or a language without prompts.
        """
        self.labels, self.languages = scoring.check_labels(labels), tuple(languages)
        self._max_tokens, self._tokenizer = config.data.max_tokens, tokenizer
        words = scoring.canonical_labels(self.labels)
        with config_lib.blame("evaluate.prompt_languages"):
            common = prompts.common_languages(list(words.values()), languages)
        if not {*common} <= {*languages}:
            logging.warning(
                "Not in %s: a label is a word of no table, so all are put in English.", ", ".join(languages)
            )
        self._prompts = {label: prompts.label_prompts(word, common) for label, word in words.items()}
        with scoring.labels_blamed():
            free = [label for label, word in words.items() if word not in emotions.EMOTIONS]
            tokenizer_check.check_words(tokenizer, words, "text")
            tokenizer_check.tell_apart(tokenizer, self._prompts, self._max_tokens, uncut=free)
        self._whole = NamedSharding(mesh, P())
        self._text = jax.jit(
            lambda params, tokens, mask: definition.merge(params).encode_text(tokens, mask), out_shardings=self._whole
        )
        self._scale = jax.jit(lambda params: definition.merge(params).logit_scale(), out_shardings=self._whole)
        self._once = scoring.OnceFor(self._label_side)

        def score(params: Params, batch: Batch, anchors: jax.Array, scale: jax.Array) -> jax.Array:
            speech = frozen_features.encode_speech(definition.merge(params), batch).embedding
            return jax.nn.softmax(scale * speech @ anchors.T, axis=-1)

        self._score = jax.jit(score, out_shardings=self._whole)

    def __call__(self, params: Params, batch: Batch) -> jax.Array:
        """Probabilities f32 [B, labels] of a device batch of speech."""
        return self._score(params, batch, *self._once(params))

    def embed_prompts(self, params: Params) -> dict[str, np.ndarray]:
        """{label: unit-norm [prompts, E]}."""
        texts = [text for label in self.labels for text in self._prompts[label]]
        placed = jax.device_put(self._tokenizer.encode(texts, self._max_tokens), self._whole)
        found = iter(np.asarray(self._text(params, *placed)))
        return {label: np.stack([next(found) for _ in self._prompts[label]]) for label in self.labels}

    def scale(self, params: Params) -> float:
        """What the cosine is multiplied with."""
        return float(self._scale(params))

    def _label_side(self, params: Params) -> tuple[jax.Array, jax.Array]:
        anchors = zero_shot.label_anchors(self.embed_prompts(params), self.labels)
        return jax.device_put((anchors.astype(np.float32), np.float32(self.scale(params))), self._whole)


class SimilarityEvaluator:
    """Embeds every utterance of `config.evaluate` and every prompt of its labels; writes results.json and its plots."""

    name = "zero_shot"

    def __init__(
        self,
        config: ConfigDict,
        definition: state.ModelDefinition,
        data: SpeechData,
        embedder: SpeechEmbedder,
        tokenizer: Tokenizer,
        mesh: Mesh,
    ) -> None:
        """Checks what can be checked before hours of training: label space, prompt languages, adaptations.

        Raises:
            ConfigError: one of them is unknown.
        """
        self._data, self._embed = data, embedder
        self._evaluation = scoring.Evaluation(config, data)
        self._labels = self._evaluation.labels
        languages = names(config.evaluate.prompt_languages)
        self._scorer = SimilarityScorer(config, definition, tokenizer, mesh, self._labels, languages)

    def run(self, params: Params, step: int, run: epath.Path, folder: epath.Path) -> Iterator[tuple[str, float]]:
        """Yields the averages over languages (`zero_shot/ua`, `all/ua`, …), each language's UA, and more."""
        evaluation = self._evaluation
        windows, places = self._embed.windows(params, evaluation.table)
        kept, owner = scoring.by_utterance(places)
        columns = evaluation.columns(kept)
        prompted, scale = self._scorer.embed_prompts(params), self._scorer.scale(params)
        anchors = zero_shot.label_anchors(prompted, self._labels)

        def strict(table: sources.MixtureTable) -> tuple[np.ndarray, np.ndarray]:
            dev, dev_places = self._embed.windows(params, table)
            return zero_shot.probabilities(dev, anchors, scale), dev_places

        calibrated = evaluation.calibrate(strict, run, step, self._scorer.scoring, self._scorer.languages)
        answers = zero_shot.answers(
            windows,
            prompted,
            scale / calibrated.temperature,
            columns,
            self._labels,
            adapt=evaluation.adapt,
            features=self._embed.layer_means_of(params, evaluation.table, kept) if evaluation.together else None,
            owner=owner,
        )
        found = [
            row
            for adapt, (said, fallback) in answers.items()
            for row in evaluation.rows(said, kept, adapt=adapt, fallback=fallback)
        ]
        before, after = (
            calibration.averaged(zero_shot.probabilities(windows, anchors, scale / t), owner)
            for t in (1.0, calibrated.temperature)
        )
        results = evaluation.results(
            found, before, kept, run=run, step=step, scoring=self._scorer.scoring, calibrated=calibrated, tempered=after
        )
        if jax.process_index() == 0:
            said = {adapt: said for adapt, (said, _) in answers.items()}
            written = evaluation.write(results, folder, before, kept, calibrated, after, answers=said)
            if any(row["n"] for row in results["rows"]):
                centres = dict(zip(self._labels, anchors, strict=True))
                embeddings = calibration.averaged(windows, owner)
                written.append(plots.save_embeddings(embeddings, columns, centres, folder / "embeddings.png"))
            logging.info("Written: %s", ", ".join(map(str, written)))
        yield from scoring.summary(results)
