"""Decoder LLM: one network whose options make it Llama 3, Qwen 2.5, Qwen 3 or Gemma 3.

Touvron et al. 2023, Grattafiori et al. 2024 (Llama); Qwen Team 2024 and 2025; Gemma Team 2025. The families
differ in norms, biases, windows and scales, all told by LLMConfig; `pretrained/llm.py` reads it from their files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from mser_jax.models.causal_attention import (
    CausalAttention,
    KVCache,
    OfLayer,
    Readable,
    RMSNorm,
    count_positions,
)
from mser_jax.models.layers import Embedding, Linear, dropout, fan_in_normal
from mser_jax.models.rope import Rope
from mser_jax.models.stack import run_layers, stack_layers
from mser_jax.parallel import sharding

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


@dataclasses.dataclass(frozen=True)
class LLMConfig:
    """Sizes and options; the default is a tiny Llama that reads bytes (ByT5's vocabulary).

    Takes back what `dataclasses.asdict` and JSON make of it.

    Raises:
        ValueError: sizes that do not fit each other, or an unknown activation.
    """

    family: ClassVar[str] = "llm"

    model_type: str = "llama"  # the spelling in which Hugging Face files are written (pretrained/llm.py)

    vocab_size: int = 384
    num_layers: int = 2
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2  # each is read by num_heads / num_kv_heads query heads
    head_dim: int = 32
    mlp_width: int = 384
    max_positions: int = 8192  # what the weights were trained for; not enforced

    activation: str = "silu"  # a key of ACTIVATIONS, of the MLP's gate
    norm_eps: float = 1e-6
    qkv_bias: bool = False  # Qwen 2
    out_bias: bool = False
    qk_norm: bool = False  # RMS norm of each query and key head (Qwen 3, Gemma 3)
    sandwich_norms: bool = False  # also the output of each branch is normalised (Gemma)
    norm_cast_first: bool = True  # see RMSNorm (False: Gemma)
    scale_embeddings: bool = False  # by √width, rounded to the compute dtype (Gemma)
    query_scale: float | None = None  # logits are divided by its root; None = head_dim
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    tied: bool = False  # the head is the embedding table

    rope: Rope = dataclasses.field(default_factory=Rope)
    local_rope: Rope | None = None  # of local layers; None = as the others
    window: int | None = None  # keys that a query of a local layer sees, itself included
    local_layers: tuple[bool, ...] = ()  # one a layer; () = none is local

    dropout: float = 0.0  # rate, on the output of each branch
    remat: str = "none"  # a key of stack.REMAT_POLICIES

    def __post_init__(self) -> None:
        for name in ("rope", "local_rope"):
            if isinstance(getattr(self, name), Mapping):
                object.__setattr__(self, name, Rope(**getattr(self, name)))
        object.__setattr__(self, "local_layers", tuple(self.local_layers))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"LLMConfig: num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"LLMConfig: head_dim={self.head_dim}, RoPE needs an even one")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"LLMConfig: activation={self.activation!r}, expected one of {sorted(ACTIVATIONS)}")
        if self.local_layers and len(self.local_layers) != self.num_layers:
            raise ValueError(f"LLMConfig: {len(self.local_layers)} local_layers for num_layers={self.num_layers}")
        if any(self.local_layers) and not self.window:
            raise ValueError(f"LLMConfig: local_layers without a window (window={self.window})")

    def make(self, *, dtype: DTypeLike, rngs: nnx.Rngs) -> LLM:
        """The model, freshly initialised."""
        return LLM(self, dtype=dtype, rngs=rngs)

    def flops(self, num_tokens: int, num_logits: int = 0) -> float:
        """Forward operations on one sequence, a multiply-add counted as 2, and the head on `num_logits` of its tokens.

        Attention is counted whole, as it is computed: masks save nothing.
        """
        heads = self.num_heads * self.head_dim
        projections = 4 * num_tokens * self.width * (heads + self.num_kv_heads * self.head_dim)
        layer = projections + 4 * num_tokens**2 * heads + 6 * num_tokens * self.width * self.mlp_width
        return self.num_layers * layer + 2 * num_logits * self.width * self.vocab_size

    def of_layers(self) -> OfLayer:
        """RoPE and window of each layer, stacked."""
        local = np.array(self.local_layers or (False,) * self.num_layers)
        ropes = [(self.local_rope or self.rope) if is_local else self.rope for is_local in local]
        return OfLayer(
            frequencies=jnp.asarray(np.stack([rope.frequencies(self.head_dim) for rope in ropes])),
            attention_factor=jnp.asarray([rope.attention_factor for rope in ropes], jnp.float32),
            window=jnp.asarray(np.where(local, self.window or 0, np.iinfo(np.int32).max), jnp.int32),
        )


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, cfg: LLMConfig, *, out_scale: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.activation = cfg.activation
        common = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.gate = Linear(cfg.width, cfg.mlp_width, **common)
        self.up = Linear(cfg.width, cfg.mlp_width, **common)
        self.down = Linear(cfg.mlp_width, cfg.width, scale=out_scale, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] -> [..., width]."""
        out, back = (sharding.split_by(self.gate.kernel.shape[-1], how) for how in ("out", "in"))
        return self.down(ACTIVATIONS[self.activation](self.gate(x, out)) * self.up(x, out), back)


class DecoderBlock(nnx.Module):
    """Attention and gated MLP, each residual on a normalised input; in a sandwich the output is normalised too."""

    def __init__(self, cfg: LLMConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        norm = {"eps": cfg.norm_eps, "cast_first": cfg.norm_cast_first, "dtype": dtype}
        # Branches start small, so that the residual stream does not grow with depth (GPT-2).
        out_scale = 1.0 / math.sqrt(2 * cfg.num_layers)
        self.dropout = cfg.dropout
        self.attention = CausalAttention(
            cfg.width,
            cfg.num_heads,
            cfg.num_kv_heads,
            cfg.head_dim,
            scale=(cfg.query_scale or cfg.head_dim) ** -0.5,
            softcap=cfg.attention_softcap,
            qkv_bias=cfg.qkv_bias,
            out_bias=cfg.out_bias,
            norm=norm if cfg.qk_norm else None,
            out_scale=out_scale,
            dtype=dtype,
            rngs=rngs,
        )
        self.mlp = GatedMLP(cfg, out_scale=out_scale, dtype=dtype, rngs=rngs)
        self.attention_norm = RMSNorm(cfg.width, **norm)
        self.mlp_norm = RMSNorm(cfg.width, **norm)
        self.attention_out_norm = RMSNorm(cfg.width, **norm) if cfg.sandwich_norms else None
        self.mlp_out_norm = RMSNorm(cfg.width, **norm) if cfg.sandwich_norms else None

    def __call__(
        self,
        x: jax.Array,
        own: OfLayer,
        positions: jax.Array,
        readable: Readable,
        *,
        rng: jax.Array | None = None,
    ) -> jax.Array | tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """x [B, T, width] -> like x; with a cache in `own` also the new keys and values."""
        rngs = (None, None) if rng is None else jax.random.split(rng)
        y, new = self.attention(self.attention_norm(x), own, positions, readable)
        x = x + dropout(y if self.attention_out_norm is None else self.attention_out_norm(y), self.dropout, rngs[0])
        y = self.mlp(self.mlp_norm(x))
        x = x + dropout(y if self.mlp_out_norm is None else self.mlp_out_norm(y), self.dropout, rngs[1])
        return x if own.keys is None else (x, new)


class Head(nnx.Module):
    """kernel [width, vocab]. No Linear: logits leave it in f32, and adapters do not belong on it."""

    def __init__(self, cfg: LLMConfig, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(fan_in_normal(rngs.params(), (cfg.width, cfg.vocab_size), cfg.width))


class LLM(nnx.Module):
    """Embedding, blocks, final norm, head. Padding, on either side or between, changes nothing.

    Embedding, decoding and head are separate, so that speech may stand among the embeddings and logits are
    computed only where there is a target.
    """

    def __init__(self, cfg: LLMConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.cfg, self.dtype = cfg, dtype
        self.tokens = Embedding(cfg.vocab_size, cfg.width, dtype=dtype, rngs=rngs)
        self.layers = stack_layers(lambda r: DecoderBlock(cfg, dtype=dtype, rngs=r), cfg.num_layers, rngs)
        self.final_norm = RMSNorm(cfg.width, eps=cfg.norm_eps, cast_first=cfg.norm_cast_first, dtype=dtype)
        self.head = None if cfg.tied else Head(cfg, rngs=rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Tokens int [B, T] -> input embeddings [B, T, width] in `dtype`, scaled where the family does so."""
        x = self.tokens(tokens)
        return x * jnp.asarray(math.sqrt(self.cfg.width), self.dtype) if self.cfg.scale_embeddings else x

    def empty_cache(self, rows: int, size: int) -> KVCache:
        """A cache for `rows` sequences of at most `size` tokens, padding included."""
        cfg = self.cfg
        keys = jnp.zeros((cfg.num_layers, rows, size, cfg.num_kv_heads, cfg.head_dim), self.dtype)
        slots = jnp.zeros((rows, size), jnp.int32)
        return KVCache(keys, keys, slots, slots > 0, jnp.zeros((), jnp.int32))

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array,
        *,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        tree: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Input embeddings x [B, T, width], mask bool [B, T] (True = token) -> [B, T, width] after the final norm.

        Args:
            x: from `embed`, or from elsewhere at its scale.
            mask: ignore the output of masked tokens.
            positions: int [B, T]; default: unmasked tokens counted, after those in the cache.
            cache: tokens read before; x follows them. Returned with x in it. Beyond its size the output is NaN.
            tree: bool [T, T], for x that is no sequence but a tree, all of which continues the cache: row i tells
                itself and the ancestors of token i. `positions` are to tell their depth. None: a sequence.
            rng: draws dropout; None switches it off.

        Raises:
            ValueError: T exceeds the size of the cache.
        """
        if positions is None:
            positions = count_positions(mask) if cache is None else cache.next_positions(mask)
        own, x = self.cfg.of_layers(), x.astype(self.dtype)
        if cache is None:
            readable = Readable(positions, mask, allowed=tree)
        else:
            if x.shape[1] > cache.size:
                raise ValueError(f"LLM: {x.shape[1]} tokens, but the cache has {cache.size} slots; make a larger one")
            cache = cache.placed_like(x).marked(positions, mask)
            if tree is not None:
                before = sharding.replicate(jnp.ones((tree.shape[0], cache.size), bool))
                tree = lax.dynamic_update_slice_in_dim(before, sharding.replicate(tree), cache.index, axis=1)
            readable = Readable(cache.positions, cache.mask, cache.index, tree)
            own = own._replace(keys=cache.keys, values=cache.values)
        out = run_layers(self.layers, x, positions, readable, remat=self.cfg.remat, rng=rng, per_layer=own)
        hidden = self.final_norm(out.last)
        if cache is not None:
            cache = cache.filled(*out.extras)
            # An index is no shape, so this cannot be an error; and slots are not silently written twice.
            hidden = jnp.where(cache.index <= cache.size, hidden, jnp.nan)
        return hidden, cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., width] of this model -> f32 [..., vocab]."""
        weight = (self.tokens.table[...].T if self.head is None else self.head.kernel[...]).astype(self.dtype)
        logits = sharding.matmul(hidden.astype(self.dtype), weight, dtype=jnp.float32)
        cap = self.cfg.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
