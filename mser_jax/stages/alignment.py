"""Stage 1: speech and text meet in an emotional space (arXiv:2503.21806)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.corpora.emotions import EMOTIONS
from mser_jax.data import prompts, tokenizer_check
from mser_jax.data.text import Tokenizer, get_tokenizer
from mser_jax.losses import classification, contrast, infonce, parallel, supcon
from mser_jax.models.dual_encoder import DualEncoder, DualEncoderConfig, flops_per_example
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.speech_reader import MeanHeadConfig
from mser_jax.parallel import microbatch
from mser_jax.stages import frozen_features, frozen_texts, speech_stage, towers
from mser_jax.stages.base import Batch, Evaluator, Params, Scorer
from mser_jax.stages.embedding import SpeechEmbedder
from mser_jax.stages.encoder_probing import EncoderProbeEvaluator
from mser_jax.stages.probing import ProbeEvaluator
from mser_jax.stages.similarity import SimilarityEvaluator, SimilarityScorer
from mser_jax.stages.speech_data import SpeechData, names

NUISANCES = ("language", "speaker", "domain")


def model_config(config: ConfigDict, parts: towers.Towers, num_classes: Mapping[str, int]) -> DualEncoderConfig:
    """The network: its towers, the config's `model` section, and a head for each nuisance whose weight is not 0.

    `num_classes` is {nuisance: size of its vocabulary}; one that has a single class gets no head.
    """
    model = config.model
    heads = tuple(
        (name, num_classes[name]) for name in NUISANCES if config.loss[f"adversary_{name}"] and num_classes[name] > 1
    )
    return DualEncoderConfig(
        speech=parts["speech_encoder"],
        text=parts["text_encoder"],
        qformer=QFormerConfig(**model.qformer),
        spec_augment=SpecAugmentConfig(**model.spec_augment),
        frame_pool=model.frame_pool,
        trailing_silence=speech_stage.trailing_silence(config),
        layer_mix_init=tuple(model.layer_mix_init),
        mean_head=MeanHeadConfig(**model.mean_head),
        embed_dim=model.embed_dim,
        logit_scale_init=model.logit_scale_init,
        logit_scale_max=model.logit_scale_max,
        heads=heads,
        dtype=speech_stage.compute_dtype(config),
    )


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for values that would only fail, or silently mislead, once the run is under way."""
    config_lib.choice(config, "loss.positives", infonce.POSITIVES)
    config_lib.choice(config, "loss.implementation", contrast.CHOICES)
    config_lib.check(config)
    if config.train.accumulate != 1:
        raise config_lib.ConfigError(
            f"--config.train.accumulate={config.train.accumulate}: stage 1 contrasts an utterance with the rest of its "
            "batch: parts of a batch have fewer negatives, which is another loss. Use 1; where memory is short, "
            "--config.train.encoder_microbatches=N runs the towers in N parts and still contrasts all rows at once; "
            "or remat, or a smaller train.batch_size"
        )


def captions(config: ConfigDict) -> prompts.Captions:
    """The captions that the config's data section asks for. Raises ValueError for options that cannot be."""
    options = config.data.captions
    kinds = tuple((name, options[name]) for name in prompts.KINDS)
    return prompts.Captions(
        options=prompts.CaptionOptions(
            kinds=kinds, languages=names(options.languages), transcript_probability=options.transcript_probability
        ),
        tokenizer=towers.tokenizer_name(config),
        max_tokens=config.data.max_tokens,
    )


def check_towers(config: ConfigDict, parts: towers.Towers, tokenizer: Tokenizer, *, scored: bool = False) -> None:
    """Raises ConfigError where a tower cannot take what the config would feed it.

    `scored`: as `towers.tokenizer_weights` has it.
    """
    speech_stage.check_speech(config, parts["speech_encoder"])
    text = parts["text_encoder"]
    if text.vocab_size < tokenizer.vocab_size:
        raise config_lib.ConfigError(
            f"--config.text_encoder: a table of {text.vocab_size} tokens, but tokenizer "
            f"{towers.tokenizer_name(config)!r} needs {tokenizer.vocab_size}"
        )
    read = {*names(config.data.captions.languages), *names(config.evaluate.prompt_languages)}
    texts = {
        language: [text for emotion in EMOTIONS for text in prompts.label_prompts(emotion, (language,))]
        for language in sorted(read & {*prompts.prompt_languages()})
    }
    init = towers.tokenizer_weights(config, "text_encoder", scored)
    tokenizer_check.check(towers.tokenizer_name(config), text.vocab_size, texts, init, closed=True)
    room = text.max_positions - text.position_offset
    if config.data.max_tokens > room:
        raise config_lib.ConfigError(
            f"--config.data.max_tokens={config.data.max_tokens}: the text tower ends at {room}"
        )


def check_captions(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Raise ConfigError where captions of two emotions become the same tokens."""
    wanted, languages = names(config.data.emotions) or EMOTIONS, names(config.data.captions.languages)
    with config_lib.blame(f"data.max_tokens={config.data.max_tokens}"):
        texts = {emotion: prompts.label_prompts(emotion, languages) for emotion in wanted}
        tokenizer_check.tell_apart(tokenizer, texts, config.data.max_tokens)


def microbatches(config: ConfigDict) -> int:
    """In how many parts the towers take a batch; runs that are older than the key have no parts."""
    return config.train.get("encoder_microbatches", 1)


def _embed(model: DualEncoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(speech, text) embeddings f32 [B, E] of unit norm; `rng` draws dropout and SpecAugment."""
    speech_rng, text_rng = jax.random.split(rng)
    speech = frozen_features.encode_speech(model, batch, speech_rng).embedding
    return speech, frozen_texts.encode_text(model, batch, text_rng)


class Alignment(speech_stage.SpeechStage):
    """Stage 1 as the loop sees it (stages/base.py)."""

    def __init__(self, config: ConfigDict, metadata: Mapping[str, Any] | None = None) -> None:
        """`metadata`: of a checkpoint that is scored; the training data is then never opened."""
        validate(config)
        parts = towers.make(config, (metadata or {}).get("architecture"))
        with config_lib.blame("text_encoder.tokenizer"):
            self._tokenizer = get_tokenizer(towers.tokenizer_name(config))
            check_towers(config, parts, self._tokenizer, scored=metadata is not None)
        with config_lib.blame("data.captions"):
            self._captions = captions(config)
        if metadata is None:
            check_captions(config, self._tokenizer)
        data = SpeechData(config, parts["speech_encoder"], self._captions, metadata)
        super().__init__(config, parts, data, model_config(config, parts, data.num_classes))
        self._scored_only = metadata is not None
        if metadata is None:
            self._check_features()

    def _network(self, rngs: nnx.Rngs) -> DualEncoder:
        return DualEncoder(self._model, rngs)

    def pretrained(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """The weights of the towers that have an `init`."""
        return towers.load(self._config, self._towers, abstract)

    @functools.cached_property
    def _texts(self) -> list[str] | None:
        """The captions whose features are kept: where it is asked for, the tower is frozen, and they can be told."""
        frozen = not self._learning(frozen_texts.ENCODER) and not self._config.text_encoder.dropout
        if not (self._config.data.feature_cache and frozen):
            return None
        return self._captions.every_text(names(self._config.data.emotions) or EMOTIONS)

    def prepare(self, params: Params, mesh: Mesh, stop: Callable[[], bool]) -> None:
        """Computes what the frozen towers say, where the config asks for it: of speech to disk, of captions in memory.

        A checkpoint that is only scored has no captions.
        """
        super().prepare(params, mesh, stop)
        if self._texts and not self._scored_only:
            self._data.use_texts(
                frozen_texts.FrozenTexts(self._texts, self._captions, state.define(self.build), params, mesh)
            )

    def batch_spec(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """The largest training batch."""
        spec = super().batch_spec(mesh)
        return frozen_texts.without_tokens(spec, self._model.text.width) if self._texts else spec

    def loss(self, model: DualEncoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """Σ weight · mean of each term, times the number of valid rows."""
        wanted = (*frozen_features.INPUTS, *frozen_texts.INPUTS)
        inputs = {name: batch[name] for name in wanted if name in batch}
        speech, text = microbatch.encode(functools.partial(_embed, model), inputs, rng, microbatches(self._config))
        terms = self._terms(model, speech, text, batch)
        total, metrics = jnp.zeros(()), {}
        for name, (weight, (term_sum, term_weight, extra)) in terms.items():
            mean = term_sum / jnp.maximum(term_weight, 1.0)
            total = total + weight * mean
            metrics[f"loss_{name}"] = mean
            metrics.update({f"{name}/{key}": value for key, value in extra.items()})
        metrics |= speech_stage.batch_facts(batch)
        return total * metrics["examples"], metrics["examples"], metrics

    def _terms(self, model: DualEncoder, speech: jax.Array, text: jax.Array, batch: Batch) -> dict[str, Any]:
        """{name: (weight, (sum, weight, metrics))} of the terms that are not switched off."""
        options = self._config.loss
        facts = {name: batch[name] for name in ("emotion", "valid")} | {"implementation": options.implementation}
        terms = {}
        if options.speech_text:
            terms["speech_text"] = options.speech_text, infonce.speech_text(
                speech, text, model.logit_scale(), caption_id=batch["caption_id"], **facts,
                positives=options.positives,
            )  # fmt: skip
        if options.supcon:
            terms["supcon"] = options.supcon, supcon.supcon(
                speech, language=batch["language"], **facts,
                temperature=options.supcon_temperature, cross_language_weight=options.cross_language_weight,
            )  # fmt: skip
        if options.parallel:
            terms["parallel"] = options.parallel, parallel.parallel(
                speech, parallel_id=batch["parallel_id"], language=batch["language"], **facts,
                logit_scale=1.0 / options.supcon_temperature,
            )  # fmt: skip
        for name, logits in model.adversary_logits(speech, 1.0).items():
            terms[f"adversary_{name}"] = (
                options[f"adversary_{name}"],
                classification.cross_entropy(logits, batch[name], batch["valid"]),
            )
        return terms

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Analytic FLOPs of a batch: 3 × the forward of what learns, 1 × a frozen tower, 0 × kept features."""
        size = batch["caption_id"].shape[0]
        forward = flops_per_example(self._model, self._data.samples_of(batch), self._captions.max_tokens)
        for kept, part in (("states", frozen_features.ENCODER), ("text_means", frozen_texts.ENCODER)):
            if kept in batch:
                del forward[part]
        frozen = {name for name in self._towers if not self._learning(name)}
        return size * sum((1.0 if part in frozen else 3.0) * flops for part, flops in forward.items())

    def evaluators(self, mesh: Mesh) -> Sequence[Evaluator]:
        """Zero-shot scoring by similarity, and the probes that the config asks for."""
        definition = state.define(self.build)
        embedder = SpeechEmbedder(definition, self._data, mesh)
        found: list[Evaluator] = [
            SimilarityEvaluator(self._config, definition, self._data, embedder, self._tokenizer, mesh)
        ]
        if self._config.evaluate.probes:
            found.append(ProbeEvaluator(embedder, self._data))
        if self._config.evaluate.get("encoder_probe"):
            found.append(EncoderProbeEvaluator(self._config, embedder, self._data))
        return found

    def scorer(self, labels: Sequence[str], *, languages: Sequence[str], mesh: Mesh) -> Scorer:
        """Similarity to the prompts of each label."""
        languages = tuple(languages) or names(self._config.evaluate.prompt_languages)
        return SimilarityScorer(self._config, state.define(self.build), self._tokenizer, mesh, labels, languages)


# What a checkpoint's metadata would hold, for benchmarks and ahead-of-time compiles that open no data.
SYNTHETIC = {
    "trained_on": {"corpora": ["synthetic"], "languages": ["en"]},
    "num_classes": {"language": 8, "speaker": 64, "domain": 2},
    "size": {"examples": 100_000, "hours": 100.0},
}
