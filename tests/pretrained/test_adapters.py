"""PEFT directories: ours as peft applies them, peft's as we do, and all that is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from towers import define, save_random
from transformers.models.whisper.modeling_whisper import WhisperEncoder as TorchWhisperEncoder

from mser_jax import state
from mser_jax.models import lora
from mser_jax.models.llm import LLM
from mser_jax.pretrained import adapters, load
from mser_jax.pretrained import llm as llm_family
from mser_jax.pretrained.keymap import PretrainedError

RANK, ALPHA = 3, 6.0
BERT = transformers.BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50,
    max_position_embeddings=24, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
WHISPER = transformers.WhisperConfig(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=1, max_target_positions=8,
)  # fmt: skip
WAVLM = transformers.WavLMConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16, 16),
    conv_kernel=(10, 4), conv_stride=(5, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4, num_buckets=16, max_bucket_distance=40, mask_time_prob=0.0,
)  # fmt: skip
DECODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 64,
}  # fmt: skip


def adapted(directory, kind, pattern):
    """(table, definition, parameters) of our tower with the weights of `directory` and adapters as if trained."""
    if kind == "llm":
        family = llm_family
        cfg = family.config_from_hf(load.read_config(directory))

        def build(rngs):
            return LLM(cfg, rngs=rngs)
    else:
        family, cfg, plain = define(directory, kind)
        build = plain.make

    def make(rngs):
        model = build(rngs)
        lora.attach(model, pattern, rank=RANK, alpha=ALPHA, rngs=rngs)
        return model

    definition = state.define(make)
    drawn = lora.split(state.initial_params(definition, jax.random.key(0)))[1]
    keys = dict(zip(drawn, jax.random.split(jax.random.key(1), len(drawn)), strict=True))
    drawn = {
        path: 0.3 * jax.random.normal(keys[path], value.shape) if path.endswith("b") else value
        for path, value in drawn.items()
    }
    base = {path: leaf for path, leaf in definition.abstract.items() if not lora.is_adapter(path)}
    table = family.key_map(cfg)
    return table, definition, load.load(directory, table, base) | drawn


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """(directory, torch model) of a BERT."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("bert")
    return directory, save_random(transformers.BertModel(BERT, add_pooling_layer=False), directory)


def bert_outputs(definition, params, theirs):
    """Ours and torch's last hidden states on the same tokens."""
    tokens = np.random.default_rng(0).integers(0, 50, (2, 9))
    ours = definition.merge(params)(jnp.asarray(tokens), jnp.ones((2, 9), bool))
    with torch.no_grad():
        return ours, theirs(input_ids=torch.tensor(tokens)).last_hidden_state.numpy()


def test_bert_with_our_adapters_in_peft(bert, tmp_path):
    """Tolerance 1e-5 maximal absolute difference, f32."""
    directory, theirs = bert
    table, definition, params = adapted(directory, "text", r"attention/(query|out)$|mlp_in$")
    adapters.save(tmp_path / "out", params, table, alpha=ALPHA, base_model=str(directory))
    plain = bert_outputs(definition, params, theirs)[1]
    model = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(directory), tmp_path / "out").eval()
    ours, out = bert_outputs(definition, params, model)
    np.testing.assert_allclose(ours, out, atol=1e-5, rtol=0)
    assert np.abs(out - plain).max() > 0.05
    names = set(load_file(tmp_path / "out" / adapters.WEIGHTS))
    assert "base_model.model.encoder.layer.1.attention.self.query.lora_A.weight" in names and len(names) == 2 * 3 * 2


@pytest.mark.parametrize(
    ("base_class", "prefix"),
    [
        (transformers.WhisperModel, "encoder."),
        (transformers.WhisperForConditionalGeneration, "model.encoder."),
        (TorchWhisperEncoder, ""),
    ],
)
def test_whispers_encoder_within_every_class(tmp_path, base_class, prefix):
    """Tolerance 1e-5 maximal absolute difference, f32. The decoder, of equal module names, is left alone."""
    torch.manual_seed(0)
    save_random(base_class(WHISPER), tmp_path / "base")
    table, definition, params = adapted(tmp_path / "base", "speech", r"attention/(query|value)$|mlp_")
    adapters.save(tmp_path / "out", params, table, alpha=ALPHA, base_model=str(tmp_path / "base"), prefix=prefix)
    base = base_class.from_pretrained(tmp_path / "base").eval()
    x = np.random.default_rng(0).standard_normal((1, 3000, 80)).astype(np.float32)

    def encode(model):
        encoder = model if prefix == "" else model.get_encoder()
        with torch.no_grad():
            return encoder(torch.tensor(x.transpose(0, 2, 1))).last_hidden_state.numpy()

    plain = encode(base)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ours = definition.merge(params)(x, jnp.ones((1, 3000), bool)).last
    out = encode(model.base_model.model)
    np.testing.assert_allclose(ours, out, atol=1e-5, rtol=0)
    assert np.abs(out - plain).max() > 0.05
    assert not [name for name, _ in model.named_modules() if "decoder" in name and "lora" in name]


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_a_language_model_with_our_adapters_in_peft(tmp_path, name):
    """Logits; tolerance 1e-5 maximal absolute difference, f32. Every linear layer adapted, all but the head."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**DECODER, tie_word_embeddings=False)
    theirs = save_random(getattr(transformers, f"{name}ForCausalLM")(config), tmp_path / "base")
    table, definition, params = adapted(tmp_path / "base", "llm", ".")
    assert len(lora.split(params)[1]) == 2 * 7
    options = {"alpha": ALPHA, "base_model": str(tmp_path / "base"), "task_type": "CAUSAL_LM"}
    adapters.save(tmp_path / "out", params, table, **options)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 9))
    with torch.no_grad():
        plain = theirs(torch.tensor(tokens)).logits.numpy()
        out = (
            peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()(torch.tensor(tokens)).logits.numpy()
        )
    model = definition.merge(params)
    ours = model.logits(model(model.embed(jnp.asarray(tokens)), jnp.ones((2, 9), bool))[0])
    np.testing.assert_allclose(ours, out, atol=1e-5, rtol=0)
    assert np.abs(out - plain).max() > 0.05


def test_of_wavlms_attention_peft_applies_adapters_only_when_merged(tmp_path, caplog):
    """The warning is true. Tolerance 1e-5 maximal absolute difference, f32."""
    torch.manual_seed(0)
    theirs = save_random(transformers.WavLMModel(WAVLM), tmp_path / "base")
    table, definition, params = adapted(tmp_path / "base", "speech", r"attention/(query|value)$")
    with caplog.at_level(logging.WARNING):
        adapters.save(tmp_path / "out", params, table, alpha=ALPHA, base_model="x")
    assert "layers/attention/query" in caplog.text and "merge_and_unload" in caplog.text
    x = np.random.default_rng(0).standard_normal((1, 4000)).astype(np.float32)
    with torch.no_grad():
        plain = theirs(torch.tensor(x)).last_hidden_state.numpy()
        model = peft.PeftModel.from_pretrained(theirs, tmp_path / "out").eval()
        unmerged = model(torch.tensor(x)).last_hidden_state.numpy()
        merged = model.merge_and_unload()(torch.tensor(x)).last_hidden_state.numpy()
    ours = definition.merge(params)(x, jnp.ones((1, 4000), bool)).last
    np.testing.assert_allclose(ours, merged, atol=1e-5, rtol=0)
    assert np.abs(merged - plain).max() > 0.05
    np.testing.assert_array_equal(unmerged, plain)


def test_what_cannot_be_saved_is_said(bert, tmp_path):
    table, _, params = adapted(bert[0], "text", "query$")
    options = {"alpha": ALPHA, "base_model": "x"}
    a, b = (params[f"layers/attention/query/lora/{half}"] for half in "ab")
    more = {"layers/mlp_in/lora/a": a[..., :1], "layers/mlp_in/lora/b": b[:, :1]}
    with pytest.raises(PretrainedError, match=r"one rank, got ranks \[1, 3\]"):
        adapters.save(tmp_path / "out", params | more, table, **options)
    with pytest.raises(PretrainedError, match=r"got ranks \[\]"):
        adapters.save(tmp_path / "out", lora.split(params)[0], table, **options)
    with pytest.raises(PretrainedError, match=r"no linear layers .*: \['layers/other'\]"):
        adapters.save(tmp_path / "out", {"layers/other/lora/a": a, "layers/other/lora/b": b}, table, **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(PretrainedError, match="not empty"):
        adapters.save(tmp_path / "full", params, table, **options)
    assert not (tmp_path / "out").exists()
