"""Our parameters → files → transformers gives the same outputs; files → ours → files gives the same bits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file
from towers import abstract_on, define, load_tower, save_random
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mser_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from mser_jax.pretrained import bert, export, files, keymap, load, whisper
from mser_jax.pretrained.keymap import KeyMap, PretrainedError

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "vocab_size": 60,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 2,
}


def flat(module):
    """{path: array} of a module."""
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.split(module)[1])}


def random_params(module):
    """Every parameter moved off what it is initialised to."""
    rng = np.random.default_rng(7)
    return {
        path: jnp.asarray(value + 0.1 * rng.standard_normal(value.shape), jnp.float32)
        for path, value in flat(module).items()
    }


def same_tensors(one, other):
    """Both directories have the same names, dtypes and bits."""
    one, other = ({name: files.read(info) for name, info in files.index(d).items()} for d in (one, other))
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def there_and_back(directory, kind, out, **options):
    """Loads a directory and saves it with itself as the base."""
    family, cfg, definition = define(directory, kind)
    params = load.load(directory, family.key_map(cfg), definition.abstract)
    export.save(out, params, family.key_map(cfg), family.config_to_hf(cfg), base=directory, **options)


@pytest.mark.parametrize("offset", [0, 2])
def test_text_encoders_alone_load_in_transformers(tmp_path, offset):
    """Tolerance 1e-5 maximal absolute difference, f32."""
    sizes = {"num_layers": 2, "width": 32, "num_heads": 4, "mlp_width": 64, "vocab_size": 50, "max_positions": 40}
    cfg = TextEncoderConfig(**sizes, token_types=2, position_offset=offset, norm_eps=1e-5)
    definition = nnx.split(TextEncoder(cfg, rngs=nnx.Rngs(0)))[0]
    params = random_params(TextEncoder(cfg, rngs=nnx.Rngs(0)))
    export.save(tmp_path / "out", params, bert.key_map(cfg), bert.config_to_hf(cfg))

    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True, add_pooling_layer=False)
    assert type(model).__name__ == ("XLMRobertaModel" if offset else "BertModel")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = np.random.default_rng(0).integers(2, 50, (2, 17))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)).last_hidden_state.numpy()
    flat_state = nnx.from_flat_state([(tuple(path.split("/")), nnx.Param(value)) for path, value in params.items()])
    ours = nnx.merge(definition, flat_state)(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert bert.config_from_hf(load.read_config(tmp_path / "out")) == cfg
    for path, value in flat(load_tower(tmp_path / "out", "text")).items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


@pytest.mark.parametrize("stored", [True, False])
def test_a_whisper_encoder_alone_loads_in_transformers(tmp_path, stored):
    """As WhisperEncoder, nothing missing, positions included; tolerance 1e-5 maximal absolute difference, f32."""
    cfg = whisper.config_from_hf(WhisperConfig(**WHISPER).to_dict())
    cfg = dataclasses.replace(cfg, stored_positions=stored)
    ours = cfg.make(dtype=jnp.float32, rngs=nnx.Rngs(0))
    export.save(tmp_path / "out", flat(ours), whisper.key_map(cfg), whisper.config_to_hf(cfg))
    model, info = WhisperEncoder.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    features = np.random.default_rng(0).standard_normal((1, 3000, 80)).astype(np.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(features.transpose(0, 2, 1))).last_hidden_state.numpy()
    np.testing.assert_allclose(ours(features, jnp.ones((1, 3000), bool)).last, theirs, atol=1e-5, rtol=0)
    assert whisper.config_from_hf(load.read_config(tmp_path / "out")) == dataclasses.replace(cfg, stored_positions=True)


def test_with_a_base_the_whole_model_comes_back(tmp_path):
    torch.manual_seed(0)
    theirs = save_random(WhisperForConditionalGeneration(WhisperConfig(**WHISPER)), tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text('{"made": "up"}')
    (tmp_path / "in" / "merges.txt").write_text("a b")
    (tmp_path / "in" / "1_Pooling").mkdir()
    (tmp_path / "in" / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "in" / "pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "in" / "pytorch_model.bin.index.json").write_text("{}")
    there_and_back(tmp_path / "in", "speech", tmp_path / "out")

    same_tensors(tmp_path / "in", tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"tokenizer.json", "merges.txt", "1_Pooling/config.json", "generation_config.json"} <= names
    assert not any("pytorch_model" in name for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]  # nothing half-written beside it
    again, info = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": torch.tensor([[2, 5, 9]])}
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, theirs(**inputs).logits, rtol=0, atol=0)


def test_a_base_with_a_foreign_adapter_is_refused_not_half_copied(tmp_path):
    torch.manual_seed(0)
    save_random(WhisperForConditionalGeneration(WhisperConfig(**WHISPER)), tmp_path / "in")
    family, cfg, definition = define(tmp_path / "in", "speech")
    params = load.load(tmp_path / "in", family.key_map(cfg), definition.abstract)
    (tmp_path / "in" / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    with pytest.raises(PretrainedError, match="holds a LoRA adapter"):
        export.save(tmp_path / "out", params, family.key_map(cfg), family.config_to_hf(cfg), base=tmp_path / "in")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["masked", "classifier", "bare"])
def test_heads_and_prefixes_survive(tmp_path, model):
    torch.manual_seed(0)
    make = {
        "masked": lambda: BertForMaskedLM(BertConfig(**BERT)),
        "classifier": lambda: WhisperForAudioClassification(WhisperConfig(**WHISPER, use_weighted_layer_sum=True)),
        "bare": lambda: XLMRobertaModel(XLMRobertaConfig(**BERT)),
    }[model]
    save_random(make(), tmp_path / "in")
    there_and_back(tmp_path / "in", "speech" if model == "classifier" else "text", tmp_path / "out")
    same_tensors(tmp_path / "in", tmp_path / "out")
    before, after = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("in", "out"))
    del before["_name_or_path"], after["_name_or_path"]
    assert before == after


def test_half_precision_base_and_sharded_files(tmp_path):
    """f16 → f32 of ours; the decoder stays f16; several files with an index; from sharded arrays."""
    torch.manual_seed(0)
    save_random(
        WhisperForConditionalGeneration(WhisperConfig(**WHISPER)).half(), tmp_path / "in", max_shard_size="60KB"
    )
    assert (tmp_path / "in" / files.INDEX).exists()
    family, cfg, definition = define(tmp_path / "in", "speech")
    mesh = jax.make_mesh((1, 8, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Explicit,) * 3)
    params = load.load(tmp_path / "in", family.key_map(cfg), abstract_on(definition, mesh))
    export.save(tmp_path / "out", params, family.key_map(cfg), {}, base=tmp_path / "in", max_shard_size="100KB")
    written = files.index(tmp_path / "out")
    assert len({info.file for info in written.values()}) > 2
    before = files.index(tmp_path / "in")
    assert before.keys() == written.keys()
    for name, info in written.items():
        assert info.dtype == ("F32" if name.startswith("model.encoder.") else "F16"), name
        np.testing.assert_array_equal(files.read(info), files.read(before[name]).astype(np.float32), err_msg=name)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    model, info = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.dtype == torch.float32 and not info["missing_keys"] and not info["unexpected_keys"]


def test_bfloat16_and_offsets(tmp_path):
    """bf16 parameters are written as they are; scales that are stored minus one come back."""
    table = KeyMap("toy", ("net.",), (*keymap.linear("fc", "fc"), *keymap.norm("norm", "norm", bias=False, offset=1.0)))
    rng = np.random.default_rng(0)
    params = {
        "fc/kernel": jnp.asarray(rng.standard_normal((3, 5)), jnp.bfloat16),
        "fc/bias": jnp.asarray(rng.standard_normal(5), jnp.bfloat16),
        "norm/scale": jnp.asarray(1 + 0.1 * rng.standard_normal(3), jnp.bfloat16),
    }
    export.save(tmp_path / "out", params, table, {"model_type": "toy"})
    assert {info.dtype for info in files.index(tmp_path / "out").values()} == {"BF16"}
    stored = {name: files.read(info).astype(np.float32) for name, info in files.index(tmp_path / "out").items()}
    np.testing.assert_array_equal(stored["net.fc.weight"], np.asarray(params["fc/kernel"], np.float32).T)
    np.testing.assert_allclose(stored["net.norm.weight"], np.asarray(params["norm/scale"], np.float32) - 1, rtol=2**-8)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "toy", "dtype": "bfloat16"}
    back = load.load(tmp_path / "out", table, {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in params.items()})
    for path, value in back.items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


def test_nothing_is_overwritten_or_left_half_written(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_random(XLMRobertaModel(XLMRobertaConfig(**BERT)), tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(PretrainedError, match="out is there already and not empty"):
        there_and_back(tmp_path / "in", "text", tmp_path / "out")

    def fails(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_file", fails)
        with pytest.raises(OSError, match="disk full"):
            there_and_back(tmp_path / "in", "text", tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]

    there_and_back(tmp_path / "in", "text", tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    there_and_back(tmp_path / "out", "text", tmp_path / "out", overwrite=True)  # onto its own base
    same_tensors(tmp_path / "in", tmp_path / "out")


def test_params_that_do_not_fit_are_listed(tmp_path):
    torch.manual_seed(0)
    save_random(XLMRobertaModel(XLMRobertaConfig(**BERT)), tmp_path / "in")
    family, cfg, definition = define(tmp_path / "in", "text")
    params = load.load(tmp_path / "in", family.key_map(cfg), definition.abstract)
    less = {path: value for path, value in params.items() if path != "tokens/table"}
    with pytest.raises(PretrainedError, match=r"missing \['tokens/table'\], left over \['extra'\]"):
        export.save(tmp_path / "out", {**less, "extra": params["tokens/table"]}, family.key_map(cfg), {})
    longer = {**params, "tokens/table": jnp.zeros((51, 32))}
    with pytest.raises(PretrainedError, match=r"word_embeddings\.weight: expected \[51, 32\], the file has \[50, 32\]"):
        export.save(tmp_path / "out", longer, family.key_map(cfg), {}, base=tmp_path / "in")
    with pytest.raises(PretrainedError, match=r"conv_strides=\(2, 2\)"):
        whisper.config_to_hf(whisper.WhisperConfig(conv_strides=(2, 2)))
    assert not (tmp_path / "out").exists()


def test_files_are_what_the_safetensors_library_reads(tmp_path):
    torch.manual_seed(0)
    save_random(XLMRobertaModel(XLMRobertaConfig(**BERT)), tmp_path / "in")
    there_and_back(tmp_path / "in", "text", tmp_path / "out")
    theirs = load_file(tmp_path / "in" / files.WEIGHTS)
    for name, value in load_file(tmp_path / "out" / files.WEIGHTS).items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
