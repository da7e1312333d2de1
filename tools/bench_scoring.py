"""What it costs to score an utterance against more labels: speech encoder, Q-Former and LLM, random weights.

Usage: python tools/bench_scoring.py [--labels=4,7,40] [--batch_size=8] [--seconds=4] [--repeats=5] [--label_tokens=1]
         [--tokenizer=DIR] [--config=configs/stage2.py:…]
Prints JSON: utterances/s of the whole scorer with one English question, for each number of labels (medians of runs in
turns), and how much longer the largest takes than the smallest. Beside them the inner nodes of the labels' trie, each
of which the LLM reads and its head normalises over the whole vocabulary: they, not the labels, are what costs. Without
--config the network is Whisper-base, a Q-Former of 8 queries and an LLM with the sizes of Gemma 3 270M, in float32.
Without --tokenizer a question has 20 tokens and a label --label_tokens: Gemma's own has one for each of the 40 words.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mser_jax import config as config_lib
from mser_jax import stages, state
from mser_jax.data import device
from mser_jax.data.chat import SPEECH, get_chat
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.label_trie import LabelTrie
from mser_jax.models.llm import LLMConfig
from mser_jax.models.rope import Rope
from mser_jax.models.speech_llm import SpeechLLM, SpeechLLMConfig
from mser_jax.models.whisper import WhisperConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import alignment
from mser_jax.stages.likelihood import LikelihoodScorer

WORDS = [
    "anger", "happiness", "neutral", "sadness", "fear", "surprise", "disgust", "boredom", "calm", "contempt",
    "excitement", "frustration", "pride", "shame", "guilt", "relief", "hope", "love", "envy", "jealousy", "amusement",
    "anxiety", "awe", "confusion", "curiosity", "despair", "embarrassment", "gratitude", "grief", "interest",
    "nostalgia", "panic", "regret", "satisfaction", "sympathy", "tenderness", "triumph", "worry", "irritation",
    "enthusiasm",
]  # fmt: skip
WHISPER_BASE = WhisperConfig(
    num_layers=6, width=512, num_heads=8, mlp_width=2048, conv_strides=(1, 2), stored_positions=True
)
GEMMA_270M = LLMConfig(
    model_type="gemma3_text", vocab_size=262_144, num_layers=18, width=640, num_heads=4, num_kv_heads=1, head_dim=256,
    mlp_width=2048, activation="gelu_tanh", qk_norm=True, sandwich_norms=True, norm_cast_first=False,
    scale_embeddings=True, tied=True, rope=Rope(theta=1e6), local_rope=Rope(theta=1e4), window=512,
    local_layers=tuple((layer + 1) % 6 != 0 for layer in range(18)),
)  # fmt: skip
QFORMER = QFormerConfig(num_layers=1, num_queries=8, width=128, num_heads=4, mlp_width=256)


class RandomChat:
    """Stands for a tokenizer: prompts of 20 tokens, speech included, labels of `label_tokens` that none shares."""

    end = 1

    def __init__(self, num_speech: int, label_tokens: int) -> None:
        self._num_speech, self._label_tokens = num_speech, label_tokens

    def prompt(self, question: str) -> np.ndarray:
        """A first id, the speech, and the rest."""
        del question
        return np.array([2, *(SPEECH,) * self._num_speech, *range(10, 29 - self._num_speech)], np.int32)

    def label(self, text: str) -> list[int]:
        """Ids that no other word of WORDS has."""
        first = 1000 + self._label_tokens * WORDS.index(text)
        return list(range(first, first + self._label_tokens))


def network(spec: str) -> tuple[ConfigDict, state.ModelDefinition, int]:
    """Config, model and number of soft tokens of a config file, or of the sizes above."""
    if spec:
        config = config_lib.load(spec)
        stage = stages.make(config, alignment.SYNTHETIC)
        return config, state.define(stage.build), stage.num_soft_tokens
    cfg = SpeechLLMConfig(speech=WHISPER_BASE, llm=GEMMA_270M, qformer=QFORMER, frame_pool=8)
    config = ConfigDict({"data": {"length_classes": (4.0,)}, "evaluate": {}})
    return config, state.define(lambda rngs: SpeechLLM(cfg, rngs)), cfg.num_soft_tokens


def measure(options: argparse.Namespace) -> dict[int, tuple[float, int]]:
    """{number of labels: (median seconds of one batch, inner nodes of their trie)}."""
    config, definition, num_speech = network(options.config)
    config.evaluate.update({"paraphrases": 1, "prior": "none"})
    chat = (
        get_chat(options.tokenizer, num_speech) if options.tokenizer else RandomChat(num_speech, options.label_tokens)
    )
    counts = [int(count) for count in options.labels.split(",")]
    mesh = mesh_lib.make_mesh()
    with jax.set_mesh(mesh):
        params = jax.jit(lambda key: state.initial_params(definition, key))(jax.random.key(0))
        samples = round(options.seconds * 16_000)
        noise = np.random.default_rng(0).integers(-3000, 3000, (options.batch_size, samples)).astype(np.int16)
        host = {"waveform": noise, "num_samples": np.full(options.batch_size, samples, np.int32)}
        batch = device.to_device(host, mesh)
        scorers = {n: LikelihoodScorer(config, definition, chat, mesh, WORDS[:n], ("en",)) for n in counts}
        took: dict[int, list[float]] = {n: [] for n in counts}
        for turn in range(options.repeats + 1):
            for n, scorer in scorers.items():
                begin = time.perf_counter()
                jax.block_until_ready(scorer(params, batch))
                if turn:  # the first compiles
                    took[n].append(time.perf_counter() - begin)
    nodes = {n: 1 + len(LabelTrie([chat.label(word) for word in WORDS[:n]], chat.end).tokens) for n in counts}
    return {n: (statistics.median(times), nodes[n]) for n, times in took.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", default="4,7,40", help=f"numbers of labels, at most {len(WORDS)}")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizer", default="", help='a directory with a Hugging Face tokenizer, or "byt5"')
    parser.add_argument("--label_tokens", type=int, default=1)
    parser.add_argument("--config", default="")
    options = parser.parse_args(argv)
    found = measure(options)
    rows = [
        {"labels": n, "inner_nodes": nodes, "utterances_per_second": round(options.batch_size / seconds, 3)}
        for n, (seconds, nodes) in found.items()
    ]
    growth = found[max(found)][0] / found[min(found)][0] - 1
    out = {"cores": len(os.sched_getaffinity(0)), "batch_size": options.batch_size, "seconds": options.seconds}
    print(json.dumps({**out, "rows": rows, "growth": round(growth, 3)}, indent=2))


if __name__ == "__main__":
    main()
