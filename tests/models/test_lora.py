"""Adapters against PEFT's own layer; freezing, stacks, merging, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from flax import nnx

from mser_jax import optim, state, step
from mser_jax.models import lora
from mser_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.layers import Linear
from mser_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from mser_jax.models.whisper import WhisperConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = {"num_layers": 2, "width": 48, "num_heads": 2, "mlp_width": 96}
TEXT = TextEncoderConfig(**SIZES, vocab_size=60, max_positions=32)
DUAL = DualEncoderConfig(
    speech=WhisperConfig(**SIZES), text=TEXT, qformer=QFormerConfig(**SIZES), embed_dim=32, heads=(("language", 3),)
)
PATTERN, RANK, ALPHA = r"layers/(attention/(query|value)|mlp_in)$", 4, 6.0


def text_encoder(pattern=PATTERN, cfg=TEXT, dtype=jnp.float32):
    """What stages build: the network, then its adapters."""

    def make(rngs):
        model = TextEncoder(cfg, dtype=dtype, rngs=rngs)
        if pattern:
            lora.attach(model, pattern, rank=RANK, alpha=ALPHA, rngs=rngs)
        return model

    return state.define(make)


def with_random_b(params, seed=1):
    """`params` after training, as it were: b is no longer zero."""
    keys = dict(zip(sorted(params), jax.random.split(jax.random.key(seed), len(params)), strict=True))
    return {
        path: 0.2 * jax.random.normal(keys[path], value.shape) if path.endswith("/lora/b") else value
        for path, value in params.items()
    }


def inputs(batch=2):
    tokens = jax.random.randint(jax.random.key(5), (batch, 11), 0, TEXT.vocab_size)
    return tokens, jnp.arange(11)[None] < jnp.arange(batch)[:, None] + 7


def forward(definition, params, batch=2):
    tokens, mask = inputs(batch)
    out = jax.jit(lambda params: definition.merge(params)(tokens, mask))(params)
    return np.where(mask[..., None], out, 0.0)


def test_a_linear_layer_equals_pefts():
    """Tolerance 1e-6 maximal absolute difference, f32, values of order 1."""
    layer = Linear(24, 17, rngs=nnx.Rngs(0))
    holder = nnx.Module()
    holder.proj = layer
    assert lora.attach(holder, "^proj$", rank=3, alpha=5.0, rngs=nnx.Rngs(1)) == ["proj"]
    layer.lora.b[...] = jax.random.normal(jax.random.key(2), (3, 17))
    theirs = torch.nn.Sequential(torch.nn.Linear(24, 17))
    theirs[0].weight.data = torch.tensor(np.asarray(layer.kernel[...]).T.copy())
    theirs[0].bias.data = torch.tensor(np.asarray(layer.bias[...]).copy())
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"]))
    adapted = theirs.base_model.model[0]
    assert adapted.lora_A["default"].weight.abs().max() <= 1 / np.sqrt(24)  # the distribution that `a` is drawn from
    adapted.lora_A["default"].weight.data = torch.tensor(np.asarray(layer.lora.a[...]).T.copy())
    adapted.lora_B["default"].weight.data = torch.tensor(np.asarray(layer.lora.b[...]).T.copy())
    x = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)
    np.testing.assert_allclose(layer(x), theirs(torch.tensor(x)).detach().numpy(), atol=1e-6, rtol=0)


def test_initialisation_is_pefts_default():
    """`a` uniform in ±1/√in: its bounds and its variance (bound² / 3, within 5 %), layers drawn apart; `b` zero."""
    params = state.initial_params(text_encoder(), jax.random.key(0))
    a = np.asarray(params["layers/mlp_in/lora/a"])
    assert a.shape == (2, 48, RANK) and params["layers/mlp_in/lora/b"].shape == (2, RANK, 96)
    assert 0.95 < np.abs(a).max() * np.sqrt(48) <= 1.0
    wide = lora.LoRA((256, 2), rank=64, alpha=1.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert np.asarray(wide.a[...]).var() * 256 * 3 == pytest.approx(1.0, rel=0.05)
    assert not np.allclose(a[0], a[1])
    assert not params["layers/mlp_in/lora/b"].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fresh_adapters_change_no_bit_of_parameters_or_outputs(dtype):
    plain, adapted = text_encoder("", dtype=dtype), text_encoder(dtype=dtype)
    params = state.initial_params(adapted, jax.random.key(0))
    base, adapters = lora.split(params)
    reference = state.initial_params(plain, jax.random.key(0))
    assert base.keys() == reference.keys() and len(adapters) == 6
    for path, value in reference.items():
        np.testing.assert_array_equal(base[path], value, err_msg=path)
    np.testing.assert_array_equal(forward(adapted, params), forward(plain, reference))
    assert np.abs(forward(adapted, with_random_b(params)) - forward(plain, reference)).max() > 0.05


def test_every_linear_of_the_dual_encoder_takes_an_adapter():
    """In all towers and heads, and a gradient reaches each: no layer uses its kernel past the adapter."""

    def make(rngs):
        model = DualEncoder(DUAL, rngs)
        made.extend(lora.attach(model, ".", rank=2, alpha=2.0, rngs=rngs))
        return model

    made = []
    definition = state.define(make)
    kernels = {path for path in definition.abstract if path.endswith("/kernel") and "/conv" not in path}
    assert {f"{path}/kernel" for path in made} == kernels
    base, adapters = lora.split(with_random_b(state.initial_params(definition, jax.random.key(0))))

    def loss(adapters):
        model = definition.merge(base | adapters)
        speech = model.encode_speech(jax.random.normal(jax.random.key(1), (2, 8000)), jnp.array([8000, 5000]))
        text = model.encode_text(*inputs())
        logits = model.adversary_logits(speech.embedding, 1.0)["language"]
        return (speech.embedding[0] * text[0]).sum() + (speech.embedding[1] * text[1]).sum() * 2 + logits[0, 0]

    for path, value in jax.jit(jax.grad(loss))(adapters).items():
        assert np.abs(value).max() > 0, f"no gradient reaches {path}"


@pytest.mark.parametrize("remat", ["none", "full"])
def test_merged_equals_adapted_and_unmerged_equals_the_base(remat):
    """Tolerances 1e-5 (outputs) and 1e-6 (parameters) maximal absolute difference, f32."""
    cfg = TextEncoderConfig(**SIZES, vocab_size=60, max_positions=32, remat=remat)
    adapted, plain = text_encoder(cfg=cfg), text_encoder("", cfg=cfg)
    params = with_random_b(state.initial_params(adapted, jax.random.key(0)))
    base, adapters = lora.split(params)
    merged = lora.merge(params, ALPHA)
    assert merged.keys() == plain.abstract.keys()
    np.testing.assert_allclose(forward(plain, merged), forward(adapted, params), atol=1e-5, rtol=0)
    assert np.abs(forward(plain, merged) - forward(plain, base)).max() > 0.05
    a, b = (np.asarray(params[f"layers/mlp_in/lora/{name}"], np.float64) for name in "ab")
    delta = np.einsum("lir,lro->lio", a, b) * ALPHA / RANK
    np.testing.assert_allclose(merged["layers/mlp_in/kernel"] - base["layers/mlp_in/kernel"], delta, atol=1e-6)
    for path, value in lora.unmerge(merged, adapters, ALPHA).items():
        np.testing.assert_allclose(value, base[path], atol=1e-6, rtol=0, err_msg=path)


def test_half_an_adapter_is_an_error():
    params = state.initial_params(text_encoder(), jax.random.key(0))
    del params["layers/mlp_in/lora/a"]
    with pytest.raises(KeyError, match="layers/mlp_in/lora/a"):
        lora.merge(params, ALPHA)


def step_and_init(definition, groups, seen=None, eps=1e-8):
    """A train step on a regression and its state's initialiser; `seen` collects the paths that have gradients."""
    multipliers = optim.group_of(list(definition.abstract), groups)
    constants = {"b1": 0.9, "b2": 0.999, "eps": eps, "weight_decay": 0.1, "clip_norm": 1.0}
    tx = optim.make_optimizer(multipliers, optax.constant_schedule(1e-2), **constants)

    def update(grads, *args, **extra):
        if seen is not None:
            seen.append(set(grads))
        return tx.update(grads, *args, **extra)

    def loss(model, batch, rng):
        out = model(batch["tokens"], batch["mask"], rng=rng)
        return jnp.square(out - batch["target"]).sum(), jnp.float32(out.size), {}

    wrapped = optax.GradientTransformation(tx.init, update)
    return step.make_train_step(definition, loss, wrapped), state.initializer(definition, tx, multipliers, 0)


def test_a_frozen_base_has_no_gradients_and_no_moments_and_stays():
    definition, seen = text_encoder(), []
    train_step, init = step_and_init(definition, (("/lora/", 1.0), (".*", 0.0)), seen)
    before = init()
    assert set(before.trainable) == {path for path in definition.abstract if lora.is_adapter(path)}
    moments = [path[-1].key for path, leaf in jax.tree_util.tree_leaves_with_path(before.optimizer) if leaf.ndim]
    assert sorted(moments) == sorted([*before.trainable] * 2), "two moments an adapter and none else"
    tokens, mask = inputs()
    batch = {"tokens": tokens, "mask": mask, "target": jax.random.normal(jax.random.key(2), (2, 11, 48))}
    jitted = jax.jit(train_step)
    after, first = jitted(before, batch)
    for _ in range(20):
        after, last = jitted(after, batch)
    assert seen == [set(before.trainable)]
    assert all(optim.decays(path) for path in before.trainable), "adapters are matrices and decay, towards the base"
    assert last["loss"] < first["loss"]
    for path, value in before.frozen.items():
        np.testing.assert_array_equal(after.frozen[path], value, err_msg=path)
    for path, value in before.trainable.items():
        assert np.abs(after.trainable[path] - value).max() > 1e-3, f"{path} did not move"


def test_steps_on_a_mesh_equal_those_on_one_device(mesh8, monkeypatch):
    """Adapters and base sharded over fsdp. Tolerance 1e-5 maximal absolute difference after two steps of 1e-2.

    Adam's eps is large: without it a gradient of rounding errors is a full step.
    """
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 2)
    definition = text_encoder()
    train_step, init = step_and_init(definition, (("/lora/", 1.0), ("kernel", 0.1), (".*", 0.0)), eps=1e-2)
    tokens, mask = inputs(8)
    batch = {"tokens": tokens, "mask": mask, "target": jax.random.normal(jax.random.key(2), (8, 11, 48))}
    batch, start = jax.device_get((batch, init()))

    def two_steps(mesh):
        with jax.set_mesh(mesh):
            abstract = state.abstract_state(init, mesh, ((".*", None),))
            current = jax.tree.map(lambda value, like: jax.device_put(value, like.sharding), start, abstract)
            placed = jax.device_put(batch, sharding.batch_sharding(mesh))
            jitted = jax.jit(train_step, **{**step.jit_signature(abstract), "donate_argnums": ()})
            for _ in range(2):
                current, _ = jitted(current, placed)
            return current.params

    reference, sharded = two_steps(mesh_lib.make_mesh(devices=jax.devices()[:1])), two_steps(mesh8)
    a, b = (sharded[f"layers/mlp_in/lora/{name}"].sharding.spec for name in "ab")
    assert (*a,) == (None, "fsdp", None) and (*b,) == (None, None, "fsdp")
    for path, value in reference.items():
        np.testing.assert_allclose(sharded[path], value, atol=1e-5, rtol=0, err_msg=path)
    merged = lora.merge(sharded, ALPHA)
    for path, value in lora.merge(jax.device_get(reference), ALPHA).items():
        np.testing.assert_allclose(merged[path], value, atol=1e-5, rtol=0, err_msg=path)
    kernel = "layers/mlp_in/kernel"
    assert merged[kernel].sharding == sharded[kernel].sharding


def test_errors_name_the_nearest_layers_and_what_is_wrong():
    model = TextEncoder(TEXT, rngs=nnx.Rngs(0))
    options = {"alpha": 1.0, "rngs": nnx.Rngs(0)}
    with pytest.raises(ValueError, match=r"'attention/q_proj' matches none of 6 .*(\n.*)*layers/attention/query"):
        lora.attach(model, "attention/q_proj", rank=2, **options)
    with pytest.raises(ValueError, match="rank=0, expected at least 1"):
        lora.attach(model, "query", rank=0, **options)
    lora.attach(model, "query", rank=2, **options)
    with pytest.raises(ValueError, match=r"have one already: \['layers/attention/query'\]"):
        lora.attach(model, "attention", rank=2, **options)
    assert model.layers.attention.key.lora is None
