"""The stage 1 step in PyTorch + transformers, for tools/bench_step.py --beside=torch to compare with.

Usage: python tools/bench_step_torch.py [--seconds=30] [--learn=heads] [--batch_size=8] [--max_tokens=16] [--steps=5]
One process, one figure: prints JSON. Weights are random: they do not change what a step costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mser_jax import config as config_lib

ROOT = Path(__file__).resolve().parents[1]
SAMPLING_RATE = 16_000
CONFIG = f"{ROOT}/configs/stage1.py:whisper_base_e5"


class Attention(nn.Module):
    """Multi-head attention of queries to a memory of any width."""

    def __init__(self, width: int, heads: int, memory_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(memory_width, width), nn.Linear(memory_width, width)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """[B, N, width], [B, T, memory_width] -> [B, N, width]."""

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)

        y = functional.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(memory)), heads(self.value(memory))
        )
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Pre-norm: attention among queries, attention to frames, MLP."""

    def __init__(self, sizes: Any, memory_width: int) -> None:
        super().__init__()
        width = sizes.width
        self.drop = nn.Dropout(sizes.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own = Attention(width, sizes.num_heads, width)
        self.cross = Attention(width, sizes.num_heads, memory_width)
        self.mlp = nn.Sequential(nn.Linear(width, sizes.mlp_width), nn.GELU(), nn.Linear(sizes.mlp_width, width))

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """[B, N, width], [B, T, memory_width] -> [B, N, width]."""
        y = self.norms[0](x)
        x = x + self.drop(self.own(y, y))
        x = x + self.drop(self.cross(self.norms[1](x), memory))
        return x + self.drop(self.mlp(self.norms[2](x)))


class DualEncoder(nn.Module):
    """Whisper's encoder, layer mix, Q-Former; E5; projections and temperature: stage 1's network."""

    def __init__(self, config: Any, frames: int) -> None:
        super().__init__()
        speech, text, model = config.speech_encoder.sizes, config.text_encoder.sizes, config.model
        self.speech = transformers.models.whisper.modeling_whisper.WhisperEncoder(
            transformers.WhisperConfig(
                d_model=speech.width, encoder_layers=speech.num_layers, encoder_attention_heads=speech.num_heads,
                encoder_ffn_dim=speech.mlp_width, num_mel_bins=speech.num_mels, max_source_positions=frames,
                dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
            )
        )  # fmt: skip
        self.text = transformers.BertModel(
            transformers.BertConfig(
                hidden_size=text.width, num_hidden_layers=text.num_layers, num_attention_heads=text.num_heads,
                intermediate_size=text.mlp_width, vocab_size=text.vocab_size, max_position_embeddings=512,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        width, self.frame_pool = model.qformer.width, model.frame_pool
        self.layer_mix = nn.Parameter(torch.zeros(speech.num_layers + 1))
        self.memory_norm = nn.LayerNorm(speech.width)
        self.queries = nn.Parameter(torch.randn(model.qformer.num_queries, width))
        self.blocks = nn.ModuleList(Block(model.qformer, speech.width) for _ in range(model.qformer.num_layers))
        self.final_norm, self.score = nn.LayerNorm(width), nn.Linear(width, 1, bias=False)
        self.speech_projection, self.text_projection = (
            nn.Linear(width, model.embed_dim),
            nn.Linear(text.width, model.embed_dim),
        )
        self.log_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def encode_speech(self, features: torch.Tensor, learn: bool) -> torch.Tensor:
        """Log-mel [B, mels, F] -> unit vectors."""
        with torch.set_grad_enabled(learn):
            states = self.speech(features, output_hidden_states=True).hidden_states
            states = [functional.layer_norm(state, state.shape[-1:]) for state in states]
        mixed = sum(w * state for w, state in zip(self.layer_mix.softmax(0), states, strict=True))
        mixed = functional.avg_pool1d(mixed.transpose(1, 2), self.frame_pool, ceil_mode=True).transpose(1, 2)
        memory, x = self.memory_norm(mixed), self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            x = block(x, memory)
        x = self.final_norm(x)
        return functional.normalize(self.speech_projection((self.score(x).softmax(1) * x).sum(1)), dim=-1)

    def encode_text(self, tokens: torch.Tensor, mask: torch.Tensor, learn: bool) -> torch.Tensor:
        """Tokens, mask [B, L] -> unit vectors."""
        with torch.set_grad_enabled(learn):
            last = self.text(tokens, attention_mask=mask).last_hidden_state
            pooled = (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return functional.normalize(self.text_projection(pooled), dim=-1)


def loss_of(speech: torch.Tensor, text: torch.Tensor, emotion: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE without alike pairs among its negatives, and supervised contrast: stage 1's two large terms."""
    n = len(speech)
    own, same = torch.eye(n, dtype=torch.bool), emotion[:, None] == emotion
    logits = (scale * speech @ text.T).masked_fill(same & ~own, -torch.inf)
    target = torch.arange(n)
    contrast = 0.5 * (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target))
    log_p = (speech @ speech.T / 0.1).masked_fill(own, -torch.inf).log_softmax(-1)
    positives = same & ~own
    terms = torch.where(positives, log_p, 0.0).sum(-1) / positives.sum(-1).clamp(min=1)
    return contrast - terms.mean()


def median_seconds(step: Callable[[], None], steps: int) -> float:
    """Of `steps` calls, after two to warm up."""
    for _ in range(2):
        step()
    took = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def measure(options: argparse.Namespace) -> dict[str, float]:
    """From int16 waveforms and token ids to new parameters, `steps` times."""
    config = config_lib.load(CONFIG)
    samples = round(options.seconds * SAMPLING_RATE)
    # Whisper insists on the 30 s of its position table; who knows that his clips are shorter cuts the table.
    model = DualEncoder(config, frames=samples // 320).train()
    learn = options.learn == "all"
    model.speech.requires_grad_(learn)
    model.text.requires_grad_(learn)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    extract = transformers.WhisperFeatureExtractor(
        feature_size=config.speech_encoder.sizes.num_mels, chunk_length=options.seconds
    )
    rng = np.random.default_rng(0)
    # The same clips for all: --clip_seconds of audio; the rest is padding.
    clips = rng.integers(-3000, 3000, (options.batch_size, round(options.clip_seconds * SAMPLING_RATE)))
    waves = [clip / np.float32(32768) for clip in clips]
    tokens = torch.from_numpy(rng.integers(5, 250_000, (options.batch_size, options.max_tokens)))
    mask, emotion = torch.ones_like(tokens), torch.arange(options.batch_size) % 4

    def step() -> None:
        features = extract(waves, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        optimizer.zero_grad(set_to_none=True)
        speech, text = model.encode_speech(features, learn), model.encode_text(tokens, mask, learn)
        loss_of(speech, text, emotion, model.log_scale.exp().clamp(max=100)).backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()

    return {
        "utterances_per_second": options.batch_size / median_seconds(step, options.steps),
        "learning_parameters": sum(p.numel() for p in learning),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def main() -> None:
    """Prints the figures of one process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=30, help="what clips are padded to")
    parser.add_argument("--clip_seconds", type=float, default=4.0, help="what clips last")
    parser.add_argument(
        "--learn", choices=("heads", "all"), default="heads", help="what learns: all but the towers, or all"
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_tokens", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
