"""Stage 2's network: a decoder LLM reads what the Q-Former heard among the words of a prompt, and answers."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.models import speech_reader, trailing_silence
from mser_jax.models.causal_attention import KVCache, RMSNorm
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.label_trie import LabelTrie
from mser_jax.models.layers import Linear
from mser_jax.models.llm import LLMConfig
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.speech_encoder import SpeechEncoderConfig, block_flops
from mser_jax.models.speech_reader import MeanHeadConfig, Reading, SpeechReader
from mser_jax.models.whisper import WhisperConfig

# The token id that stands where a soft token goes. A row has `num_soft_tokens` of them, or none.
SPEECH = -1


@dataclasses.dataclass(frozen=True)
class SpeechLLMConfig:
    """All sizes of the network; the defaults fit a laptop. What they mean: see SpeechReaderConfig and LLMConfig.

    `dtype` is that of the arithmetic inside encoder, Q-Former and LLM; parameters, norms, softmax and logits are f32.
    """

    speech: SpeechEncoderConfig = dataclasses.field(default_factory=WhisperConfig)
    llm: LLMConfig = dataclasses.field(default_factory=LLMConfig)
    qformer: QFormerConfig = dataclasses.field(default_factory=QFormerConfig)
    spec_augment: SpecAugmentConfig = dataclasses.field(default_factory=SpecAugmentConfig)
    frame_pool: int = 1
    trailing_silence: float = 0.0
    layer_mix_init: tuple[float, ...] = ()
    mean_head: MeanHeadConfig = dataclasses.field(default_factory=MeanHeadConfig)
    embed_dim: int = 256
    dtype: DTypeLike = jnp.float32

    def num_frames(self, num_samples: int) -> int:
        """Frames that the Q-Former reads of `num_samples` samples."""
        return speech_reader.num_frames(self.speech, self.frame_pool, self.trailing_silence, num_samples)

    @property
    def num_soft_tokens(self) -> int:
        """What an utterance takes of a prompt: its embedding and the Q-Former's queries."""
        return 1 + self.qformer.num_queries


class SpeechLLM(SpeechReader):
    """Speech encoder, layer mix, Q-Former and embedding as in stage 1; projections of the latter two; an LLM.

    The embedding is the first soft token: it is what stage 1 aligned, and where a `mean_head` carries it the queries
    alone know less. Soft tokens start at the scale of the LLM's input embeddings: an RMS norm, whose gain is learned,
    times 1 / √width, or 1 where the family scales its embeddings by √width. That is within some 3 % of Gemma 3's table,
    1.5 of Llama 3's, and needs no look at the table, which is not there yet when parameters are drawn.
    """

    def __init__(self, cfg: SpeechLLMConfig, rngs: nnx.Rngs):
        super().__init__(cfg, rngs)
        width = cfg.llm.width
        self.soft_projection = Linear(cfg.qformer.width, width, dtype=cfg.dtype, rngs=rngs)
        self.embedding_projection = Linear(cfg.embed_dim, width, dtype=cfg.dtype, rngs=rngs)
        self.soft_norm = RMSNorm(width, cast_first=False, dtype=cfg.dtype)
        self.soft_scale = 1.0 if cfg.llm.scale_embeddings else 1.0 / math.sqrt(width)
        self.llm = cfg.llm.make(dtype=cfg.dtype, rngs=rngs)

    def soft_tokens(self, reading: Reading) -> jax.Array:
        """What `encode_speech` or `encode_states` found -> [B, N, llm.width], N = `num_soft_tokens`."""
        first = self.embedding_projection(reading.embedding)[:, None]
        soft = jnp.concatenate([first, self.soft_projection(reading.queries)], axis=1)
        return self.soft_norm(soft) * jnp.asarray(self.soft_scale, self.cfg.dtype)

    def embed(self, tokens: jax.Array, soft: jax.Array) -> jax.Array:
        """Tokens int [B, T], soft [B, N, width] -> [B, T, width]; the i-th SPEECH of a row is its i-th soft token."""
        is_speech = tokens == SPEECH
        number = jnp.cumsum(is_speech, axis=1) - 1
        chosen = is_speech[..., None] & (number[..., None] == jnp.arange(soft.shape[1]))
        words = self.llm.embed(jnp.where(is_speech, 0, tokens))
        return jnp.where(is_speech[..., None], pick(soft, chosen).astype(words.dtype), words)

    def answer_logits(
        self,
        soft: jax.Array,
        tokens: jax.Array,
        token_mask: jax.Array,
        target_positions: jax.Array,
        *,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Logits f32 [B, A, vocabulary] at `target_positions`; the head sees those A hidden states only.

        Args:
            soft: [B, N, width], from `soft_tokens`.
            tokens: int [B, T] of prompt and answer, with SPEECH.
            token_mask: bool [B, T], True = token.
            target_positions: int [B, A], places in `tokens`, each that of the token before the predicted one.
            rng: draws the LLM's dropout.
        """
        hidden, _ = self.llm(self.embed(tokens, soft), token_mask, rng=rng)
        return self.llm.logits(pick(hidden, target_positions[..., None] == jnp.arange(tokens.shape[1])))

    def prefix(self, soft: jax.Array, tokens: jax.Array, mask: jax.Array, size: int) -> tuple[KVCache, jax.Array]:
        """Reads prompts without answers, tokens int [B, T] with SPEECH, mask bool [B, T]; padded on either side.

        Returns:
            (cache with `size` slots, T of them used; the hidden state [B, width] that predicts the first answer token).
        """
        hidden, cache = self.llm(self.embed(tokens, soft), mask, cache=self.llm.empty_cache(tokens.shape[0], size))
        places = jnp.arange(tokens.shape[1])
        last = jnp.where(mask, places, 0).max(axis=1, keepdims=True)
        return cache, pick(hidden, (last == places)[:, None])[:, 0]


def pick(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """x [B, T, D], chosen bool [B, A, T] with at most one True in a row -> the chosen [B, A, D], else 0; exact.

    A product, because a gather by row is not expressible on sharded rows of an explicit mesh.
    """
    return jnp.einsum("bat,btd->bad", chosen.astype(x.dtype), x, precision=lax.Precision.HIGHEST)


def log_likelihood(
    model: SpeechLLM, soft: jax.Array, prompt_tokens: jax.Array, prompt_mask: jax.Array, trie: LabelTrie
) -> jax.Array:
    """log p(label | speech, prompt), summed over the label's tokens (`trie.lengths`): f32 [B, labels].

    The prompt is read once. All inner nodes of the trie then go through the LLM at once, each seeing the prompt and its
    own ancestors; the head and its normalisation run once for all of them. Only a gather grows with the labels.

    Args:
        model: the network.
        soft: [B, N, width], from `soft_tokens`.
        prompt_tokens: int [B, P] with SPEECH, up to where the answer begins.
        prompt_mask: bool [B, P]; padding on either side.
        trie: the labels.
    """
    num_inner = len(trie.tokens)
    cache, last = model.prefix(soft, prompt_tokens, prompt_mask, prompt_tokens.shape[1] + num_inner)
    hidden = last[:, None]
    if num_inner:
        # Zeros taken from the prompt give the nodes the batch dimension together with its sharding.
        tokens = jnp.zeros_like(prompt_tokens[:, :1]) + trie.tokens
        positions = prompt_mask.sum(axis=1, keepdims=True, dtype=jnp.int32) + trie.depths
        tree = jnp.asarray(trie.sees)
        below, _ = model.llm(model.llm.embed(tokens), tokens >= 0, positions=positions, cache=cache, tree=tree)
        hidden = jnp.concatenate([hidden, below], axis=1)
    logits = model.llm.logits(hidden)
    of_edge = logits[:, trie.parents, trie.children] - jax.nn.logsumexp(logits, axis=-1)[:, trie.parents]
    return jnp.pad(of_edge, ((0, 0), (0, 1)))[:, trie.paths].sum(-1)


def flops_per_example(cfg: SpeechLLMConfig, num_samples: int, num_tokens: int, num_targets: int) -> dict[str, float]:
    """Forward floating-point operations on one padded row, a multiply-add counted as 2 (see dual_encoder).

    Args:
        cfg: sizes.
        num_samples: of the waveform.
        num_tokens: the LLM's, soft tokens included.
        num_targets: hidden states that the head reads.

    Returns:
        By part: "speech_encoder" (with its front end), "qformer", "soft_projection", "llm"; their sum is the total.
    """
    qformer = cfg.qformer
    memory = (cfg.num_frames(num_samples), cfg.speech.width)
    heard, means = num_samples + trailing_silence.num_samples(cfg.trailing_silence), 1 + bool(cfg.trailing_silence)
    query_block = block_flops(qformer.num_queries, qformer.width, qformer.mlp_width, *memory)
    return {
        "speech_encoder": cfg.speech.flops(heard),
        "qformer": qformer.num_layers * query_block,
        "soft_projection": 2.0 * (qformer.num_queries * qformer.width + cfg.embed_dim) * cfg.llm.width
        + 2.0 * cfg.mean_head.width * (means * (cfg.speech.num_layers + 1) * cfg.speech.width + cfg.embed_dim),
        "llm": cfg.llm.flops(num_tokens, num_targets),
    }
