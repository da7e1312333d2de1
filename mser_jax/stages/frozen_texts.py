"""What a frozen text tower says of the captions: computed once in place of at every step, where all can be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax import state
from mser_jax.data.pipeline import Batch as HostBatch
from mser_jax.data.prompts import Captions
from mser_jax.data.text import get_tokenizer
from mser_jax.models.dual_encoder import DualEncoder
from mser_jax.stages.base import Batch, Params

ENCODER = "text_encoder"
# Keys of a batch that text is encoded from.
INPUTS = ("tokens", "token_mask", "text_means")
# Captions that go through the tower together.
_CHUNK = 64


def encode_text(model: DualEncoder, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
    """Unit embedding f32 [B, E] of what the batch has: the tower's means, else tokens; `rng` draws dropout."""
    if "text_means" in batch:
        return model.embed_text(batch["text_means"])
    return model.encode_text(batch["tokens"], batch["token_mask"], rng=rng)


def without_tokens(spec: Mapping[str, jax.ShapeDtypeStruct], width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The spec of a batch with tokens -> that of the batch that FrozenTexts makes of it."""
    means = spec["tokens"].update(shape=(spec["tokens"].shape[0], width), dtype=np.float32)
    return {name: leaf for name, leaf in spec.items() if name not in INPUTS} | {"text_means": means}


class FrozenTexts:
    """The means of all captions that there can be, on the host: N · text.width float32, .3 MB for E5-small."""

    def __init__(
        self, texts: Sequence[str], captions: Captions, definition: state.ModelDefinition, params: Params, mesh: Mesh
    ) -> None:
        """Runs the tower of `params` over `texts`; every process must."""
        whole = NamedSharding(mesh, P())
        means = jax.jit(
            lambda params, tokens, mask: definition.merge(params).text_means(tokens, mask), out_shardings=whole
        )
        tokens, mask = get_tokenizer(captions.tokenizer).encode(list(texts), captions.max_tokens)
        self._row = {_key(*row): i for i, row in enumerate(zip(tokens, mask, strict=True))}
        # Whole chunks: one shape, one compilation.
        places = np.resize(np.arange(len(texts)), -(-len(texts) // _CHUNK) * _CHUNK).reshape(-1, _CHUNK)
        found = [np.asarray(means(params, *jax.device_put((tokens[rows], mask[rows]), whole))) for rows in places]
        self._means = np.concatenate(found)[: len(texts)]

    def __call__(self, batch: HostBatch) -> HostBatch:
        """A host batch with text_means f32 [n, text.width] in place of its tokens.

        Raises:
            KeyError: a caption that was not among the texts.
        """
        rows = [self._row[_key(*row)] for row in zip(batch["tokens"], batch["token_mask"], strict=True)]
        return {name: value for name, value in batch.items() if name not in INPUTS} | {"text_means": self._means[rows]}


def _key(tokens: np.ndarray, mask: np.ndarray) -> bytes:
    return tokens.tobytes() + mask.tobytes()
