"""Groups cover every path; the schedule and the decoupled decay are what a numpy line says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import stage1, stage2
from mser_jax import optim, state
from mser_jax.stages.alignment import SYNTHETIC, Alignment
from mser_jax.stages.finetuning import Finetuning


def test_first_match_wins_and_zero_freezes():
    groups = (("^encoder/", 0.0), ("bias$", 0.5), (".*", 1.0))
    assert optim.group_of(["encoder/bias", "head/bias", "head/kernel"], groups) == {
        "encoder/bias": 0.0,
        "head/bias": 0.5,
        "head/kernel": 1.0,
    }


def test_unmatched_paths_and_idle_groups_are_errors():
    with pytest.raises(ValueError, match="matches none of these parameters:\n  head/kernel"):
        optim.group_of(["head/kernel", "encoder/bias"], (("^encoder/", 1.0),))
    with pytest.raises(ValueError, match=r"no parameter matches \['encodr'\]"):
        optim.group_of(["encoder/bias"], (("encodr", 0.0), (".*", 1.0)))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedule(name):
    schedule = optim.make_schedule(name, 2.0, 10, 110)
    for step in (0, 4, 9, 10, 50, 109):
        along = (step - 10) / 100
        decay = {"constant": 1.0, "linear": 1 - along, "cosine": 0.5 * (1 + np.cos(np.pi * along))}[name]
        expected = 2.0 * ((step + 1) / 10 if step < 10 else decay)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-6)


def test_adamw_equals_a_float64_line():
    rng = np.random.default_rng()
    params = {"a/kernel": rng.normal(size=(3, 4)), "a/bias": rng.normal(size=4)}
    grads = [{path: rng.normal(size=value.shape) for path, value in params.items()} for _ in range(5)]
    multipliers = {"a/kernel": 1.0, "a/bias": 0.1}
    rate, b1, b2, eps, decay, clip = 0.01, 0.9, 0.98, 1e-8, 0.1, 1.0
    tx = optim.make_optimizer(multipliers, lambda step: rate, b1=b1, b2=b2, eps=eps, weight_decay=decay, clip_norm=clip)
    ours = {path: jnp.asarray(value, jnp.float32) for path, value in params.items()}
    state = tx.init(ours)
    m = dict.fromkeys(params, 0.0)
    v = dict.fromkeys(params, 0.0)
    for t, grad in enumerate(grads, start=1):
        updates, state = tx.update({p: jnp.asarray(g, jnp.float32) for p, g in grad.items()}, state, ours)
        ours = {path: ours[path] + updates[path] for path in ours}
        scale = min(1.0, clip / np.sqrt(sum((g**2).sum() for g in grad.values())))
        for path in params:
            g = grad[path] * scale
            m[path] = b1 * m[path] + (1 - b1) * g
            v[path] = b2 * v[path] + (1 - b2) * g**2
            step = m[path] / (1 - b1**t) / (np.sqrt(v[path] / (1 - b2**t)) + eps)
            step += decay * params[path] * (path == "a/kernel")
            params[path] = params[path] - rate * multipliers[path] * step
    for path in params:
        np.testing.assert_allclose(ours[path], params[path], atol=1e-5, err_msg=path)


def optimizer(**changes):
    options = {"b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0, **changes}
    return optim.make_optimizer({"kernel": 1.0}, optim.make_schedule("cosine", 0.1, 2, 9), **options)


def test_a_step_that_is_not_finite_leaves_the_state_as_it_is():
    tx, rng = optimizer(), np.random.default_rng()
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    _, before = tx.update(params, tx.init(params), params)
    broken = {"kernel": params["kernel"].at[1, 2].set(jnp.nan)}
    _, after = tx.update(broken, before, params, finite=jnp.array(False))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_update_needs_no_second_copy_of_anything():
    """Moments and parameters are written where they are: temporary memory is a hundredth of them."""
    params = {"kernel": jnp.ones((1000, 1000))}
    tx = optimizer()

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, finite=jnp.isfinite(optax.global_norm(grads)))
        # In the order of the arguments: that is how donated buffers are paired.
        return state, optax.apply_updates(params, updates)

    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(params, tx.init(params), params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * 3 * params["kernel"].nbytes


def real_paths():
    """Parameter paths of both stages in four presets, every family of tower and every head, LoRA too."""
    found = set()
    for stage, module, name in (
        (Alignment, stage1, "whisper_base_e5"),
        (Alignment, stage1, "wavlm_large_e5_large"),
        (Finetuning, stage2, "whisper_base_gemma"),
        (Finetuning, stage2, ""),
    ):
        config = module.get_config(name) if name else module.get_config()
        for tower in {"speech_encoder", "text_encoder", "llm"} & {*config}:
            config[tower].init = ""
        if module is stage1:
            config.loss.update({"adversary_language": 0.1, "adversary_speaker": 0.1})
            config.lora.pattern = "^text_encoder/.*/query$"
        else:
            config.data.sequences.update({"short": (400, 100), "long": (400, 100)})
        found |= {*state.define(stage(config, SYNTHETIC).build).abstract}
    return found


def test_every_parameter_is_one_that_decays_or_one_that_does_not():
    """Kernels and adapters decay; tables, positions, norms, biases and all that is small do not; there is no other."""
    kinds = {True: {"kernel", "a", "b"}, False: {
        *("table", "positions", "bias", "scale", "queries", "layer_mix", "log_logit_scale"),
        *("constant", "gain", "direction"),  # of WavLM: a gate, and a convolution that is a length and a direction
    }}  # fmt: skip
    paths = real_paths()
    last = {path: path.rpartition("/")[2] for path in paths}
    assert {*last.values()} == kinds[True] | kinds[False], "a parameter of a new kind: does it decay?"
    for path in paths:
        assert optim.decays(path) == (last[path] in kinds[True]), path
    tables = {path for path in paths if path.endswith("/table")}
    assert {"llm/tokens/table", "text_encoder/tokens/table"} <= tables and not any(map(optim.decays, tables))
    assert all(optim.decays(path) for path in paths if "/heads/" in path and path.endswith("kernel"))
