"""Stage 1: speech and text meet in an emotional space (arXiv:2503.21806)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import state
from mser_jax.config import DataSize
from mser_jax.data import audio
from mser_jax.data.text import get_tokenizer
from mser_jax.losses import classification, infonce, parallel, supcon
from mser_jax.models.dual_encoder import DualEncoder, DualEncoderConfig, flops_per_example
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.text_encoder import TextEncoderConfig
from mser_jax.models.whisper import WhisperConfig
from mser_jax.stages.base import Batch, BatchIterator, Evaluator
from mser_jax.stages.similarity import SimilarityEvaluator
from mser_jax.stages.speech_data import SpeechData

NUISANCES = ("language", "speaker", "domain")


def compute_dtype(config: ConfigDict) -> Any:
    """`precision.compute`, where auto is bfloat16 on accelerators and float32 on CPU."""
    config_lib.choice(config, "precision.compute", ("auto", "float32", "bfloat16"))
    name = config.precision.compute
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def model_config(config: ConfigDict, num_classes: Mapping[str, int]) -> DualEncoderConfig:
    """The network's sizes from the config's `model` section; a head for each nuisance whose weight is not 0.

    `num_classes` is {nuisance: size of its vocabulary}; one that has a single class gets no head.
    """
    model = config.model
    heads = tuple(
        (name, num_classes[name]) for name in NUISANCES if config.loss[f"adversary_{name}"] and num_classes[name] > 1
    )
    return DualEncoderConfig(
        speech=WhisperConfig(**model.speech),
        text=TextEncoderConfig(**model.text),
        qformer=QFormerConfig(**model.qformer),
        spec_augment=SpecAugmentConfig(**model.spec_augment),
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
    if config.mesh.tensor != 1:
        raise config_lib.ConfigError(
            f"--config.mesh.tensor={config.mesh.tensor}: stage 1 has no tensor parallelism; use 1"
        )
    vocab, needed = config.model.text.vocab_size, get_tokenizer(config.model.tokenizer).vocab_size
    if vocab < needed:
        raise config_lib.ConfigError(
            f"--config.model.text.vocab_size={vocab}: tokenizer {config.model.tokenizer!r} needs {needed}"
        )


class Alignment:
    """Stage 1 as the loop sees it (stages/base.py)."""

    def __init__(self, config: ConfigDict, metadata: Mapping[str, Any] | None = None) -> None:
        """`metadata`: of a checkpoint that is scored; the training data is then never opened."""
        validate(config)
        self._config = config
        self._tokenizer = get_tokenizer(config.model.tokenizer)
        self._data = SpeechData(config, metadata)
        self._model = model_config(config, self._data.num_classes)

    def data_size(self) -> DataSize:
        """Examples and hours in one pass over the training data."""
        return self._data.size()

    def metadata(self) -> dict[str, Any]:
        """What evaluation needs beside the config."""
        return self._data.metadata()

    def describe(self) -> str:
        """The training mix as a table."""
        return self._data.describe()

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The dual encoder."""
        return DualEncoder(self._model, rngs)

    def loss(self, model: DualEncoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """Σ weight · mean of each term, times the number of valid rows."""
        speech_rng, text_rng = jax.random.split(rng)
        speech = model.encode_speech(batch["waveform"], batch["num_samples"], rng=speech_rng).embedding
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
        """Analytic forward + backward FLOPs of a batch: three times the forward."""
        size, samples = batch["waveform"].shape
        return 3.0 * size * sum(flops_per_example(self._model, samples, batch["tokens"].shape[1]).values())

    def names(self, batch: Batch) -> list[str]:
        """Ids of the utterances of a batch."""
        return self._data.names(batch)

    def evaluators(self, mesh: Mesh) -> Sequence[Evaluator]:
        """Zero-shot scoring by similarity."""
        definition = state.define(self.build)
        return [SimilarityEvaluator(self._config, definition, self._data, self._tokenizer, mesh)]


# What a checkpoint's metadata would hold, for benchmarks and ahead-of-time compiles that open no data.
SYNTHETIC = {
    "trained_on": {"corpora": ["synthetic"], "languages": ["en"]},
    "num_classes": {"language": 8, "speaker": 64, "domain": 2},
}
