"""Stage 2: an LLM reads what the Q-Former heard, and answers (arXiv:2503.21806)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.corpora import emotions
from mser_jax.data import instructions, prompts, tokenizer_check
from mser_jax.data.chat import Chat, get_chat
from mser_jax.losses import language_model
from mser_jax.models import lora
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.speech_llm import SpeechLLM, SpeechLLMConfig, flops_per_example
from mser_jax.models.speech_reader import MeanHeadConfig
from mser_jax.parallel import sharding
from mser_jax.stages import frozen_features, speech_stage, towers
from mser_jax.stages.base import Batch, Evaluator, Params, Scorer
from mser_jax.stages.generating import GenerationEvaluator
from mser_jax.stages.likelihood import LikelihoodEvaluator, LikelihoodScorer
from mser_jax.stages.speech_data import SpeechData, names
from mser_jax.stages.stage1_run import Stage1Run

_TABLE = "llm/tokens/table"


def model_config(config: ConfigDict, parts: towers.Towers) -> SpeechLLMConfig:
    """The network: its towers and the config's `model` section."""
    model = config.model
    return SpeechLLMConfig(
        speech=parts["speech_encoder"],
        llm=parts["llm"],
        qformer=QFormerConfig(**model.qformer),
        spec_augment=SpecAugmentConfig(**model.spec_augment),
        frame_pool=model.frame_pool,
        trailing_silence=speech_stage.trailing_silence(config),
        layer_mix_init=tuple(model.layer_mix_init),
        mean_head=MeanHeadConfig(**model.mean_head),
        embed_dim=model.embed_dim,
        dtype=speech_stage.compute_dtype(config),
    )


def question_maker(config: ConfigDict, num_speech: int) -> instructions.Instructions:
    """The questions that the config's data section asks for; an utterance is `num_speech` soft tokens.

    Raises ValueError for options that cannot be.
    """
    data = config.data
    return instructions.Instructions(
        options=instructions.InstructionOptions(
            kinds=tuple((kind, data.tasks[kind]) for kind in instructions.KINDS),
            languages=names(data.question_languages),
            short=tuple(data.sequences.short),
            long=tuple(data.sequences.long),
        ),
        tokenizer=towers.tokenizer_name(config, "llm"),
        num_speech=num_speech,
    )


def check_tokenizer(config: ConfigDict, rows: int, init: Path | None) -> None:
    """Raise ValueError where the LLM's tokenizer is not that of a table of `rows` rows, or lacks a language."""
    asked = {*names(config.data.question_languages), *names(config.evaluate.prompt_languages)}
    texts = {
        language: (*instructions.questions("emotion", language), *prompts.all_words("emotion", language))
        for language in sorted(asked & {*instructions.languages()})
    }
    tokenizer_check.check(towers.tokenizer_name(config, "llm"), rows, texts, init)


class Finetuning(speech_stage.SpeechStage):
    """Stage 2 as the loop sees it (stages/base.py)."""

    def __init__(self, config: ConfigDict, metadata: Mapping[str, Any] | None = None) -> None:
        """`metadata`: of a checkpoint that is scored; neither training data nor stage 1's run is then opened."""
        config_lib.check(config)
        self._stage1 = None if metadata or not config.init_from else Stage1Run(config.init_from)
        known = (metadata or {}).get("architecture") or (self._stage1.architecture if self._stage1 else None)
        parts = towers.make(config, known)
        speech_stage.check_speech(config, parts["speech_encoder"])
        model = model_config(config, parts)
        with config_lib.blame("llm.tokenizer"):
            folder = towers.tokenizer_weights(config, "llm", scored=metadata is not None)
            check_tokenizer(config, parts["llm"].vocab_size, folder)
            eos = tokenizer_check.eos_tokens(folder) if folder else ()
            self._chat = get_chat(towers.tokenizer_name(config, "llm"), model.num_soft_tokens, eos)
        with config_lib.blame("data"):
            text = question_maker(config, model.num_soft_tokens)
            text.check(parts["llm"].vocab_size)
        data = SpeechData(
            config, parts["speech_encoder"], text, metadata,
            trained_before=self._stage1 and self._stage1.trained_on,
            models_before=self._stage1 and self._stage1.pretrained_models,
        )  # fmt: skip
        super().__init__(config, parts, data, model)
        if metadata is None:
            self._check_features()

    @property
    def num_soft_tokens(self) -> int:
        """Of an utterance in a prompt."""
        return self._model.num_soft_tokens

    @property
    def chat(self) -> Chat:
        """The LLM's way of putting questions."""
        return self._chat

    def metadata(self) -> dict[str, Any]:
        """What evaluation needs beside the config, and which checkpoint of stage 1 this run began with."""
        stage1 = self._stage1 and {"run": self._stage1.workdir, "step": self._stage1.step}
        return {**super().metadata(), "stage1": stage1}

    def _network(self, rngs: nnx.Rngs) -> SpeechLLM:
        return SpeechLLM(self._model, rngs)

    def pretrained(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """The speech side of stage 1's run where the config names one, and the weights of towers that have an `init`.

        What is left to start from scratch is logged, leaf by leaf; it is a warning without a stage 1 run.

        Raises:
            ConfigError: a run or a directory does not fit; all leaves that do not are listed.
        """
        given: Params = {}
        loaded = dict(self._towers)
        if self._config.init_from:
            run = self._stage1 or Stage1Run(self._config.init_from)
            given = run.load(self._config, abstract)
            del loaded["speech_encoder"]
        given |= towers.load(self._config, loaded, abstract)
        if self._config.init_from and _TABLE in given:
            given |= self._aligned(run, given[_TABLE], abstract)
        fresh = [f"{path} {leaf.shape}" for path, leaf in abstract.items() if path not in given]
        log = logging.info if self._config.init_from else logging.warning
        why = "" if self._config.init_from else "No init_from, a run of stage 1: "
        log("%sfrom scratch start %d leaves:\n  %s", why, len(fresh), "\n  ".join(fresh))
        return given

    def _aligned(self, run: Stage1Run, table: jax.Array, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """The embedding's projection that puts each emotion's prompts of stage 1 where the LLM has the emotion's word.

        Stage 1 put speech where its prompts are, so the LLM reads from the start what it need not learn to hear. Least
        squares on what differs between emotions; the RMS norm behind it gives the scale.
        """
        languages = names(self._config.data.question_languages)
        anchors = run.anchors(emotions.EMOTIONS, languages, table.sharding.mesh)
        words = [
            [token for name in languages for token in self._chat.label(prompts.label_word(emotion, name))]
            for emotion in emotions.EMOTIONS
        ]
        look_up = jax.jit(lambda table, ids: sharding.replicate(sharding.lookup(table, ids)))
        rows = np.stack([np.asarray(look_up(table, np.array(ids)), np.float64).mean(0) for ids in words])
        kernel = np.linalg.pinv(anchors - anchors.mean(0), rcond=0.05) @ (rows - rows.mean(0))
        found = {"kernel": kernel, "bias": -anchors.mean(0) @ kernel}
        paths = {f"embedding_projection/{name}": value for name, value in found.items()}
        return {path: jax.device_put(x.astype(np.float32), abstract[path].sharding) for path, x in paths.items()}

    def loss(self, model: SpeechLLM, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """−log p of the answer's tokens, summed over valid rows."""
        speech_rng, llm_rng = jax.random.split(rng)
        soft = frozen_features.soft_tokens(model, batch, speech_rng)
        logits = model.answer_logits(soft, batch["tokens"], batch["token_mask"], batch["target_positions"], rng=llm_rng)
        counted = batch["target_mask"] & batch["valid"][:, None]
        total, weight, metrics = language_model.cross_entropy(logits, batch["targets"], counted)
        # An answer that was cut to its sequence class lacks its end.
        ended = ((batch["targets"] == self._chat.end) & batch["target_mask"]).any(-1)
        metrics |= {"answers_cut": (batch["valid"] & ~ended).sum(dtype=total.dtype), "answer_tokens": weight}
        return total, weight, metrics | speech_stage.batch_facts(batch)

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Analytic FLOPs of a batch.

        3 × the forward of what learns, 2 × an LLM that only adapters learn in or gradients pass through, 1 × a frozen
        speech encoder, 0 × kept features.
        """
        size, tokens = batch["tokens"].shape
        samples = self._data.samples_of(batch)
        forward = flops_per_example(self._model, samples, tokens, batch["targets"].shape[1])
        if "states" in batch:
            del forward["speech_encoder"]
        return size * sum(self._passes(part) * flops for part, flops in forward.items())

    def _passes(self, part: str) -> float:
        if part == "speech_encoder":
            return 3.0 if self._learning(part) else 1.0
        of_llm = (m for path, m in self._multipliers.items() if path.startswith("llm/") and not lora.is_adapter(path))
        return 2.0 if part.startswith("llm") and not any(of_llm) else 3.0

    def evaluators(self, mesh: Mesh) -> Sequence[Evaluator]:
        """Label likelihood, and what the LLM writes."""
        definition = state.define(self.build)
        return [
            evaluator(self._config, definition, self._data, self._chat, mesh)
            for evaluator in (LikelihoodEvaluator, GenerationEvaluator)
        ]

    def scorer(self, labels: Sequence[str], *, languages: Sequence[str], mesh: Mesh) -> Scorer:
        """The likelihood of each label."""
        languages = tuple(languages) or names(self._config.evaluate.prompt_languages)
        return LikelihoodScorer(self._config, state.define(self.build), self._chat, mesh, labels, languages)
