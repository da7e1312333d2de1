"""wav2vec2, HuBERT and WavLM through real files, in and out, in old and new spelling; what config.json may say."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file
from towers import abstract_on, define, load_tower, save_random

from mser_jax.models.wav2vec2 import Wav2Vec2Config
from mser_jax.parallel import sharding
from mser_jax.pretrained import export, files, load, wav2vec2
from mser_jax.pretrained.keymap import PretrainedError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 24],
    "conv_kernel": [10, 8, 8],
    "conv_stride": [5, 8, 8],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "codevector_dim": 16,
    "num_codevectors_per_group": 4,
    "tdnn_dim": [16, 16, 16, 16, 16],
    "vocab_size": 12,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
BUCKETS = {"num_buckets": 16, "max_bucket_distance": 24}
# Bare, for pretraining, with a CTC head, for classification, for speaker verification.
MODELS = {
    "wav2vec2": (transformers.Wav2Vec2Model, {}),
    "wav2vec2_pretraining": (transformers.Wav2Vec2ForPreTraining, LARGE),
    "wav2vec2_speaker": (transformers.Wav2Vec2ForXVector, {}),
    "hubert_ctc": (transformers.HubertForCTC, {"feat_proj_layer_norm": False}),
    "hubert_classifier": (transformers.HubertForSequenceClassification, LARGE | {"use_weighted_layer_sum": True}),
    "wavlm": (transformers.WavLMModel, LARGE | BUCKETS | {"conv_bias": False}),
    "wavlm_classifier": (transformers.WavLMForSequenceClassification, BUCKETS),
}


def save(name, directory):
    """The tower of a torch model that was saved whole."""
    torch.manual_seed(0)
    kind, options = MODELS[name]
    model = save_random(kind(kind.config_class(**{**SIZES, **options})), directory)
    return getattr(model, model.base_model_prefix, model)


def waveform():
    return np.random.default_rng(0).standard_normal((2, 3000)).astype(np.float32)


def outputs(model):
    with torch.no_grad():
        return model(torch.from_numpy(waveform())).last_hidden_state.numpy()


@functools.partial(jax.jit, static_argnums=0)
def _encode(graphdef, params, x):
    return nnx.merge(graphdef, params)(x, jnp.ones(x.shape, bool)).last


def encode(encoder):
    return _encode(*nnx.split(encoder), waveform())


def flat(encoder):
    """{path: array}."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.as_pure(nnx.split(encoder)[1]))
    return {sharding.path_of(path): leaf for path, leaf in leaves}


def respell(directory, old, new):
    """Renames tensors in model.safetensors; returns how many."""
    tensors = load_file(directory / files.WEIGHTS)
    renamed = {name.replace(old, new): value for name, value in tensors.items()}
    save_file(renamed, directory / files.WEIGHTS, metadata={"format": "pt"})
    return len(set(renamed) - set(tensors))


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_load_and_give_the_same(tmp_path, name):
    """Tolerance 1e-4 maximal absolute difference of last hidden states, f32."""
    expected = outputs(save(name, tmp_path))
    encoder = load_tower(tmp_path, "speech")
    assert encoder.cfg.model_type == name.split("_")[0]
    np.testing.assert_allclose(encode(encoder), expected, atol=1e-4, rtol=0)


def test_both_spellings_of_weight_norm_load_alike(tmp_path):
    save("wav2vec2", tmp_path)
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    names = "\n".join(load_file(tmp_path / files.WEIGHTS))
    there = [spelling for spelling in (list(new), list(new.values())) if all(part in names for part in spelling)]
    assert len(there) == 1
    first = flat(load_tower(tmp_path, "speech"))
    for old, other in new.items():
        assert respell(tmp_path, *((old, other) if there[0] == list(new) else (other, old))) == 1
    second = flat(load_tower(tmp_path, "speech"))
    assert set(first) == set(second)
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)


def test_missing_weight_norm_is_named(tmp_path):
    save("wav2vec2", tmp_path)
    tensors = load_file(tmp_path / files.WEIGHTS)
    gain = next(name for name in tensors if name.endswith(("original0", "weight_g")))
    save_file({name: value for name, value in tensors.items() if name != gain}, tmp_path / files.WEIGHTS)
    with pytest.raises(PretrainedError, match=r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0"):
        load_tower(tmp_path, "speech")


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm"])
def test_shards_are_those_of_the_whole(tmp_path, mesh8, monkeypatch, name):
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 32)
    save(name, tmp_path)
    family, cfg, definition = define(tmp_path, "speech")
    whole = load.load(tmp_path, family.key_map(cfg), definition.abstract)
    parts = load.load(tmp_path, family.key_map(cfg), abstract_on(definition, mesh8))
    assert sum(not value.sharding.is_fully_replicated for value in parts.values()) > 20
    for path, value in whole.items():
        np.testing.assert_array_equal(jax.device_get(parts[path]), jax.device_get(value), err_msg=path)


@pytest.mark.parametrize("name", ["wav2vec2_pretraining", "hubert_ctc", "wavlm"])
def test_export_loads_in_transformers(tmp_path, name):
    """The tower by itself: nothing missing or left over, the same bits, the same outputs (1e-4), the same config."""
    save(name, tmp_path / "in")
    encoder = load_tower(tmp_path / "in", "speech")
    params = flat(encoder)
    export.save(tmp_path / "out", params, wav2vec2.key_map(encoder.cfg), wav2vec2.config_to_hf(encoder.cfg))
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert (
        type(model).__name__
        == {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}[encoder.cfg.model_type]
    )
    np.testing.assert_allclose(encode(encoder), outputs(model.eval()), atol=1e-4, rtol=0)
    again = load_tower(tmp_path / "out", "speech")
    assert again.cfg == encoder.cfg
    for path, value in flat(again).items():
        np.testing.assert_array_equal(value, params[path], err_msg=path)


@pytest.mark.parametrize("name", ["wav2vec2_speaker", "hubert_classifier"])
def test_export_with_a_base_is_the_whole_model_again(tmp_path, name):
    save(name, tmp_path / "in")
    encoder = load_tower(tmp_path / "in", "speech")
    export.save(tmp_path / "out", flat(encoder), wav2vec2.key_map(encoder.cfg), {}, base=tmp_path / "in")
    kind = MODELS[name][0]
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for key, value in kind.from_pretrained(tmp_path / "in").state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), value.numpy(), err_msg=key)


@pytest.mark.parametrize("processor", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_normalisation_is_the_front_ends(tmp_path, processor, normalise):
    """WavLM-base has do_normalize false; feature extractors are saved alone or, in transformers 5, with a tokenizer."""
    transformers.Wav2Vec2Config(**SIZES).save_pretrained(tmp_path)
    assert wav2vec2.config_from_hf(load.read_config(tmp_path)).normalise  # where nothing is said
    front_end = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise)
    if processor:
        (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": front_end.to_dict()}))
    else:
        front_end.save_pretrained(tmp_path)
    cfg = wav2vec2.config_from_hf(load.read_config(tmp_path))
    assert cfg.normalise is normalise
    (tmp_path / files.CONFIG).write_text(json.dumps(wav2vec2.config_to_hf(cfg)))
    for file in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / file).unlink(missing_ok=True)
    assert wav2vec2.config_from_hf(load.read_config(tmp_path)) == cfg


def test_options_reach_the_config():
    hf = transformers.WavLMConfig().to_dict()
    cfg = wav2vec2.config_from_hf(hf, dropout=0.1, remat="full")
    assert cfg == Wav2Vec2Config(
        num_layers=12,
        width=768,
        num_heads=12,
        mlp_width=3072,
        relative_buckets=320,
        model_type="wavlm",
        dropout=0.1,
        remat="full",
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (transformers.Wav2Vec2Config, {"add_adapter": True}, "add_adapter=True"),
        (transformers.Wav2Vec2Config, {"adapter_attn_dim": 16}, "adapter_attn_dim=16"),
        (transformers.HubertConfig, {"conv_pos_batch_norm": True}, "conv_pos_batch_norm=True"),
        (transformers.WavLMConfig, {"hidden_act": "relu"}, "hidden_act='relu'"),
        (transformers.WavLMConfig, {"feat_extract_activation": "relu"}, "feat_extract_activation='relu'"),
        (transformers.Wav2Vec2Config, {"feat_extract_norm": "batch"}, "conv_norm='batch'"),
    ],
)
def test_configs_that_are_not_implemented_are_refused(kind, options, message):
    with pytest.raises(PretrainedError, match=message):
        wav2vec2.config_from_hf(kind(**options).to_dict())


def test_configs_that_no_architecture_has_are_not_exported():
    with pytest.raises(PretrainedError, match="relative_buckets=32"):
        wav2vec2.config_to_hf(Wav2Vec2Config(relative_buckets=32))
    with pytest.raises(PretrainedError, match="relative_buckets=0"):
        wav2vec2.config_to_hf(Wav2Vec2Config(model_type="wavlm"))
    with pytest.raises(PretrainedError, match="projection_norm"):
        wav2vec2.config_to_hf(Wav2Vec2Config(projection_norm=False))
    with pytest.raises(PretrainedError, match="'unispeech'"):
        wav2vec2.config_to_hf(Wav2Vec2Config(model_type="unispeech"))
