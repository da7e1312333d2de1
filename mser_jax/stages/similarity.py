"""Zero-shot evaluation of stage 1: the label whose prompts lie closest to the speech."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.corpora import emotions
from mser_jax.data import prompts, sources
from mser_jax.data.text import Tokenizer
from mser_jax.evaluation import plots, report, rows, zero_shot
from mser_jax.stages import towers
from mser_jax.stages.base import Params
from mser_jax.stages.embedding import SpeechEmbedder
from mser_jax.stages.speech_data import SpeechData, names


class SimilarityEvaluator:
    """Embeds every utterance of `config.evaluate` and every prompt of its labels; writes results.json and two plots."""

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
        self._config, self._data, self._tokenizer, self._mesh = config, data, tokenizer, mesh
        evaluate = config.evaluate
        self._adapt = names(evaluate.adapt)
        unknown = set(self._adapt) - set(rows.ADAPTATIONS)
        if unknown or not self._adapt:
            raise config_lib.ConfigError(
                f"--config.evaluate.adapt={evaluate.adapt!r}: expected some of {rows.ADAPTATIONS}"
            )
        with config_lib.blame("evaluate"):
            self._labels = emotions.label_space(evaluate.label_space)
            self._prompts = {
                label: prompts.label_prompts(label, names(evaluate.prompt_languages)) for label in self._labels
            }
        self._table: sources.MixtureTable | None = None
        self._embed = embedder
        whole = NamedSharding(mesh, P())
        self._text = jax.jit(
            lambda params, tokens, mask: definition.merge(params).encode_text(tokens, mask), out_shardings=whole
        )
        self._scale = jax.jit(lambda params: definition.merge(params).logit_scale(), out_shardings=whole)

    def run(self, params: Params, step: int, run: epath.Path, folder: epath.Path) -> Iterator[tuple[str, float]]:
        """Yields the averages over languages (`zero_shot/ua`, `all/ua`, …) and each language's UA."""
        if self._table is None:
            self._table = self._data.evaluation_table()
        embeddings, kept = self._embed(params, self._table)
        columns = {name: self._table[name][kept] for name in rows.COLUMNS}
        anchors = self._embed_prompts(params)
        results = report.build(
            stage="alignment",
            checkpoint=str(run),
            step=step,
            label_space=self._labels,
            scoring="similarity",
            trained_on=self._data.metadata()["trained_on"],
            merges=self._merges(kept),
            pretrained=towers.initialised_from(self._config),
            rows=zero_shot.score(
                embeddings,
                anchors,
                float(self._scale(params)),
                columns,
                self._labels,
                trained_on=self._data.metadata()["trained_on"],
                adapt=self._adapt,
                resamples=self._config.evaluate.bootstrap_samples,
            ),
        )
        if jax.process_index() == 0:
            self._write(results, embeddings, columns, anchors, folder)
        yield from _summary(results)

    def _embed_prompts(self, params: Params) -> dict[str, np.ndarray]:
        """{label: [prompts, E]}."""
        texts = [text for label in self._labels for text in self._prompts[label]]
        tokens, mask = self._tokenizer.encode(texts, self._config.data.max_tokens)
        whole = NamedSharding(self._mesh, P())
        placed = jax.device_put((tokens, mask), whole)
        found = iter(np.asarray(self._text(params, *placed)))
        return {label: np.stack([next(found) for _ in self._prompts[label]]) for label in self._labels}

    def _merges(self, kept: np.ndarray) -> dict[str, int]:
        """{"excited→happy": count} over the utterances whose label was folded into a canonical one."""
        natives = collections.Counter(self._table["emotion_native"][kept].tolist())
        counts: collections.Counter[str] = collections.Counter()
        for native, count in natives.items():
            merge = emotions.canonical(native)[1]
            if merge:
                counts[merge] += count
        return dict(counts)

    def _write(
        self, results: dict[str, Any], embeddings: np.ndarray, columns: dict[str, np.ndarray],
        anchors: dict[str, np.ndarray], folder: epath.Path,
    ) -> None:  # fmt: skip
        logging.info("\n%s", report.format_table(results))
        written = [report.write(results, folder)]
        if any(row["n"] for row in results["rows"]):
            written.append(plots.save_confusions(results["rows"], self._labels, folder / "confusion.png"))
            centres = dict(zip(self._labels, zero_shot.label_anchors(anchors, self._labels), strict=True))
            written.append(plots.save_embeddings(embeddings, columns, centres, folder / "embeddings.png"))
        logging.info("Written: %s", ", ".join(map(str, written)))


def _summary(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Scalars for the metric writers."""
    macros: Sequence[tuple[str, dict[str, Any]]] = [
        ("", results["macro"]),
        *((f"adapt_{name}/", macro) for name, macro in results["macro"]["adapt"].items()),
    ]
    for prefix, macro in macros:
        for group in ("zero_shot", "all"):
            if macro[group]["rows"]:
                yield f"{prefix}{group}/ua", macro[group]["ua"]
                yield f"{prefix}{group}/macro_f1", macro[group]["macro_f1"]
    for row in results["rows"]:
        if row["adapt"] == "none" and row["n"]:
            yield f"ua/{row['corpus']}/{row['language']}", row["ua"]
