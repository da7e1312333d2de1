"""Generation against transformers on real weights, and against full forward passes; draws, stops, a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from scipy.special import softmax
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer

from mser_jax import state
from mser_jax.models.generation import generate
from mser_jax.models.llm import LLM, LLMConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding
from mser_jax.pretrained import llm as table
from mser_jax.pretrained import load

VOCABULARY, WIDTH = 97, 64
GEMMA = LLMConfig(
    model_type="gemma3_text", vocab_size=VOCABULARY, num_layers=3, width=WIDTH, mlp_width=96, head_dim=16, qk_norm=True,
    sandwich_norms=True, norm_cast_first=False, scale_embeddings=True, activation="gelu_tanh", tied=True, window=5,
    local_layers=(True, False, True), logit_softcap=5.0,
)  # fmt: skip
LLAMA = LLMConfig(vocab_size=VOCABULARY, width=WIDTH, mlp_width=96, head_dim=16, qkv_bias=True)
CONFIGS = {"gemma": GEMMA, "llama": LLAMA}
NEW = 12


@pytest.fixture(scope="module")
def make(build):
    """make("gemma" | "llama") -> (graphdef, parameters at which tokens differ by more than rounding)."""

    @functools.cache
    def made(name):
        graphdef, params = nnx.split(build(lambda rngs: LLM(CONFIGS[name], rngs=rngs)))
        return graphdef, jax.tree.map(lambda p: 3 * p if p.ndim > 1 else p, params)

    return made


@functools.partial(jax.jit, static_argnums=0, static_argnames=("max_new_tokens", "stop_tokens", "temperature"))
def run(graphdef, params, x, mask, rng=None, **options):
    return generate(nnx.merge(graphdef, params), x, mask, rng=rng, **options)


@functools.partial(jax.jit, static_argnums=0)
def last_logits(graphdef, params, x, length):
    """x [1, T, width], its first `length` of them -> what follows them, f32 [vocabulary]."""
    model = nnx.merge(graphdef, params)
    hidden, _ = model(x, (jnp.arange(x.shape[1]) < length)[None])
    return model.logits(hidden[0, length - 1])


@functools.partial(jax.jit, static_argnums=0)
def embedded(graphdef, params, tokens):
    return nnx.merge(graphdef, params).embed(tokens)


def prompts(graphdef, params, rows=3, width=14):
    """Words with vectors that are no words' among them, holes on either side and between: (x, mask)."""
    rng = np.random.default_rng(0)
    words = np.array(embedded(graphdef, params, rng.integers(0, VOCABULARY, (rows, width))))
    soft = rng.random((rows, width)) < 0.4
    mask = rng.random((rows, width)) < np.linspace(0.2, 0.9, rows)[:, None]
    mask[:, 4] = soft[:, 4] = True
    mask[1, -3:], mask[2, -1] = False, True
    assert len(set(mask.sum(1))) >= 3
    x = np.where(soft[..., None], words.std() * rng.standard_normal(words.shape), words)
    return np.where(mask[..., None], x, 9.0).astype(np.float32), mask


def naive(graphdef, params, x, mask):
    """Each row by itself, without padding before its end, read whole for each of NEW tokens: int [rows, NEW]."""
    out = np.zeros((len(x), NEW), int)
    for row, (vectors, kept) in enumerate(zip(x, mask, strict=True)):
        length = kept.sum()
        room = np.zeros((1, x.shape[1] + NEW, WIDTH), np.float32)
        room[0, :length] = vectors[kept]
        for step in range(NEW):
            logits = np.asarray(last_logits(graphdef, params, room, length))
            best, second = np.sort(logits)[[-1, -2]]
            assert best - second > 1e-4, "too close for f32: choose another seed"
            out[row, step] = logits.argmax()
            room[0, length] = embedded(graphdef, params, out[row, step][None, None])[0, 0]
            length += 1
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_reading_everything_for_each_token(make, name):
    """Soft embeddings in prompts of three lengths, longer than the window; the same tokens."""
    graphdef, params = make(name)
    x, mask = prompts(graphdef, params)
    tokens, lengths = run(graphdef, params, x, mask, max_new_tokens=NEW)
    expected = naive(graphdef, params, x, mask)
    assert len(np.unique(expected)) > 6 and tokens.dtype == lengths.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(lengths, [NEW] * 3)


def test_stop_tokens(make, monkeypatch):
    """Each row ends with the first of them, zeros follow, and nothing is computed once all rows have stopped."""
    graphdef, params = make("llama")
    x, mask = prompts(graphdef, params)
    free = np.asarray(run(graphdef, params, x, mask, max_new_tokens=NEW)[0])
    stops = (int(free[0, 0]), int(free[1, 3]), int(free[2, 6]))
    ends = [int(np.flatnonzero(np.isin(row, stops))[0]) + 1 for row in free]
    assert ends[0] == 1 < max(ends) < NEW and len(set(ends)) > 1
    read, plain = [], LLM.embed

    def counted(self, tokens):
        jax.debug.callback(lambda: read.append(1))
        return plain(self, tokens)

    monkeypatch.setattr(LLM, "embed", counted)
    tokens, lengths = run(graphdef, params, x, mask, max_new_tokens=NEW, stop_tokens=stops)
    jax.effects_barrier()
    np.testing.assert_array_equal(lengths, ends)
    np.testing.assert_array_equal(tokens, np.where(np.arange(NEW) < np.array(ends)[:, None], free, 0))
    assert len(read) == max(ends) - 1


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "rng": jax.random.key(0)}], ids=["", "drawn"])
def test_a_row_whose_logits_are_not_finite_ends_with_minus_one(make, options):
    """NaN is no word: argmax would give the first one."""
    graphdef, params = make("llama")
    x, mask = prompts(graphdef, params)
    clean = np.asarray(run(graphdef, params, x, mask, max_new_tokens=NEW, **options)[0])
    x[1, 4, 7] = np.nan
    tokens, lengths = run(graphdef, params, x, mask, max_new_tokens=NEW, **options)
    np.testing.assert_array_equal(tokens[np.array([0, 2])], clean[[0, 2]])
    np.testing.assert_array_equal(tokens[1], [-1] + [0] * (NEW - 1))
    assert lengths[1] == 1


def test_draws_follow_the_softmax(make):
    """First and second token of 4096 draws against numpy's softmax in f64: χ², where another temperature is refuted.

    The same key draws the same, another key another.
    """
    graphdef, params = make("llama")
    x, mask = prompts(graphdef, params)
    x, mask, temperature = x[2:], mask[2:], 1.5
    many = np.repeat(x, 4096, axis=0), np.repeat(mask, 4096, axis=0)
    draw = functools.partial(run, graphdef, params, *many, max_new_tokens=2, temperature=temperature)
    tokens = np.asarray(draw(jax.random.key(1))[0])
    np.testing.assert_array_equal(draw(jax.random.key(1))[0], tokens)
    assert (np.asarray(draw(jax.random.key(2))[0]) != tokens).any(axis=1).mean() > 0.5

    # Where all tokens are alike, two steps agree by chance only, unless their noise is the same.
    flat = np.asarray(run(graphdef, params, *many, jax.random.key(1), max_new_tokens=2, temperature=1e4)[0])
    assert (flat[:, 0] == flat[:, 1]).mean() < 3 / VOCABULARY
    often = np.bincount(tokens[:, 0]).argmax()
    length = mask.sum()
    room = np.zeros((1, length + 1, WIDTH), np.float32)
    room[0, :length], room[0, length] = x[mask], embedded(graphdef, params, np.full((1, 1), often))[0, 0]
    for found, read in ((tokens[:, 0], length), (tokens[tokens[:, 0] == often, 1], length + 1)):
        logits = np.asarray(last_logits(graphdef, params, room, read), np.float64)
        assert p_value(found, softmax(logits / temperature)) > 0.01
        assert p_value(found, softmax(logits / temperature / 1.3)) < 1e-6


def p_value(found, p):
    """Of draws int [n] from the distribution p, rare tokens counted together."""
    counts, expected = np.bincount(found, minlength=len(p)), p * len(found)
    common = expected >= 5
    assert common.sum() > 8 and len(found) > 200
    merged = [np.append(y[common], y[~common].sum()) for y in (counts, expected)]
    return chisquare(*merged).pvalue


def test_eight_devices_write_what_one_writes(make, monkeypatch):
    """Explicit axes, rows and weights sharded: drawn tokens by value; greedy ones are a step less, and traced only."""
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 32)
    graphdef, params = make("gemma")
    batch = prompts(graphdef, params, rows=8)
    mesh = mesh_lib.make_mesh(data=2, fsdp=4)
    placed = jax.device_put(params, sharding.infer_shardings(params, mesh))
    write = functools.partial(run, graphdef, max_new_tokens=NEW, stop_tokens=tuple(range(20)))
    draw = functools.partial(write, temperature=0.8, rng=jax.random.key(1))
    expected = jax.device_get(draw(params, *batch))
    assert len(set(expected[1].tolist())) > 1, "some rows stop early"
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch, sharding.batch_sharding(mesh))
        found, traced = draw(placed, *rows), jax.eval_shape(write, placed, *rows)
    for ours, greedy, theirs in zip(found, traced, expected, strict=True):
        assert ours.sharding.is_equivalent_to(sharding.batch_sharding(mesh), ours.ndim)
        assert greedy.sharding.spec[0] == sharding.BATCH_AXES and greedy.shape == ours.shape
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0, expected at least 1"),
        ({"max_new_tokens": 2, "temperature": -1.0}, "temperature=-1.0"),
        ({"max_new_tokens": 2, "temperature": 0.5}, "rng=None"),
    ],
)
def test_what_cannot_be_is_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        generate(nnx.merge(*make("llama")), jnp.zeros((1, 2, WIDTH)), jnp.ones((1, 2), bool), **options)


TEXTS = (
    "The woman laughed and said that she was very happy to see",
    "Die Katze sitzt auf dem Dach und schaut den Vögeln",
    "Когда я вошёл в комнату, она заплакала, потому что",
    "彼は怒っていた。なぜなら、",
)


def test_gemma_3_270m_writes_what_transformers_writes(weights):
    """16 greedy tokens after texts of four lengths, f32 on both sides; ours padded right, theirs left."""
    directory = weights / "gemma-3-270m"
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    left = tokenizer(list(TEXTS), padding=True, padding_side="left", return_tensors="pt")
    width, stops = left["input_ids"].shape[1], theirs.generation_config.eos_token_id
    stops = tuple(np.atleast_1d(stops).tolist())
    reference = theirs.generate(**left, max_new_tokens=16, do_sample=False, pad_token_id=0)[:, width:].numpy()
    del theirs
    cfg = table.config_from_hf(load.read_config(directory))
    definition = state.define(lambda rngs: cfg.make(dtype=jnp.float32, rngs=rngs))
    graphdef, params = nnx.split(definition.merge(load.load(directory, table.key_map(cfg), definition.abstract)))
    right = tokenizer(list(TEXTS), padding=True, padding_side="right", return_tensors="np")
    mask = right["attention_mask"].astype(bool)
    assert len(set(mask.sum(1))) >= 3
    x = embedded(graphdef, params, right["input_ids"])
    tokens, lengths = run(graphdef, params, x, mask, max_new_tokens=16, stop_tokens=stops)
    np.testing.assert_array_equal(np.asarray(tokens)[:, : reference.shape[1]], reference)
    ended = np.isin(reference, stops)
    np.testing.assert_array_equal(lengths, np.where(ended.any(1), ended.argmax(1) + 1, 16))
