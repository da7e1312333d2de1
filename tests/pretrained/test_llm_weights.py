"""Decoder LLMs through real files, both ways; what is refused; Gemma 3 270M on texts in several languages."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file
from towers import abstract_on, define, load_tower, save_random
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from mser_jax.models.llm import LLMConfig
from mser_jax.models.rope import Rope
from mser_jax.pretrained import export, llm, load
from mser_jax.pretrained.keymap import PretrainedError

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
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {
    "head_dim": 16,
    "sliding_window": 5,
    "query_pre_attn_scalar": 24,
    "sliding_window_pattern": 2,
    "final_logit_softcapping": 2.0,
}
MODELS = {
    "llama": ("llama", {"rope_parameters": LLAMA3, "attention_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True, "head_dim": 24}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3, tied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", GEMMA),
    "gemma3, untied": ("gemma3_text", {**GEMMA, "tie_word_embeddings": False}),
}
TOKENS = np.random.default_rng(0).integers(1, 97, (2, 24))


@pytest.fixture(autouse=True, scope="module")
def torch_threads():
    """More threads than the machine has cores only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def save_tiny(directory, name, cls=AutoModelForCausalLM, **options):
    """A random model in files, in evaluation mode."""
    torch.manual_seed(0)
    model_type, given = MODELS[name]
    model = cls.from_config(AutoConfig.for_model(model_type, **SIZES, **given), attn_implementation="eager")
    return save_random(model, directory, **options)


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, tokens, mask):
    model = nnx.merge(graphdef, params)
    hidden = model(model.embed(tokens), mask)[0]
    return hidden, model.logits(hidden)


def our_logits(model, tokens=TOKENS, mask=None):
    graphdef, params = nnx.split(model)
    return np.asarray(forward(graphdef, params, tokens, np.ones_like(tokens, bool) if mask is None else mask)[1])


def torch_logits(model, tokens=TOKENS, mask=None):
    mask = None if mask is None else torch.from_numpy(mask.astype(int))
    with torch.no_grad():
        return model(torch.from_numpy(tokens), attention_mask=mask).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_in_and_out_through_files(tmp_path, name):
    """Several shards in; out with and without a base. Logits 1e-4 maximal absolute difference, f32, in; 1e-6 out.

    What is written is not what was read: all parameters were changed between.
    """
    theirs = save_tiny(tmp_path / "in", name, max_shard_size="20KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 2
    family, cfg, definition = define(tmp_path / "in", "llm")
    params = load.load(tmp_path / "in", family.key_map(cfg), definition.abstract)
    np.testing.assert_allclose(our_logits(definition.merge(params)), torch_logits(theirs), atol=1e-4, rtol=0)

    changed = {path: value * 1.1 + 0.01 for path, value in params.items()}
    expected = our_logits(definition.merge(changed))
    assert np.abs(expected - torch_logits(theirs)).max() > 0.1
    for base in (None, tmp_path / "in"):
        out = tmp_path / f"out, base {base is not None}"
        export.save(out, changed, family.key_map(cfg), family.config_to_hf(cfg), base=base)
        again, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, attn_implementation="eager")
        assert type(again) is type(theirs)
        assert not any(info.values()), info
        np.testing.assert_allclose(torch_logits(again.eval()), expected, atol=1e-4, rtol=0)
        for path, value in load.load(out, family.key_map(cfg), definition.abstract).items():
            np.testing.assert_allclose(value, changed[path], rtol=1e-6, atol=1e-7, err_msg=path)
        assert define(out, "llm")[1] == cfg


def test_loads_onto_a_mesh(tmp_path, mesh8):
    theirs = save_tiny(tmp_path, "gemma3")
    family, cfg, definition = define(tmp_path, "llm")
    params = load.load(tmp_path, family.key_map(cfg), abstract_on(definition, mesh8))
    tokens = jax.device_put(np.repeat(TOKENS, 4, axis=0), jax.NamedSharding(mesh8, jax.P(("data", "fsdp"))))
    graphdef, params = nnx.split(definition.merge(params))
    logits = forward(graphdef, params, tokens, tokens >= 0)[1]
    np.testing.assert_allclose(logits, np.repeat(torch_logits(theirs), 4, axis=0), atol=1e-4, rtol=0)


def test_bare_decoder(tmp_path):
    """AutoModel's files have neither prefix nor head: enough where the head is tied, else that is said."""
    theirs = save_tiny(tmp_path / "tied", "qwen3, tied", AutoModel)
    graphdef, params = nnx.split(load_tower(tmp_path / "tied", "llm"))
    hidden, _ = forward(graphdef, params, TOKENS, np.ones_like(TOKENS, bool))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden, expected, atol=1e-4, rtol=0)
    save_tiny(tmp_path / "untied", "llama", AutoModel)
    with pytest.raises(PretrainedError, match=r"llama LLM:\nmissing from the files \(1\):\n  lm_head\.weight$"):
        load_tower(tmp_path / "untied", "llm")


@pytest.mark.parametrize("spelling", ["as saved", "language_model.model.", "model.language_model."])
def test_text_part_of_gemma_with_vision(tmp_path, spelling):
    """Loaded past the vision tower; exported with it, all of it as it was, into the multimodal class."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**SIZES, **GEMMA, "final_logit_softcapping": None},
        vision_config={**vision, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=96,
        attn_implementation="eager",
    )
    whole = save_random(Gemma3ForConditionalGeneration(config), tmp_path / "in")
    if spelling != "as saved":
        file = tmp_path / "in" / "model.safetensors"
        tensors = {n.replace("model.language_model.", "language_model.model."): v for n, v in load_file(file).items()}
        tensors = {n.replace("language_model.model.", spelling): v for n, v in tensors.items()}
        assert sum(name.startswith(spelling) for name in tensors) > 20
        save_file(tensors, file, metadata={"format": "pt"})
    family, cfg, definition = define(tmp_path / "in", "llm")
    assert cfg.model_type == "gemma3_text" and cfg.local_layers == (True, False, True)
    params = load.load(tmp_path / "in", family.key_map(cfg), definition.abstract)
    tokens = TOKENS % 90  # no image token
    np.testing.assert_allclose(
        our_logits(definition.merge(params), tokens), torch_logits(whole, tokens), atol=1e-4, rtol=0
    )

    changed = {path: value * 1.1 for path, value in params.items()}
    export.save(tmp_path / "out", changed, family.key_map(cfg), {}, base=tmp_path / "in")
    again, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    expected = our_logits(definition.merge(changed), tokens)
    np.testing.assert_allclose(torch_logits(again.eval(), tokens), expected, atol=1e-4, rtol=0)
    before, after = whole.model.vision_tower.state_dict(), again.model.vision_tower.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def test_a_tied_head_that_is_stored(tmp_path):
    """Read past where it equals the embedding, and not exported; refused where it differs."""
    theirs = save_tiny(tmp_path / "in", "gemma3")
    file = tmp_path / "in" / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    table = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": table.clone()}, file, metadata={"format": "pt"})
    family, cfg, definition = define(tmp_path / "in", "llm")
    params = load.load(tmp_path / "in", family.key_map(cfg), definition.abstract)
    np.testing.assert_allclose(our_logits(definition.merge(params)), torch_logits(theirs), atol=1e-4, rtol=0)

    changed = {**params, "tokens/table": params["tokens/table"] * 1.2}
    export.save(tmp_path / "out", changed, family.key_map(cfg), {}, base=tmp_path / "in")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    np.testing.assert_allclose(torch_logits(again), our_logits(definition.merge(changed)), atol=1e-4, rtol=0)

    save_file({**tensors, "lm_head.weight": table + 1e-3}, file, metadata={"format": "pt"})
    with pytest.raises(PretrainedError, match=r"lm_head\.weight: config\.json says it is model\.embed_tokens\.weight"):
        load.load(tmp_path / "in", family.key_map(cfg), definition.abstract)


@pytest.mark.parametrize(
    ("model_type", "given", "message"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not implemented"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not implemented"),
        ("gemma3_text", {"hidden_activation": "relu"}, "hidden_activation='relu' is not implemented"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' is not implemented"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "no valid config of llama: .*factor"),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 32,
                    "rope_theta": 1e4,
                    "attention_bend": 2,
                }
            },
            "attention_bend=2 is not implemented",
        ),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types='chunked_attention' is not implemented"),
        ("llama", {"num_local_experts": 8}, "num_local_experts=8 is not implemented"),
        ("qwen2", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config={'quant_method': 'gptq'}"),
        ("llama", {"hidden_size": 33}, "no valid config of llama: .*multiple of the number of attention heads"),
        ("llama", {"num_key_value_heads": 3}, "num_heads=4 is no multiple of num_kv_heads=3"),
        ("qwen3_moe", {}, "model_type='qwen3_moe' is not implemented"),
    ],
)
def test_what_is_not_implemented_is_refused(model_type, given, message):
    with pytest.raises(PretrainedError, match=f"(?s){message}"):
        llm.config_from_hf({"model_type": model_type, **SIZES, **given})


def test_config_is_read_as_published():
    """The sparse text_config of Gemma 3 4B, and Llama 3.2's and Qwen 2.5's spellings of transformers 4."""
    gemma = llm.config_from_hf(
        {
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        }
    )
    assert gemma.local_layers == tuple((i + 1) % 6 != 0 for i in range(34)) and gemma.window == 1024
    assert (gemma.rope, gemma.local_rope) == (Rope(theta=1e6, kind="linear", factor=8.0), Rope(theta=1e4))
    assert (gemma.num_heads, gemma.num_kv_heads, gemma.head_dim, gemma.vocab_size) == (8, 4, 256, 262208)
    assert gemma.tied and gemma.query_scale is None

    scaling = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    llama = llm.config_from_hf({"model_type": "llama", **SIZES, "rope_theta": 5e5, "rope_scaling": scaling})
    assert llama.rope == Rope(theta=5e5, kind="llama3", factor=8.0, original_positions=64)

    windows = {"sliding_window": 32768, "max_window_layers": 2}
    qwen = llm.config_from_hf({"model_type": "qwen2", **SIZES, "use_sliding_window": False, **windows})
    assert qwen.qkv_bias and not qwen.out_bias and qwen.window is None and qwen.local_layers == ()
    qwen = llm.config_from_hf({"model_type": "qwen2", **SIZES, "use_sliding_window": True, **windows})
    assert qwen.window == 32768 and qwen.local_layers == (False, False, True)


@pytest.mark.parametrize("name", MODELS)
def test_configs_survive_json(name):
    model_type, given = MODELS[name]
    given = {"model_type": model_type, **SIZES, **given}
    before = json.dumps(given)
    cfg = llm.config_from_hf(given, dropout=0.1, remat="full")
    assert json.dumps(given) == before and (cfg.dropout, cfg.remat) == (0.1, "full")
    assert llm.config_from_hf(json.loads(json.dumps(llm.config_to_hf(cfg))), dropout=0.1, remat="full") == cfg
    assert LLMConfig(**json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg


def test_what_a_family_cannot_say_is_refused():
    with pytest.raises(PretrainedError, match=r"of llama cannot say qk_norm=True \(read back: False\), window=3"):
        llm.config_to_hf(LLMConfig(qk_norm=True, window=3, local_layers=(True, False)))
    with pytest.raises(PretrainedError, match="model_type='gpt2' is not implemented"):
        llm.config_to_hf(LLMConfig(model_type="gpt2"))


def test_attention_softcap_is_treated_as_transformers_does(tmp_path, caplog):
    """transformers' Gemma 3 reads attn_logit_softcapping and does not apply it. Nor do we, with a warning."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma3_text", **SIZES, **GEMMA, attn_logit_softcapping=0.1)
    theirs = save_random(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), tmp_path)
    with caplog.at_level(logging.WARNING, logger="absl"):
        ours = load_tower(tmp_path, "llm")
    assert "attn_logit_softcapping=0.1 is not applied" in caplog.text
    np.testing.assert_allclose(our_logits(ours), torch_logits(theirs), atol=1e-4, rtol=0)
    capped = llm.config_from_hf(load.read_config(tmp_path), attention_softcap=0.1)
    assert capped.attention_softcap == 0.1
    with pytest.raises(PretrainedError, match=r"cannot say attention_softcap=0\.1"):
        llm.config_to_hf(capped)


TEXTS = (
    "The woman laughed and said that she was very happy to see",
    "Die Katze sitzt auf dem Dach und schaut den Vögeln",
    "Когда я вошёл в комнату, она заплакала, потому что",
    "彼は怒っていた。なぜなら、",
    "El niño tenía mucho miedo porque la noche era",
    "لقد كان يوما جميلا، وكنا جميعا",
)


def test_gemma_3_270m_continues_texts_as_transformers_does(weights):
    """Logits after every token of texts in six languages, and beyond the window of 512 tokens; f32 on both sides.

    Tolerance 1e-4 maximal absolute difference for the token after a text, 2e-4 for those within it, where logits reach
    45 (f32 has 4e-6 there; transformers itself is 6e-5 from its own logits in f64), 2e-5 on average; the same best
    token everywhere. With a cache, three tokens are those of transformers' greedy generation.
    """
    directory = weights / "gemma-3-270m"
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours = load_tower(directory, "llm")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encoded = tokenizer(list(TEXTS), padding=True, padding_side="right", return_tensors="np")
    tokens, mask = encoded["input_ids"], encoded["attention_mask"].astype(bool)
    out, reference = our_logits(ours, tokens, mask)[mask], torch_logits(theirs, tokens, mask)[mask]
    difference = np.abs(out - reference)
    assert np.abs(reference).max() > 20
    assert difference.max() <= 2e-4 and difference.mean() <= 2e-5, (difference.max(), difference.mean())
    ends = np.cumsum(mask.sum(1)) - 1
    assert difference[ends].max() <= 1e-4
    np.testing.assert_array_equal(out.argmax(-1), reference.argmax(-1))

    long = np.tile(tokens[mask], 12)[None, :540]
    graphdef, params = nnx.split(ours)

    @jax.jit
    def last(params, tokens):
        model = nnx.merge(graphdef, params)
        return model.logits(model(model.embed(tokens), tokens >= 0)[0][:, -4:])

    with torch.no_grad():
        reference = theirs(torch.from_numpy(long), logits_to_keep=4).logits.numpy()
    np.testing.assert_allclose(last(params, long), reference, atol=2e-4, rtol=0)

    @jax.jit
    def step(params, tokens, mask, cache):
        model = nnx.merge(graphdef, params)
        hidden, cache = model(model.embed(tokens), mask, cache=cache)
        row = jnp.arange(len(tokens))
        return model.logits(hidden[row, mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)]).argmax(-1), cache

    best, cache = step(params, tokens, mask, ours.empty_cache(len(tokens), tokens.shape[1] + 2))
    continued = [best]
    for _ in range(2):
        best, cache = step(params, best[:, None], np.ones((len(tokens), 1), bool), cache)
        continued.append(best)
    left = tokenizer(list(TEXTS), padding=True, padding_side="left", return_tensors="pt")
    generated = theirs.generate(**left, max_new_tokens=3, do_sample=False)[:, -3:].numpy()
    np.testing.assert_array_equal(np.stack(continued, axis=1), generated)
