"""Text from a decoder LLM, token by token: greedy or drawn at a temperature, with a KV cache, in one program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mser_jax.models.causal_attention import KVCache
from mser_jax.models.llm import LLM


class _Written(NamedTuple):
    """What the loop carries."""

    step: jax.Array  # int32 []: tokens written so far
    tokens: jax.Array  # int32 [B, max_new_tokens]
    lengths: jax.Array  # int32 [B]
    stopped: jax.Array  # bool [B]
    last: jax.Array  # int32 [B]: what the LLM reads next
    cache: KVCache


def generate(
    llm: LLM,
    x: jax.Array,
    mask: jax.Array,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    temperature: float = 0.0,
    rng: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What the LLM writes after each prompt; to be called under jit. The loop ends when all rows have stopped.

    Args:
        llm: the decoder.
        x: the prompts' input embeddings [B, T, width], T ≥ 1: from `llm.embed`, or soft tokens among them.
        mask: bool [B, T], True = token. Prompts of different lengths are padded anywhere; each has a token.
        max_new_tokens: static; the most that is written.
        stop_tokens: each ends the row that writes it, and is its last token.
        temperature: static; divides the logits before a token is drawn. 0: the most likely one, the first of equals.
        rng: draws tokens at a temperature > 0.

    Returns:
        (tokens int32 [B, max_new_tokens], stop token included, 0 after it, -1 where the logits are not finite;
        how many were written, int32 [B]).

    Raises:
        ValueError: no token to write, a temperature < 0, or > 0 without `rng`.
    """
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens={max_new_tokens}, expected at least 1")
    if temperature < 0 or (temperature > 0 and rng is None):
        raise ValueError(f"generate: temperature={temperature} with rng={rng}, expected 0, or > 0 and a key")
    stops = jnp.asarray(stop_tokens, jnp.int32)

    def write(done: _Written) -> _Written:
        fed = done.last[:, None]
        hidden, cache = llm(llm.embed(fed), fed >= 0, cache=done.cache)
        last = jnp.where(done.stopped, 0, _choose(llm, hidden[:, 0], done.step, temperature, rng))
        return _Written(
            step=done.step + 1,
            tokens=lax.dynamic_update_slice_in_dim(done.tokens, last[:, None], done.step, axis=1),
            lengths=done.lengths + ~done.stopped,
            stopped=done.stopped | jnp.isin(last, stops) | (last < 0),
            last=last,
            cache=cache,
        )

    # The last token written is not read, so it needs no slot.
    hidden, cache = llm(x, mask, cache=llm.empty_cache(x.shape[0], x.shape[1] + max_new_tokens - 1))
    first = _choose(llm, _at_last_token(hidden, mask), 0, temperature, rng)
    start = _Written(
        step=jnp.ones((), jnp.int32),
        tokens=jnp.pad(first[:, None], ((0, 0), (0, max_new_tokens - 1))),
        lengths=jnp.ones_like(first),
        stopped=jnp.isin(first, stops) | (first < 0),
        last=first,
        cache=cache,
    )
    end = lax.while_loop(lambda done: (done.step < max_new_tokens) & ~done.stopped.all(), write, start)
    return end.tokens, end.lengths


def _choose(llm: LLM, hidden: jax.Array, step: jax.Array | int, temperature: float, rng: jax.Array | None) -> jax.Array:
    """The next token after hidden states [B, width]: int32 [B]; -1 where the logits are not finite."""
    logits = llm.logits(hidden)
    if temperature:
        key, rows = jax.random.fold_in(rng, step), jax.typeof(logits[:, 0]).sharding
        chosen = jax.random.categorical(key, logits / temperature, out_sharding=rows)
    else:
        chosen = jnp.argmax(logits, axis=-1)
    return jnp.where(jnp.isfinite(logits.max(axis=-1)), chosen, -1).astype(jnp.int32)


def _at_last_token(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """hidden [B, T, D], mask bool [B, T] -> [B, D] at each row's last True; exact.

    A sum, because a gather by row is not expressible on sharded rows of an explicit mesh.
    """
    places = jnp.arange(mask.shape[1])
    last = jnp.where(mask, places, 0).max(axis=1, keepdims=True)
    return jnp.where((places == last)[..., None], hidden, 0).sum(axis=1)
