"""Stage 2 scored by what it writes: greedy generation, read by named extractors."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.data import prompts
from mser_jax.data.chat import Chat
from mser_jax.evaluation import calibration, finite
from mser_jax.evaluation.extractors import EXTRACTORS
from mser_jax.models.generation import generate
from mser_jax.parallel import sharding
from mser_jax.stages import frozen_features, scoring
from mser_jax.stages.base import Batch, Params
from mser_jax.stages.likelihood import ensemble
from mser_jax.stages.speech_data import SpeechData, names

# Tokens beyond the longest label's: room for a full stop, no room for a tale.
_SPARE_TOKENS = 4


class GenerationEvaluator:
    """Asks one question, the first of the first of `evaluate.prompt_languages`, and extracts labels from the answers.

    Writes results.json below FOLDER/generation_EXTRACTOR, each with `unparseable` answers counted on its rows: they are
    wrong. Words of every prompt language are understood.
    """

    name = "generation"

    def __init__(
        self, config: ConfigDict, definition: state.ModelDefinition, data: SpeechData, chat: Chat, mesh: Mesh
    ) -> None:
        """Raises ConfigError for an unknown extractor."""
        self._data, self._mesh, self._chat = data, mesh, chat
        self._evaluation = scoring.Evaluation(config, data)
        self._extractors = tuple(name for name in names(config.evaluate.extractors) if name != "none")
        if unknown := set(self._extractors) - set(EXTRACTORS):
            raise config_lib.ConfigError(
                f"--config.evaluate.extractors: {', '.join(sorted(unknown))}; there are {', '.join(EXTRACTORS)}, none"
            )
        languages, labels = names(config.evaluate.prompt_languages), self._evaluation.labels
        with config_lib.blame("evaluate.prompt_languages"):
            question = ensemble(labels, languages, 1)[0]
        self._words = {
            label: [label, *(prompts.label_word(label, language) for language in languages)] for label in labels
        }
        room = max(len(chat.answer(word)) for words in self._words.values() for word in words) + _SPARE_TOKENS
        tokens = chat.prompt(question.text)

        def answer(params: Params, batch: Batch) -> jax.Array:
            model = definition.merge(params)
            soft = frozen_features.soft_tokens(model, batch)
            shape = (soft.shape[0], len(tokens))
            ids = sharding.constrain(jnp.broadcast_to(tokens, shape), P(sharding.BATCH_AXES, None))
            x = model.embed(ids, soft)
            return generate(model.llm, x, ids == ids, max_new_tokens=room, stop_tokens=chat.stops)[0]

        self._answer = jax.jit(answer, out_shardings=NamedSharding(mesh, P()))

    def run(self, params: Params, step: int, run: epath.Path, folder: epath.Path) -> Iterator[tuple[str, float]]:
        """Yields, below the name of each extractor, averages over languages and the share of unparseable answers."""
        if not self._extractors:
            return
        evaluation = self._evaluation
        tokens, places = scoring.over_table(
            self._answer, params, self._data, evaluation.table, self._mesh, "generation"
        )
        # -1: what the LLM would write next was not finite.
        finite.check(np.where(tokens < 0, np.nan, 0), "answers", evaluation.table["id"][places], params)
        kept, owner = scoring.by_utterance(places)
        texts = [self._chat.decode(row) for row in tokens]
        for name in self._extractors:
            each = one_hot([EXTRACTORS[name](text, self._words) for text in texts], evaluation.labels)
            # Most windows decide; the first label where two have as many.
            votes = calibration.averaged(each, owner)
            chosen = np.eye(len(evaluation.labels))[votes.argmax(-1)] * votes.any(-1, keepdims=True)
            # An answer comes without confidence, so without a calibration error.
            found = [{**row, "ece": None} for row in evaluation.rows(chosen, kept)]
            results = evaluation.results(found, chosen, kept, run=run, step=step, scoring=f"generation:{name}")
            if jax.process_index() == 0:
                written = evaluation.write(
                    results, folder / f"generation_{name}", chosen, kept, answers={"none": chosen}
                )
                logging.info("Written: %s", ", ".join(map(str, written)))
            yield from ((f"{name}/{key}", value) for key, value in scoring.summary(results))
            yield f"{name}/unparseable", float(np.mean(~chosen.any(-1)))


def one_hot(answers: list[str | None], labels: tuple[str, ...]) -> np.ndarray:
    """Rows for rows.make_rows, float64 [n, labels]: 1 at the answer, all 0 where there is none."""
    return np.array([[label == answer for label in labels] for answer in answers], np.float64)
