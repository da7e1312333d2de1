"""LoRA: a trained product of two thin matrices beside a frozen kernel (Hu et al. 2021, arXiv:2106.09685).

    attach(model, r"layers/attention/(query|value)$", rank=8, alpha=16, rngs=rngs)

gives every linear layer whose path matches the parameters `…/query/lora/a` [..., in, rank] and `…/query/lora/b`
[..., rank, out], with the leading layer axis of a stacked kernel. The base is frozen by `optim.groups`:
(("/lora/", 1.0), (".*", 0.0)); what has multiplier 0 is never differentiated and has no moments.

There is no dropout on the input of an adapter: a linear layer gets no rng, and the blocks drop out the output of each
branch already.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mser_jax.models.layers import Linear
from mser_jax.parallel import sharding

Flat = dict[str, jax.Array]


class LoRA(nnx.Module):
    """[..., in] -> [..., out]: alpha / rank · x a b, for a kernel of shape [in, out], or [layers, in, out] in a stack.

    a starts uniform within ±1/√in (PEFT's default), b at zero, so a fresh adapter changes nothing.
    """

    def __init__(self, kernel_shape: tuple[int, ...], *, rank: int, alpha: float, dtype: DTypeLike, rngs: nnx.Rngs):
        *stack, fan_in, fan_out = kernel_shape
        self.scale, self.dtype = alpha / rank, dtype
        bound = 1.0 / math.sqrt(fan_in)
        shape = (*stack, fan_in, rank)
        self.a = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.b = nnx.Param(jnp.zeros((*stack, rank, fan_out)))

    def __call__(self, x: jax.Array, split: str | None = None) -> jax.Array:
        """[..., in] -> [..., out] in `dtype`; a stacked adapter is called on its slices (stack.run_layers).

        `split` is that of the kernel (sharding.matmul): its side with that many features stays over `tensor`.
        """
        a, b = (matrix[...].astype(self.dtype) for matrix in (self.a, self.b))
        inner = sharding.matmul(x.astype(self.dtype), a, "in" if split == "in" else None) * self.scale
        return sharding.matmul(inner, b, "out" if split == "out" else None)


def attach(module: nnx.Module, pattern: str, *, rank: int, alpha: float, rngs: nnx.Rngs) -> list[str]:
    """Puts a LoRA on every Linear of `module` in whose path ("layers/attention/query") the regex `pattern` is found.

    In place, and traceable. Parameters that were there before keep their paths and values.

    Args:
        module: any network.
        pattern: found with re.search; end it with $ to leave out what only begins like it.
        rank: columns of a, at least 1.
        alpha: the adapter's output is scaled by alpha / rank.
        rngs: draws a.

    Returns:
        The paths of the layers that got one.

    Raises:
        ValueError: rank < 1, no Linear matches (the nearest paths are listed), or one that matches has a LoRA already.
    """
    if rank < 1:
        raise ValueError(f"LoRA: rank={rank}, expected at least 1")
    linears = {"/".join(map(str, path)): layer for path, layer in nnx.iter_modules(module) if isinstance(layer, Linear)}
    matched = sorted(path for path in linears if re.search(pattern, path))
    if not matched:
        near = difflib.get_close_matches(pattern, linears, n=8, cutoff=0.0)
        raise ValueError(
            f"LoRA: pattern {pattern!r} matches none of {len(linears)} linear layers. Nearest:\n  " + "\n  ".join(near)
        )
    twice = [path for path in matched if linears[path].lora is not None]
    if twice:
        raise ValueError(f"LoRA: pattern {pattern!r} matches layers that have one already: {twice}")
    for path in matched:
        layer = linears[path]
        # What once was None is static to nnx until it is told otherwise.
        layer.lora = nnx.data(LoRA(layer.kernel.shape, rank=rank, alpha=alpha, dtype=layer.dtype, rngs=rngs))
    return matched


def is_adapter(path: str) -> bool:
    """Whether a parameter of this path belongs to a LoRA."""
    return path.endswith(("/lora/a", "/lora/b"))


def split(params: Mapping[str, jax.Array]) -> tuple[Flat, Flat]:
    """Flat parameters -> (the base, the adapters)."""
    base = {path: value for path, value in params.items() if not is_adapter(path)}
    return base, {path: value for path, value in params.items() if is_adapter(path)}


def merge(params: Mapping[str, jax.Array], alpha: float) -> Flat:
    """Flat parameters with adapters -> those of the same network without: kernel + alpha / rank · a b.

    The sum is f32 and has the dtype and sharding of the kernel; `unmerge` takes it back up to rounding.
    """
    base, adapters = split(params)
    return _add(base, adapters, alpha)


def unmerge(merged: Mapping[str, jax.Array], adapters: Mapping[str, jax.Array], alpha: float) -> Flat:
    """What was merged, and the adapters -> the base."""
    return _add(dict(merged), adapters, -alpha)


def _add(base: Flat, adapters: Mapping[str, jax.Array], alpha: float) -> Flat:
    """`base` with alpha / rank · a b added to the kernel of each adapter.

    Raises:
        KeyError: an adapter without its other half or its kernel.
    """
    for layer in sorted({path.rsplit("/lora/", 1)[0] for path in adapters}):
        # Whole before they meet: both may be sharded over fsdp, and their product cannot be, twice.
        a, b = (sharding.replicate(jnp.asarray(adapters[f"{layer}/lora/{name}"], jnp.float32)) for name in "ab")
        kernel = base[f"{layer}/kernel"]
        delta = alpha / a.shape[-1] * jnp.matmul(a, b, precision="highest")
        base[f"{layer}/kernel"] = (kernel + delta).astype(kernel.dtype)
    return base
