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
from mser_jax import optim, state
from mser_jax.config import DataSize
from mser_jax.data import audio
from mser_jax.data.text import Tokenizer, get_tokenizer
from mser_jax.losses import classification, infonce, parallel, supcon
from mser_jax.models import lora
from mser_jax.models.dual_encoder import DualEncoder, DualEncoderConfig, flops_per_example
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.stages import frozen_features, towers
from mser_jax.stages.base import Batch, BatchIterator, Evaluator, Params, Scorer
from mser_jax.stages.embedding import SpeechEmbedder
from mser_jax.stages.frozen_features import FrozenFeatures
from mser_jax.stages.probing import ProbeEvaluator
from mser_jax.stages.similarity import SimilarityEvaluator, SimilarityScorer
from mser_jax.stages.speech_data import SpeechData, names

NUISANCES = ("language", "speaker", "domain")


def compute_dtype(config: ConfigDict) -> Any:
    """`precision.compute`, where auto is bfloat16 on accelerators and float32 on CPU."""
    config_lib.choice(config, "precision.compute", ("auto", "float32", "bfloat16"))
    name = config.precision.compute
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


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
        layer_mix_init=tuple(model.layer_mix_init),
        embed_dim=model.embed_dim,
        logit_scale_init=model.logit_scale_init,
        logit_scale_max=model.logit_scale_max,
        heads=heads,
        dtype=compute_dtype(config),
    )


def validate(config: ConfigDict) -> None:
    """Raises ConfigError for values that would only fail, or silently mislead, once the run is under way."""
    config_lib.choice(config, "loss.positives", infonce.POSITIVES)
    config_lib.choice(config, "loss.implementation", tuple(infonce.IMPLEMENTATIONS))
    for term in ("speech_text", "supcon", "parallel", *(f"adversary_{name}" for name in NUISANCES)):
        config_lib.at_least(config, f"loss.{term}", 0.0)
    config_lib.at_least(config, "train.batch_size", 1)
    config_lib.at_least(config, "model.frame_pool", 1)
    if config.mesh.tensor != 1:
        raise config_lib.ConfigError(
            f"--config.mesh.tensor={config.mesh.tensor}: stage 1 has no tensor parallelism; use 1"
        )
    if config.lora.pattern:
        config_lib.at_least(config, "lora.rank", 1)


def check_towers(config: ConfigDict, parts: towers.Towers, tokenizer: Tokenizer) -> None:
    """Raises ConfigError where a tower cannot take what the config would feed it."""
    speech, text = parts["speech_encoder"], parts["text_encoder"]
    if text.vocab_size < tokenizer.vocab_size:
        raise config_lib.ConfigError(
            f"--config.text_encoder: a table of {text.vocab_size} tokens, but tokenizer "
            f"{towers.tokenizer_name(config)!r} needs {tokenizer.vocab_size}"
        )
    room = text.max_positions - text.position_offset
    if config.data.max_tokens > room:
        raise config_lib.ConfigError(
            f"--config.data.max_tokens={config.data.max_tokens}: the text tower ends at {room}"
        )
    mix = config.model.layer_mix_init
    if mix and len(mix) != speech.num_layers + 1:
        raise config_lib.ConfigError(
            f"--config.model.layer_mix_init: {len(mix)} logits, but {speech.num_layers + 1} hidden states (layers + 1)"
        )
    masks = config.model.spec_augment
    if speech.family != "whisper" and (masks.time_masks or masks.freq_masks):
        raise config_lib.ConfigError(
            f"--config.model.spec_augment: masks are cut into log-mel features, and {speech.family} has none; use 0"
        )


class Alignment:
    """Stage 1 as the loop sees it (stages/base.py)."""

    def __init__(self, config: ConfigDict, metadata: Mapping[str, Any] | None = None) -> None:
        """`metadata`: of a checkpoint that is scored; the training data is then never opened."""
        validate(config)
        self._config = config
        self._towers = towers.make(config, (metadata or {}).get("architecture"))
        with config_lib.blame("text_encoder.tokenizer"):
            self._tokenizer = get_tokenizer(towers.tokenizer_name(config))
        check_towers(config, self._towers, self._tokenizer)
        self._data = SpeechData(config, self._towers["speech_encoder"], metadata)
        self._model = model_config(config, self._towers, self._data.num_classes)
        if metadata is None:
            frozen_features.check(config, lambda: "speech_encoder" in self._frozen)

    def prepare(self, params: Params, mesh: Mesh, stop: Callable[[], bool]) -> None:
        """Computes the features of the frozen speech encoder that are not kept yet, where the config asks for it."""
        if self._config.data.feature_cache:
            definition = state.define(self.build)
            self._data.use_features(FrozenFeatures(self._config, self._model, definition, params, mesh, stop))

    def data_size(self) -> DataSize:
        """Examples and hours in one pass over the training data."""
        return self._data.size()

    def metadata(self) -> dict[str, Any]:
        """What evaluation needs beside the config."""
        started = towers.initialised_from(self._config)
        return {**self._data.metadata(), "architecture": towers.describe(self._towers), "pretrained": started}

    def describe(self) -> str:
        """The training mix as a table."""
        return self._data.describe()

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The dual encoder, with LoRA where the config asks for it."""
        model = DualEncoder(self._model, rngs)
        options = self._config.lora
        if options.pattern:
            with config_lib.blame("lora.pattern"):
                lora.attach(model, options.pattern, rank=options.rank, alpha=options.alpha, rngs=rngs)
        return model

    def pretrained(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """The weights of the towers that have an `init`."""
        return towers.load(self._config, self._towers, abstract)

    def loss(self, model: DualEncoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """Σ weight · mean of each term, times the number of valid rows."""
        speech_rng, text_rng = jax.random.split(rng)
        speech = frozen_features.encode_speech(model, batch, speech_rng).embedding
        text = model.encode_text(batch["tokens"], batch["token_mask"], rng=text_rng)
        terms = self._terms(model, speech, text, batch)
        total, metrics = jnp.zeros(()), {}
        for name, (weight, (term_sum, term_weight, extra)) in terms.items():
            mean = term_sum / jnp.maximum(term_weight, 1.0)
            total = total + weight * mean
            metrics[f"loss_{name}"] = mean
            metrics.update({f"{name}/{key}": value for key, value in extra.items()})
        valid = batch["valid"]
        count = valid.sum(dtype=jnp.float32)
        seconds = jnp.where(valid, batch["num_samples"], 0).sum(dtype=jnp.float32) / audio.SAMPLE_RATE
        # Rows of a training batch are invalid only where a record could not be read or decoded.
        metrics |= {"examples": count, "audio_seconds": seconds, "unreadable": valid.size - count}
        return total * count, count, metrics

    def _terms(self, model: DualEncoder, speech: jax.Array, text: jax.Array, batch: Batch) -> dict[str, Any]:
        """{name: (weight, (sum, weight, metrics))} of the terms that are not switched off."""
        options = self._config.loss
        facts = {name: batch[name] for name in ("emotion", "valid")}
        terms = {}
        if options.speech_text:
            terms["speech_text"] = options.speech_text, infonce.speech_text(
                speech, text, model.logit_scale(), caption_id=batch["caption_id"], **facts,
                positives=options.positives, implementation=options.implementation,
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

    def batches(self, start: int, mesh: Mesh) -> BatchIterator:
        """Training batches of steps start, start + 1, …"""
        return self._data.batches(start, mesh)

    def batch_spec(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """The largest training batch."""
        return self._data.batch_spec(mesh)

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Analytic FLOPs of a batch: 3 × the forward of what learns, 1 × a frozen tower, 0 × kept features."""
        size, tokens = batch["tokens"].shape
        forward = flops_per_example(self._model, self._data.samples_of(batch), tokens)
        if "states" in batch:
            del forward["speech_encoder"]
        return size * sum((1.0 if part in self._frozen else 3.0) * flops for part, flops in forward.items())

    @functools.cached_property
    def _frozen(self) -> set[str]:
        """The towers of which nothing learns."""
        with config_lib.blame("optim"):
            multipliers = optim.group_of(list(state.define(self.build).abstract), self._config.optim.groups)
        learning = {path.partition("/")[0] for path, multiplier in multipliers.items() if multiplier}
        return set(self._towers) - learning

    def names(self, batch: Batch) -> list[str]:
        """Ids of the utterances of a batch."""
        return self._data.names(batch)

    def evaluators(self, mesh: Mesh) -> Sequence[Evaluator]:
        """Zero-shot scoring by similarity, and probes where the config asks for them."""
        definition = state.define(self.build)
        embedder = SpeechEmbedder(definition, self._data, mesh)
        found = [SimilarityEvaluator(self._config, definition, self._data, embedder, self._tokenizer, mesh)]
        return [*found, ProbeEvaluator(embedder, self._data)] if self._config.evaluate.probes else found

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
