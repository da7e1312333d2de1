"""The LLM that hears: label likelihood by a tree against a full forward pass for each label, soft tokens, logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from mser_jax import state
from mser_jax.models import lora
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.label_trie import LabelTrie
from mser_jax.models.llm import LLMConfig
from mser_jax.models.speech_llm import SPEECH, SpeechLLM, SpeechLLMConfig, flops_per_example, log_likelihood
from mser_jax.models.speech_reader import MeanHeadConfig
from mser_jax.models.whisper import WhisperConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding

pytestmark = pytest.mark.usefixtures("compiled_quickly")

VOCABULARY, SOFT, END = 97, 3, 96
GEMMA = LLMConfig(
    model_type="gemma3_text", vocab_size=VOCABULARY, num_layers=3, width=64, mlp_width=96, head_dim=16, qk_norm=True,
    sandwich_norms=True, norm_cast_first=False, scale_embeddings=True, activation="gelu_tanh", tied=True, window=4,
    local_layers=(True, False, True), attention_softcap=3.0, logit_softcap=5.0,
)  # fmt: skip
LLAMA = LLMConfig(vocab_size=VOCABULARY, width=64, mlp_width=96, head_dim=16, qkv_bias=True)
LLMS = {"gemma": GEMMA, "llama": LLAMA}


def config(llm, **options):
    return SpeechLLMConfig(
        speech=WhisperConfig(num_layers=1, width=48, num_heads=2, mlp_width=96),
        llm=llm,
        qformer=QFormerConfig(num_layers=1, num_queries=SOFT - 1, width=48, num_heads=2, mlp_width=96),
        **options,
    )


@functools.cache
def definition(llm):
    return state.define(lambda rngs: SpeechLLM(config(LLMS[llm]), rngs))


def draw(abstract):
    """Weights by numpy (nothing to compile), at which next tokens differ by several nats."""
    rng = np.random.default_rng(2)

    def one(path, leaf):
        if path.endswith("scale"):
            return np.float32(1 + 0.1 * rng.standard_normal(leaf.shape))
        loud = 8 if path == "llm/head/kernel" else 1
        return np.float32(loud * rng.standard_normal(leaf.shape) / np.sqrt(leaf.shape[-2] if leaf.ndim > 1 else 10))

    return {path: one(path, leaf) for path, leaf in abstract.items()}


@functools.cache
def random_params(llm):
    return draw(definition(llm).abstract)


def prompts(rng, rows, width, left):
    """Speech among words, of different lengths, padded on one side: (tokens, mask, the rows without padding)."""
    tokens, mask, plain = np.zeros((rows, width), np.int32), np.zeros((rows, width), bool), []
    for row, length in enumerate(np.linspace(SOFT + 2, width, rows).astype(int)):
        ids = rng.integers(0, VOCABULARY, length)
        at = rng.integers(0, length - SOFT)
        ids[at : at + SOFT] = SPEECH
        where = slice(width - length, None) if left else slice(length)
        tokens[row, where], mask[row, where] = ids, True
        plain.append(ids)
    return tokens, mask, plain


def closed(labels, end):
    begins = any(len(a) < len(b) and b[: len(a)] == list(a) for a in map(list, labels) for b in map(list, labels))
    return [[*label, end] if begins else list(label) for label in labels]


@functools.partial(jax.jit, static_argnums=0)
def answer_logits(llm, params, soft, tokens, mask, positions):
    return definition(llm).merge(params).answer_logits(soft, tokens, mask, positions)


def naive(llm, params, soft, plain, labels):
    """[rows, labels]: each label behind each prompt, read whole and by itself; log-softmax in f64."""
    longest = max(map(len, plain)) + max(map(len, labels))
    out = np.zeros((len(plain), len(labels)))
    for i, label in enumerate(labels):
        rows = [np.concatenate([ids, label]) for ids in plain]
        tokens = np.stack([np.pad(ids, (0, longest - len(ids))) for ids in rows]).astype(np.int32)
        mask = np.arange(longest)[None] < np.array([len(ids) for ids in rows])[:, None]
        positions = np.array([[max(len(ids) - 1 - len(label) + k, 0) for k in range(6)] for ids in rows])
        logits = np.asarray(answer_logits(llm, params, soft, tokens, mask, np.minimum(positions, longest - 1)))
        logp = log_softmax(logits.astype(np.float64), axis=-1)
        out[:, i] = logp[:, np.arange(len(label)), label].sum(-1)
    return out


@functools.partial(jax.jit, static_argnums=(0, 5))
def score(llm, params, soft, tokens, mask, trie):
    return log_likelihood(definition(llm).merge(params), soft, tokens, mask, trie)


FEW = ([7, 8, 9], [7, 8, 10], [7, 11], [7, 8], [12], [13, 14])  # [7, 8] begins two others
MANY = [np.random.default_rng(1).integers(0, 5, n).tolist() for n in (1, 2, 3, 4) for _ in range(10)]


@pytest.mark.parametrize(
    ("llm", "labels", "left"),
    [("gemma", FEW, False), ("gemma", MANY, True), ("llama", FEW[:3], False), ("llama", [[5]], True)],
    ids=["one begins another", "forty", "open", "one of one token"],
)
def test_equals_a_forward_pass_for_each_label(llm, labels, left):
    """Prompts of three lengths, longer than the window; 1e-4 maximal absolute difference, f32."""
    rng, params = np.random.default_rng(0), random_params(llm)
    tokens, mask, plain = prompts(rng, 3, 12, left)
    soft = rng.standard_normal((3, SOFT, 64)).astype(np.float32)
    trie = LabelTrie(labels, end=END)
    found = np.asarray(score(llm, params, soft, tokens, mask, trie))
    expected = naive(llm, params, soft, plain, closed(labels, END))
    assert found.shape == (3, len(labels)) and found.dtype == np.float32
    assert len(labels) == 1 or expected.std() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(trie.lengths, [len(label) for label in closed(labels, END)])


def test_labels_of_one_token_cost_nothing_but_a_gather():
    """XLA's count of operations for 40 labels, against 4."""

    def flops(count):
        trie = LabelTrie([[i] for i in range(count)])
        soft, tokens = jnp.zeros((2, SOFT, 64)), jnp.zeros((2, 12), jnp.int32)
        program = score.lower("gemma", definition("gemma").abstract, soft, tokens, tokens == 0, trie)
        return program.compile().cost_analysis()["flops"]

    assert flops(40) < 1.001 * flops(4)


def test_speech_stands_where_it_is_said(call):
    """Soft tokens in their order at SPEECH, words elsewhere, rows without speech as the LLM alone has them."""
    model = definition("gemma").merge(random_params("gemma"))
    rng = np.random.default_rng(0)
    tokens, _, _ = prompts(rng, 4, 12, left=True)
    tokens[3] = rng.integers(0, VOCABULARY, 12)
    soft = rng.standard_normal((4, SOFT, 64)).astype(np.float32)
    out = np.asarray(call(model, "embed", jnp.asarray(tokens), soft))
    words = np.asarray(model.llm.tokens.table[...])[np.maximum(tokens, 0)] * np.float32(8)
    np.testing.assert_allclose(out[tokens != SPEECH], words[tokens != SPEECH], rtol=1e-6)
    np.testing.assert_array_equal(out[tokens == SPEECH], soft[:3].reshape(-1, 64))


def test_answer_logits_are_those_of_the_whole_sequence(call):
    """1e-4, at any positions, one of them twice; and only they go through the head."""
    model = definition("llama").merge(random_params("llama"))
    rng = np.random.default_rng(0)
    tokens, mask, _ = prompts(rng, 3, 12, left=False)
    soft = rng.standard_normal((3, SOFT, 64)).astype(np.float32)
    positions = np.array([[0, 3, 3], [11, 2, 1], [5, 4, 9]])
    found = call(model, "answer_logits", soft, jnp.asarray(tokens), jnp.asarray(mask), positions)
    hidden, _ = call(model.llm, "__call__", call(model, "embed", jnp.asarray(tokens), soft), jnp.asarray(mask))
    expected = np.take_along_axis(np.asarray(call(model.llm, "logits", hidden)), positions[..., None], axis=1)
    assert found.shape == (3, 3, VOCABULARY) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    whole = jax.make_jaxpr(lambda m: m.answer_logits(soft, tokens, mask, positions))(model)
    assert "f32[3,3,97]" in str(whole) and "f32[3,12,97]" not in str(whole)


@pytest.mark.parametrize(("llm", "scale", "dtype"), [(GEMMA, 1.0, jnp.float32), (LLAMA, 1 / 8, jnp.bfloat16)])
def test_soft_tokens_of_waveforms_and_of_kept_states(build, call, llm, scale, dtype):
    """Alike (1e-5, bfloat16 .05 of the scale), and fresh ones at the scale of embeddings."""
    model = build(lambda rngs: SpeechLLM(config(llm, frame_pool=2, mean_head=MeanHeadConfig(8), dtype=dtype), rngs))
    wave = np.random.default_rng(0).integers(-3000, 3000, (2, 8000)).astype(np.int16)
    lengths = np.array([8000, 3200], np.int32)
    soft = call(model, "soft_tokens", call(model, "encode_speech", wave, lengths))
    assert soft.shape == (2, SOFT, 64) and soft.dtype == dtype
    kept = call(model, "encode_states", *call(model, "hidden_states", wave, lengths))
    kept = call(model, "soft_tokens", kept)
    soft, kept = np.asarray(soft, np.float32), np.asarray(kept, np.float32)
    np.testing.assert_allclose(kept, soft, atol=1e-5 if dtype == jnp.float32 else 0.05 * scale)
    np.testing.assert_allclose(np.sqrt(np.square(soft).mean(-1)), scale, rtol=0.02)
    assert np.abs(soft[0] - soft[1]).max() > 0.01 * scale, "two utterances"


CFG = config(dataclasses.replace(GEMMA, dropout=0.1))


def make_adapted(rngs):
    model = SpeechLLM(CFG, rngs)
    assert len(lora.attach(model, "^llm/layers/attention/(query|out)$", rank=2, alpha=4.0, rngs=rngs)) == 2
    return model


ADAPTED = state.define(make_adapted)


def everything(params, batch, rng):
    """A loss with its gradient, and the likelihood of labels."""

    def loss(params):
        model = ADAPTED.merge(params)
        speech_rng, llm_rng = jax.random.split(rng)
        soft = model.soft_tokens(model.encode_states(batch["states"], batch["num_frames"], rng=speech_rng))
        logits = model.answer_logits(soft, batch["tokens"], batch["mask"], batch["positions"], rng=llm_rng)
        return jnp.sum(logits * batch["target"]), soft

    (value, soft), grads = jax.value_and_grad(loss, has_aux=True)(params)
    scores = log_likelihood(ADAPTED.merge(params), soft, batch["tokens"], batch["mask"], LabelTrie(FEW, END))
    return value, grads, scores


def test_eight_devices_equal_one(monkeypatch):
    """Value, scores and gradients (adapters too) 1e-5, relative to the largest of a leaf; the same dropout."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 1024)
    rng = np.random.default_rng(0)
    tokens, mask, _ = prompts(rng, 8, 12, left=False)
    batch = {
        "states": rng.standard_normal((8, 5, 2, 48)).astype(np.float32),
        "num_frames": rng.integers(1, 6, 8).astype(np.int32),
        "tokens": tokens,
        "mask": mask,
        "positions": rng.integers(0, 12, (8, 4)),
        "target": rng.standard_normal((8, 4, VOCABULARY)).astype(np.float32),
    }
    params, run, key = draw(ADAPTED.abstract), jax.jit(everything), jax.random.key(1)
    expected_value, expected_grads, expected_scores = jax.device_get(run(params, batch, key))
    mesh = mesh_lib.make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.infer_shardings(params, mesh))
        value, grads, scores = run(placed, jax.device_put(batch, sharding.batch_sharding(mesh)), key)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    assert scores.sharding.spec == jax.P(sharding.BATCH_AXES, None)
    for path, expected in expected_grads.items():
        largest = np.abs(expected).max()
        np.testing.assert_allclose(grads[path], expected, atol=1e-5 * max(1.0, largest), err_msg=path)
        assert largest > 0 or not lora.is_adapter(path), path


def test_flops_are_what_xla_counts():
    """One layer of each part, 5 %: masks, norms and softmax are the difference."""
    cfg = config(LLMConfig(num_layers=1, width=256, mlp_width=768, head_dim=64, vocab_size=512))
    made = state.define(lambda rngs: SpeechLLM(cfg, rngs))
    soft, tokens = jnp.zeros((1, SOFT, 256)), jnp.zeros((1, 128), jnp.int32)

    def answer(params, soft, positions):
        return made.merge(params).answer_logits(soft, tokens, tokens == 0, positions)

    counted = jax.jit(answer).lower(made.abstract, soft, jnp.zeros((1, 8), int)).compile().cost_analysis()["flops"]
    parts = flops_per_example(cfg, 16_000, 128, 8)
    assert counted == pytest.approx(parts["llm"], rel=0.05)
    assert set(parts) == {"speech_encoder", "qformer", "soft_projection", "llm"}
    assert parts["soft_projection"] == 2 * ((SOFT - 1) * 48 + cfg.embed_dim) * 256
    assert parts["speech_encoder"] == cfg.speech.flops(16_000)
