"""The stage 2 step in PyTorch + transformers + PEFT, for tools/bench_step.py --stage=2 --beside=torch to compare with.

Usage: python tools/bench_step_torch_llm.py [--seconds=30] [--logits=all] [--tokens=40] [--targets=14] [--steps=5]
One process, one figure: prints JSON. Weights are random, or those below $MSER_WEIGHTS where that is set.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional
from transformers.models.whisper.modeling_whisper import WhisperEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mser_jax.pretrained import llm as llm_files
from mser_jax.pretrained import whisper as whisper_files
from mser_jax.stages import towers
from tools import bench_step
from tools.bench_step_torch import SAMPLING_RATE, Block, median_seconds


def whisper_encoder(config: ConfigDict, parts: towers.Towers, frames: int) -> WhisperEncoder:
    """Frozen, for clips of exactly so many frames."""
    if config.speech_encoder.init:
        speech = transformers.WhisperModel.from_pretrained(config.speech_encoder.init, dtype=torch.float32).encoder
    else:
        hf = whisper_files.config_to_hf(parts["speech_encoder"])
        speech = WhisperEncoder(transformers.WhisperConfig.from_dict(hf))
    # Whisper insists on the 30 s of its position table; who knows that his clips are shorter cuts the table.
    speech.config.max_source_positions = speech.max_source_positions = frames
    speech.embed_positions = nn.Embedding.from_pretrained(speech.embed_positions.weight[:frames].detach().clone())
    return speech.requires_grad_(False)


def adapted_llm(config: ConfigDict, parts: towers.Towers) -> peft.PeftModel:
    """Frozen, with LoRA on all linear layers but the head."""
    if config.llm.init:
        llm = transformers.AutoModelForCausalLM.from_pretrained(config.llm.init, dtype=torch.float32)
    else:
        hf = llm_files.config_to_hf(parts["llm"])
        llm = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**hf))
    adapters = peft.LoraConfig(
        r=config.lora.rank, lora_alpha=config.lora.alpha, lora_dropout=0.0, bias="none",
        target_modules="all-linear", task_type="CAUSAL_LM",
    )  # fmt: skip
    return peft.get_peft_model(llm, adapters)


class SpeechLLM(nn.Module):
    """Whisper's encoder, layer mix, Q-Former, projection to soft tokens, LLM: stage 2's network."""

    def __init__(self, config: ConfigDict, frames: int) -> None:
        super().__init__()
        parts, model = towers.make(config), config.model
        self.speech, self.llm = whisper_encoder(config, parts, frames), adapted_llm(config, parts)
        speech, width, self.frame_pool = parts["speech_encoder"], model.qformer.width, model.frame_pool
        self.layer_mix = nn.Parameter(torch.zeros(speech.num_layers + 1))
        self.memory_norm = nn.LayerNorm(speech.width)
        self.queries = nn.Parameter(torch.randn(model.qformer.num_queries, width))
        self.blocks = nn.ModuleList(Block(model.qformer, speech.width) for _ in range(model.qformer.num_layers))
        self.final_norm = nn.LayerNorm(width)
        self.pool_score, self.speech_projection = nn.Linear(width, 1, bias=False), nn.Linear(width, model.embed_dim)
        hidden, states = model.mean_head.width, (speech.num_layers + 1) * speech.width
        self.mean_head = (
            nn.Sequential(nn.Linear(states, hidden), nn.GELU("tanh"), nn.Linear(hidden, model.embed_dim))
            if hidden
            else None
        )
        self.soft_projection = nn.Linear(width, parts["llm"].width)
        self.embedding_projection = nn.Linear(model.embed_dim, parts["llm"].width)
        self.soft_norm = nn.RMSNorm(parts["llm"].width, eps=1e-6)

    def soft_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Log-mel [B, mels, F] -> [B, N, width of the LLM]."""
        with torch.no_grad():
            states = self.speech(features, output_hidden_states=True).hidden_states
            states = [functional.layer_norm(state, state.shape[-1:]) for state in states]
        mixed = sum(w * state for w, state in zip(self.layer_mix.softmax(0), states, strict=True))
        mixed = functional.avg_pool1d(mixed.transpose(1, 2), self.frame_pool, ceil_mode=True).transpose(1, 2)
        memory, x = self.memory_norm(mixed), self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            x = block(x, memory)
        queries = self.final_norm(x)
        embedding = self.speech_projection((self.pool_score(queries).softmax(1) * queries).sum(1))
        if self.mean_head is not None:
            embedding = embedding + self.mean_head(torch.cat([state.mean(1) for state in states], dim=1))
        first = self.embedding_projection(functional.normalize(embedding, dim=-1))[:, None]
        return self.soft_norm(torch.cat([first, self.soft_projection(queries)], dim=1))

    def forward(self, features: torch.Tensor, words: torch.Tensor, labels: torch.Tensor, keep: int) -> torch.Tensor:
        """Log-mel, token ids [B, T - N], labels [B, T], each of the token after -> mean loss.

        A first token, the speech, the rest of the prompt and the answer; logits of the last `keep` tokens, 0 for all.
        """
        embedded, soft = self.llm.get_input_embeddings()(words), self.soft_tokens(features)
        rows = torch.cat([embedded[:, :1], soft, embedded[:, 1:]], dim=1)
        kept = labels[:, -keep:].contiguous()
        mask = torch.ones_like(labels)
        # shift_labels: as many tokens as in our rows, which end one before the last label.
        return self.llm(
            inputs_embeds=rows,
            attention_mask=mask,
            labels=kept,
            shift_labels=kept,
            logits_to_keep=keep,
            use_cache=False,
        ).loss


def measure(options: argparse.Namespace, config: ConfigDict) -> dict[str, float]:
    """From int16 waveforms and token ids to new parameters, `steps` times."""
    samples = round(options.seconds * SAMPLING_RATE)
    model = SpeechLLM(config, frames=samples // 320).train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    num_mels = model.speech.config.num_mel_bins
    extract = transformers.WhisperFeatureExtractor(feature_size=num_mels, chunk_length=options.seconds)
    rng = np.random.default_rng(0)
    # The same clips for all: --clip_seconds of audio; the rest is padding.
    clips = rng.integers(-3000, 3000, (options.batch_size, round(options.clip_seconds * SAMPLING_RATE)))
    waves = [clip / np.float32(32768) for clip in clips]
    ids = rng.integers(5, 380, (options.batch_size, options.tokens - 1 - len(model.queries)))
    labels = torch.full((options.batch_size, options.tokens), -100)
    labels[:, -options.targets :] = torch.from_numpy(rng.integers(5, 380, (options.batch_size, options.targets)))
    words, keep = torch.from_numpy(ids), options.targets if options.logits == "answers" else 0

    def step() -> None:
        features = extract(waves, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        optimizer.zero_grad(set_to_none=True)
        model(features, words, labels, keep).backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()

    return {
        "utterances_per_second": options.batch_size / median_seconds(step, options.steps),
        "learning_parameters": sum(p.numel() for p in learning),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": labels.numel(),
        "targets": int((labels >= 0).sum()),
    }


def parse(argv: list[str] | None = None) -> Any:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=bench_step.BESIDE_CONFIG[2])
    parser.add_argument("--seconds", type=int, default=30, help="what clips are padded to")
    parser.add_argument("--clip_seconds", type=float, default=4.0, help="what clips last")
    parser.add_argument("--logits", choices=("all", "answers"), default="all", help="which tokens the head sees")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--tokens", type=int, default=bench_step.ROW, help="of a row, the soft ones and the answer included"
    )
    parser.add_argument("--targets", type=int, default=bench_step.ANSWER, help="tokens of the answer")
    parser.add_argument("--steps", type=int, default=5)
    return parser.parse_args(argv)


if __name__ == "__main__":
    chosen = parse()
    print(json.dumps(measure(chosen, bench_step.beside_config(chosen.config))))
