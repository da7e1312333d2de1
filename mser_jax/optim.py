"""Schedules, parameter groups by path, freezing and clipping, on flat {path: array} parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "linear", "cosine")
Params = Mapping[str, jax.Array]


def group_of(paths: Sequence[str], groups: Sequence[tuple[str, float]]) -> dict[str, float]:
    """{path: learning-rate multiplier}: the first (regex, multiplier) found in the path wins; 0 means frozen.

    Raises:
        ValueError: a path matches no group, or a group matches no path (a typo that would go unseen).
    """
    compiled = [(re.compile(pattern), float(multiplier)) for pattern, multiplier in groups]
    out, used, unmatched = {}, set(), []
    for path in paths:
        hits = [index for index, (pattern, _) in enumerate(compiled) if pattern.search(path)]
        if hits:
            out[path] = compiled[hits[0]][1]
            used.update(hits)
        else:
            unmatched.append(path)
    if unmatched:
        raise ValueError("optim.groups matches none of these parameters:\n  " + "\n  ".join(unmatched))
    idle = [groups[index][0] for index in range(len(groups)) if index not in used]
    if idle:
        raise ValueError(f"optim.groups: no parameter matches {idle}. Parameters:\n  " + "\n  ".join(sorted(paths)))
    return out


def make_schedule(name: str, peak: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then 'constant', 'linear' or 'cosine' decay to zero at `total_steps`."""
    warmup_steps = min(warmup_steps, total_steps)
    rest = max(total_steps - warmup_steps, 1)
    decay = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[name]
    # Step 0 trains too: the ramp starts at peak / warmup_steps, not at zero.
    ramp = optax.linear_schedule(peak / max(warmup_steps, 1), peak, max(warmup_steps - 1, 1))
    return optax.join_schedules([ramp, decay], [warmup_steps])


def decays(path: str) -> bool:
    """Tell whether weight decay applies: to the kernels of linear and convolutional layers, heads too, and to adapters.

    Not to tables of embeddings and positions, of which a batch touches few rows, nor to biases, norms, queries, the
    layer mix and the temperature.
    """
    return path.rsplit("/", 1)[-1] == "kernel" or path.endswith(("/lora/a", "/lora/b"))


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """As optax's, which divides every gradient: XLA then keeps a second copy of all of them."""

    def clip(grads: Params, _: Params | None) -> dict[str, jax.Array]:
        scale = limit / jnp.maximum(optax.global_norm(grads), limit)
        return {path: grad * scale for path, grad in grads.items()}

    return optax.stateless(clip)


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """As optax's, but its moments stay where they are when `finite` is False, and are updated in place."""

    def update(
        grads: Params, state: optax.ScaleByAdamState, _: Params | None = None, *, finite: Any = True, **__: Any
    ) -> tuple[dict[str, jax.Array], optax.ScaleByAdamState]:
        mu = {path: jnp.where(finite, b1 * m + (1 - b1) * grads[path], m) for path, m in state.mu.items()}
        nu = {path: jnp.where(finite, b2 * v + (1 - b2) * jnp.square(grads[path]), v) for path, v in state.nu.items()}
        count = state.count + jnp.asarray(finite, state.count.dtype)
        moments = _written_first((mu, nu))
        c1, c2 = 1 - b1**count, 1 - b2**count
        updates = {path: moments[0][path] / c1 / (jnp.sqrt(moments[1][path] / c2) + eps) for path in mu}
        return updates, optax.ScaleByAdamState(count, *moments)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)


def _written_first(moments: Any) -> Any:
    """`moments`, which on CPU whoever uses them reads from memory.

    XLA would compute them again there from the old ones, and for that keep copies of those: twice the parameters in
    memory, and a quarter of the time of a step. On accelerators one kernel does it all.
    """
    return jax.lax.platform_dependent(moments, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _when_finite(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, whose state stays as it is when `finite` is False."""

    def update(grads: Any, state: Any, params: Any = None, *, finite: Any = True, **_: Any) -> tuple[Any, Any]:
        updates, new = inner.update(grads, state, params)
        return updates, jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def make_optimizer(
    multipliers: Mapping[str, float],
    schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW with decoupled decay on matrices, global-norm clipping (0 = off) and a multiplier for each path.

    `update(..., finite=False)` leaves the state as it is; the updates it returns then mean nothing.
    """

    def mask(params: Params) -> dict[str, bool]:
        return {path: decays(path) for path in params}

    def scale(updates: Params, _: Params | None) -> dict[str, jax.Array]:
        return {path: update * multipliers[path] for path, update in updates.items()}

    return optax.chain(
        _clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        _scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=mask),
        _when_finite(optax.scale_by_learning_rate(schedule)),
        optax.stateless(scale),
    )
