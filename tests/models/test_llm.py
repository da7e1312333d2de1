"""Decoder LLMs against transformers, every option of every family: logits, single modules, padding, cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import eager_attention_forward

from mser_jax import state
from mser_jax.models.attention import attend
from mser_jax.models.causal_attention import KVCache, Readable
from mser_jax.models.llm import LLM, LLMConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding
from mser_jax.pretrained import llm as table

pytestmark = pytest.mark.usefixtures("compiled_quickly")

WINDOW = 5
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
GEMMA = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 24}
GLOBAL_LINEAR = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
}
# name: (model_type, config.json besides SIZES)
CASES = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama, llama3 rope, tied, as many kv heads": (
        "llama",
        {
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3},
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
        },
    ),
    "llama, old rope_scaling linear, head_dim, bias": (
        "llama",
        {
            "rope_theta": 1e3,
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "head_dim": 24,
            "attention_bias": True,
            "num_key_value_heads": 1,
        },
    ),
    "llama, yarn with mscale": ("llama", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}),
    "qwen2": ("qwen2", {"rms_norm_eps": 1e-5}),
    "qwen2, sliding, tied": ("qwen2", {**SLIDING, "tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3, sliding, bias": ("qwen3", {"head_dim": 16, "attention_bias": True, **SLIDING, "max_window_layers": 2}),
    "qwen3, yarn": ("qwen3", {"head_dim": 16, "rope_parameters": {**YARN, "attention_factor": 0.8, "truncate": False}}),
    "gemma3": ("gemma3_text", {**GEMMA, "sliding_window_pattern": 2}),
    "gemma3, linear on global layers, soft-capped": (
        "gemma3_text",
        {
            **GEMMA,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": GLOBAL_LINEAR,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3, old spelling, untied, bias": (
        "gemma3_text",
        {
            **GEMMA,
            "rope_theta": 1e4,
            "rope_local_base_freq": 1e2,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread():
    """Threads only wait for each other at these sizes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_torch(model_type, given, seed=0):
    """A transformers model whose biases, norms and gains are not what they were initialised to."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**SIZES, **given})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return model


def from_torch(cfg, model, **options):
    """Our module with torch's weights by the family's table; no tensor is left over."""
    weights = {name: w.detach().numpy() for name, w in model.state_dict().items()}
    key_map, params, used = table.key_map(cfg), {}, set()
    for entry in key_map.entries:
        names = [entry.name(i) for i in range(cfg.num_layers if entry.stacked else 1)]
        names = [key_map.prefixes[0] + name for name in names]
        ours = [weights[n] + np.float32(entry.transform.offset) for n in names]
        if entry.transform.axes is not None:
            ours = [w.transpose(entry.transform.axes) for w in ours]
        params[entry.ours] = jnp.asarray(np.stack(ours) if entry.stacked else ours[0])
        used.update(names)
    assert set(weights) - used == ({"lm_head.weight"} if cfg.tied else set())
    definition = state.define(lambda rngs: LLM(cfg, **options, rngs=rngs))
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in definition.abstract.items()}
    return definition.merge(params)


def batch():
    """Tokens and mask [9, 24]: three rows whole, three padded right, three left; 24 is well beyond WINDOW."""
    rng = np.random.default_rng(0)
    right = np.arange(24)[None] < np.array([[20], [9], [1]])
    mask = np.concatenate([np.ones_like(right), right, right[:, ::-1]])
    return np.where(mask, rng.integers(1, 97, mask.shape), 0), mask


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, tokens, mask):
    model = nnx.merge(graphdef, params)
    return model.logits(model(model.embed(tokens), mask)[0])


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name):
    """Tolerance 2e-5 maximal absolute difference, f32, of logits that spread over more than 1 (seen: 6e-6)."""
    model_type, given = CASES[name]
    theirs = make_torch(model_type, given)
    graphdef, params = nnx.split(from_torch(table.config_from_hf(theirs.config.to_dict()), theirs))
    tokens, mask = batch()
    out = np.asarray(forward(graphdef, params, tokens, mask))
    with torch.no_grad():
        reference = theirs(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(int))).logits.numpy()
        alone = [theirs(torch.from_numpy(row[m][None])).logits[0].numpy() for row, m in zip(tokens, mask, strict=True)]
    assert out.dtype == np.float32 and np.ptp(reference) > 1
    np.testing.assert_allclose(out[mask], reference[mask], atol=2e-5, rtol=0)
    np.testing.assert_allclose(out[mask], np.concatenate(alone), atol=2e-5, rtol=0, err_msg="without padding")


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama, old rope_scaling linear, head_dim, bias",
        "qwen2, sliding, tied",
        "qwen3, yarn",
        "gemma3",
        "gemma3, linear on global layers, soft-capped",
    ],
)
def test_modules_equal_transformers(name):
    """Norm, attention and MLP of the first and last layer on what they get: 1e-5 maximal absolute difference, f32."""
    theirs = make_torch(*CASES[name], seed=1)
    cfg = table.config_from_hf(theirs.config.to_dict())
    seen = {}

    def watch(key):
        def hook(module, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            seen[key] = x.numpy(), (output[0] if isinstance(output, tuple) else output).numpy()

        return hook

    for i in (0, 2):
        layer = theirs.model.layers[i]
        for part in ("input_layernorm", "self_attn", "mlp"):
            getattr(layer, part).register_forward_hook(watch((i, part)), with_kwargs=True)
    with torch.no_grad():
        theirs(torch.from_numpy(batch()[0][:3]))

    layers = from_torch(cfg, theirs).layers
    graphdef, params = nnx.split(layers)
    positions = jnp.broadcast_to(jnp.arange(24), (3, 24))
    readable = Readable(positions, jnp.ones((3, 24), bool))

    @jax.jit
    def ours(params, own, norm_in, attention_in, mlp_in):
        block = nnx.merge(graphdef, params)
        return (
            block.attention_norm(norm_in),
            block.attention(attention_in, own, positions, readable)[0],
            block.mlp(mlp_in),
        )

    for i in (0, 2):
        of_layer = functools.partial(jax.tree.map, lambda x, i=i: x[i])
        parts = ("input_layernorm", "self_attn", "mlp")
        out = ours(of_layer(params), of_layer(cfg.of_layers()), *(seen[i, part][0] for part in parts))
        for part, y in zip(parts, out, strict=True):
            np.testing.assert_allclose(y, seen[i, part][1], atol=1e-5, rtol=0, err_msg=f"layer {i} {part}")


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_soft_capped_attention_equals_transformers(softcap):
    """1e-5, with grouped heads; and a query that sees nothing is finite, its gradient too."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 6, n, 8)).astype(np.float32) for n in (4, 2, 2))
    mask = np.tril(np.ones((6, 6), bool))[None] & (rng.random((2, 1, 6)) < 0.8)
    mask[:, :, 0] = True

    class Module(torch.nn.Module):
        num_key_value_groups, training = 2, False

    additive = torch.from_numpy(np.where(mask, 0, -np.inf).astype(np.float32))[:, None]
    to_torch = [torch.from_numpy(x).transpose(1, 2) for x in (q, k, v)]
    reference, _ = eager_attention_forward(Module(), *to_torch, additive, scaling=0.6, softcap=softcap)
    out = attend(*map(jnp.asarray, (q, k, v)), mask=mask, scale=0.6, softcap=softcap)
    np.testing.assert_allclose(out, reference.numpy(), atol=1e-5, rtol=0)
    blind = jax.grad(lambda k: attend(q, k, v, mask=jnp.zeros_like(mask), scale=0.6, softcap=softcap).sum())(k)
    assert np.isfinite(blind).all()


def test_bfloat16_rounds_where_transformers_does():
    """Gemma's embedding scale is rounded (√32 → 5.65625), norms are rounded before or after their gain."""
    for name in ("gemma3", "qwen3"):
        theirs = make_torch(*CASES[name])
        cfg = table.config_from_hf(theirs.config.to_dict())
        theirs = theirs.to(torch.bfloat16)
        ours = from_torch(cfg, theirs.float(), dtype=jnp.bfloat16)
        theirs = theirs.to(torch.bfloat16)
        tokens = np.arange(97)[None]
        x = ours.embed(jnp.asarray(tokens))
        with torch.no_grad():
            embedded = theirs.model.embed_tokens(torch.from_numpy(tokens))
            normed = theirs.model.norm(embedded)
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x.astype(jnp.float32), embedded.float().numpy())
        # One unit in the last place where the f32 sums differ.
        difference = np.abs(np.asarray(ours.final_norm(x), np.float32) - normed.float().numpy())
        assert (difference > 0).mean() < 1e-3 and difference.max() < 0.05, name


PATTERNED = LLMConfig(
    model_type="gemma3_text",
    vocab_size=97,
    num_layers=3,
    width=64,
    mlp_width=128,
    head_dim=32,
    qk_norm=True,
    sandwich_norms=True,
    norm_cast_first=False,
    scale_embeddings=True,
    activation="gelu_tanh",
    tied=True,
    window=WINDOW,
    local_layers=(True, False, True),
    logit_softcap=5.0,
)
PLAIN = LLMConfig(vocab_size=97, width=64, mlp_width=128, qkv_bias=True, attention_softcap=2.0, dropout=0.1)


def test_bfloat16_is_near_f32_and_logits_are_f32(call):
    """Cached and not. Logits are sums in f32, not bfloat16 numbers in f32 arrays."""
    whole, half = (state.define(lambda r, d=d: LLM(PATTERNED, dtype=d, rngs=r)) for d in (jnp.float32, jnp.bfloat16))
    params = state.initial_params(whole, jax.random.key(0))
    whole, half = whole.merge(params), half.merge(params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (2, 12)))
    mask = jnp.ones((2, 12), bool)
    exact = call(whole, "logits", call(whole, "__call__", whole.embed(tokens), mask)[0])
    for cache in (None, half.empty_cache(2, 16)):
        hidden, cache = call(half, "__call__", half.embed(tokens), mask, cache=cache)
        assert hidden.dtype == jnp.bfloat16 and (cache is None or cache.keys.dtype == jnp.bfloat16)
        logits = call(half, "logits", hidden)
        assert logits.dtype == jnp.float32
        assert np.mean(logits == logits.astype(jnp.bfloat16).astype(jnp.float32)) < 0.1
        assert np.abs(logits - exact).mean() < 0.03 * np.std(exact)


def test_padding_anywhere_changes_nothing(build, call):
    """Also between the tokens: positions and windows count tokens, not places. Tolerance 1e-5."""
    model = build(lambda rngs: LLM(PATTERNED, rngs=rngs))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 97, (1, 12)))
    x = model.embed(tokens)
    alone, cache = call(model, "__call__", x, jnp.ones((1, 12), bool))
    assert cache is None
    places = np.array([1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 17, 19])
    spread = jnp.full((1, 22, 64), 9.0).at[:, places].set(x)
    mask = jnp.zeros((1, 22), bool).at[:, places].set(True)
    out, _ = call(model, "__call__", spread, mask)
    np.testing.assert_allclose(out[:, places], alone, atol=1e-5)
    assert np.isfinite(out).all()
    # Explicit positions: a shift of all of them is no change either.
    shifted, _ = call(model, "__call__", x, jnp.ones((1, 12), bool), positions=jnp.arange(50, 62)[None])
    np.testing.assert_allclose(shifted, alone, atol=1e-4)


@pytest.mark.parametrize("cfg", [PATTERNED, PLAIN], ids=["patterned", "plain"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_equals_uncached_token_by_token(build, call, cfg, side):
    """Prompts of three lengths in one batch, read in two pieces, then 8 tokens singly. Tolerance 1e-5."""
    model = build(lambda rngs: LLM(cfg, rngs=rngs))
    rng = np.random.default_rng(0)
    lengths, width, new = (9, 4, 1), 9, 8
    sequences = [rng.integers(0, 97, n + new) for n in lengths]
    expected = []
    for sequence in sequences:
        padded = jnp.asarray(np.pad(sequence, (0, width + new - len(sequence))))[None]
        mask = (jnp.arange(width + new) < len(sequence))[None]
        expected.append(np.asarray(call(model, "__call__", model.embed(padded), mask)[0][0, : len(sequence)]))

    tokens, mask = np.zeros((3, width), int), np.zeros((3, width), bool)
    for row, (n, sequence) in enumerate(zip(lengths, sequences, strict=True)):
        where = slice(width - n, None) if side == "left" else slice(n)
        tokens[row, where], mask[row, where] = sequence[:n], True
    cache, outputs = model.empty_cache(3, width + new + 1), []
    for piece in (slice(0, 4), slice(4, width)):
        out, cache = call(model, "__call__", model.embed(tokens[:, piece]), jnp.asarray(mask[:, piece]), cache=cache)
        outputs.append(np.asarray(out))
    outputs = np.concatenate(outputs, axis=1)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(outputs[row][mask[row]], expected[row][:n], atol=1e-5)
    for step in range(new):
        x = model.embed(jnp.asarray([[s[n + step]] for n, s in zip(lengths, sequences, strict=True)]))
        out, cache = call(model, "__call__", x, jnp.ones((3, 1), bool), cache=cache)
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(out[row, 0], expected[row][n + step], atol=1e-5)
    assert int(cache.index) == width + new and cache.size == width + new + 1


def test_one_prefix_is_shared_by_many_rows(build, call):
    model = build(lambda rngs: LLM(PATTERNED, rngs=rngs))
    rng = np.random.default_rng(0)
    prefix, ends = rng.integers(0, 97, (1, 10)), rng.integers(0, 97, (4, 6))
    mask = np.arange(6)[None] < np.array([[6], [2], [4], [5]])
    _, cache = call(model, "__call__", model.embed(prefix), jnp.ones((1, 10), bool), cache=model.empty_cache(1, 16))
    out, _ = call(model, "__call__", model.embed(ends), jnp.asarray(mask), cache=cache.repeat(4))
    whole = np.concatenate([np.repeat(prefix, 4, axis=0), ends], axis=1)
    whole_mask = np.concatenate([np.ones((4, 10), bool), mask], axis=1)
    expected, _ = call(model, "__call__", model.embed(whole), jnp.asarray(whole_mask))
    np.testing.assert_allclose(out[mask], expected[:, 10:][mask], atol=1e-5)


def test_a_full_cache_does_not_pass_unnoticed(build, call):
    model = build(lambda rngs: LLM(PLAIN, rngs=rngs))
    x, mask = model.embed(jnp.zeros((1, 4), int)), jnp.ones((1, 4), bool)
    with pytest.raises(ValueError, match="4 tokens, but the cache has 3 slots"):
        model(x, mask, cache=model.empty_cache(1, 3))
    out, cache = call(model, "__call__", x, mask, cache=model.empty_cache(1, 6))
    assert np.isfinite(out).all()
    out, cache = call(model, "__call__", x, mask, cache=cache)
    assert np.isnan(out).all()


def loss_and_cached(graphdef, params, batch, rng):
    """A loss with its gradient, and the hidden states of a second reading through a cache."""

    def loss(params):
        model = nnx.merge(graphdef, params)
        hidden, _ = model(model.embed(batch["tokens"]), batch["mask"], rng=rng)
        logits = model.logits(hidden) * batch["mask"][..., None]
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1)) + jnp.sum(logits * batch["target"])

    model, cache = nnx.merge(graphdef, params), None
    cache, hidden = model.empty_cache(8, 12), []
    for piece in (slice(0, 7), slice(7, 12)):
        x = model.embed(batch["tokens"][:, piece])
        out, cache = model(x, batch["mask"][:, piece], cache=cache)
        hidden.append(out)
    value, grads = jax.value_and_grad(loss)(params)
    return value, grads, jnp.concatenate(hidden, axis=1)


@pytest.mark.parametrize(
    ("mode", "cfg", "tensor"),
    [
        ("explicit", PATTERNED, 1),
        ("explicit", PLAIN, 1),
        ("auto", PATTERNED, 1),
        ("explicit", PATTERNED, 2),
        ("explicit", PLAIN, 2),
        ("auto", PLAIN, 2),
    ],
)
def test_eight_devices_equal_one(build, monkeypatch, mode, cfg, tensor):
    """Tolerance 1e-5, relative to the largest gradient of a leaf; the same dropout; cached reading too."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 32)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 97, (8, 12)),
        "mask": np.arange(12)[None] < rng.integers(1, 13, 8)[:, None],
        "target": rng.standard_normal((8, 12, 97)).astype(np.float32),
    }
    graphdef, params = nnx.split(build(lambda rngs: LLM(cfg, rngs=rngs)))
    step = jax.jit(loss_and_cached, static_argnums=0)
    key = jax.random.key(1)
    expected_value, expected_grads, expected_hidden = step(graphdef, params, batch, key)
    mesh = mesh_lib.make_mesh(data=2, fsdp=4 // tensor, tensor=tensor, mode=mode)
    shardings = sharding.infer_shardings(params, mesh)
    assert sum(s.spec != jax.P() for s in jax.tree.leaves(shardings)) > 10
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        rows = jax.device_put(batch, sharding.batch_sharding(mesh))
        value, grads, hidden = step(graphdef, placed, rows, key)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    np.testing.assert_allclose(hidden, expected_hidden, atol=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, g), e, s in zip(leaves, jax.tree.leaves(expected_grads), jax.tree.leaves(shardings), strict=True):
        e = np.asarray(e)
        np.testing.assert_allclose(g, e, atol=1e-5 * max(1.0, np.abs(e).max()), err_msg=str(path))
        if mode == "explicit":
            assert g.sharding.is_equivalent_to(s, g.ndim), path


def test_shared_prefix_on_a_mesh(build, mesh8):
    """A cache of one row, whole on every device, is spread over the rows that continue it."""
    graphdef, params = nnx.split(build(lambda rngs: LLM(PATTERNED, rngs=rngs)))
    placed = jax.device_put(params, sharding.infer_shardings(params, mesh8))
    rng = np.random.default_rng(0)
    prefix, ends = rng.integers(0, 97, (1, 6)), rng.integers(0, 97, (8, 5))

    @jax.jit
    def score(params, prefix, ends):
        model = nnx.merge(graphdef, params)
        _, cache = model(model.embed(prefix), prefix >= 0, cache=model.empty_cache(1, 11))
        return model(model.embed(ends), ends >= 0, cache=cache.repeat(8))

    out, cache = score(placed, prefix, jax.device_put(ends, sharding.batch_sharding(mesh8)))
    assert isinstance(cache, KVCache) and "fsdp" in str(cache.keys.sharding.spec)
    whole = np.concatenate([np.repeat(prefix, 8, axis=0), ends], axis=1)
    with jax.set_mesh(mesh_lib.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])):
        model = nnx.merge(graphdef, jax.tree.map(lambda p: jnp.asarray(np.asarray(p)), params))
        expected, _ = jax.jit(lambda t: model(model.embed(t), t >= 0))(whole)
    np.testing.assert_allclose(np.asarray(out), np.asarray(expected)[:, 6:], atol=1e-5)


def test_program_does_not_grow_with_depth(build):
    def size(num_layers):
        cfg = LLMConfig(num_layers=num_layers, window=4, local_layers=(True, False) * (num_layers // 2))
        graphdef, params = nnx.split(build(lambda rngs: LLM(cfg, rngs=rngs)))
        tokens = jnp.zeros((2, 8), int)
        return len(forward.lower(graphdef, params, tokens, tokens >= 0).as_text().splitlines())

    assert size(2) == size(8)


def test_flops_are_what_xla_counts(build):
    """One layer, with and without logits; masks, norms and softmax are the difference (5 %)."""
    cfg = LLMConfig(num_layers=1, width=256, mlp_width=768, head_dim=64)
    graphdef, params = nnx.split(build(lambda rngs: LLM(cfg, rngs=rngs)))
    tokens = jnp.zeros((1, 256), int)
    counted = forward.lower(graphdef, params, tokens, tokens >= 0).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(cfg.flops(256, 256), rel=0.05)
    assert cfg.flops(256, 256) - cfg.flops(256) == 2 * 256 * 256 * 384


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 is no multiple of num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7, RoPE needs an even one"),
        ({"activation": "relu"}, "activation='relu', expected one of"),
        ({"local_layers": (True,), "window": 3}, "1 local_layers for num_layers=2"),
        ({"local_layers": (True, False)}, "local_layers without a window"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        LLMConfig(**sizes)
