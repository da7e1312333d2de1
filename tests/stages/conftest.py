"""A small M5SER-mini (four languages, two of them held out) and a network to match."""

import pytest
import torch
import transformers

from configs import stage1, stage2

CORPUS = (
    "m5ser_mini:train_languages=en+de;test_languages=fa+pl;train_voices=m1+f1+f4;validation_voices=m6"
    ";neutral_sentences=4;emotional_sentences=0"
)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("corpora")


def shrink(config, data_dir, overrides):
    """A network of a few thousand parameters on the small corpus; overrides are {"section.key": value}."""
    towers = [config[name].sizes for name in ("speech_encoder", "text_encoder", "llm") if name in config]
    for sizes in (*towers, config.model.qformer):
        sizes.update({"num_layers": 1, "width": 48, "num_heads": 2, "mlp_width": 96})
    config.mesh.replicated_limit = 1.0
    config.data.update({"corpora": CORPUS, "data_dir": str(data_dir), "length_classes": (3.0,)})
    config.train.update({"budget": "4 steps", "batch_size": 16})
    config.checkpointing.every = "2 steps"
    config.evaluate.bootstrap_samples = 50
    config.evaluate.split = "validation,test"  # rows of all four languages; nobody is left to calibrate
    for key, value in overrides.items():
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = value
    return config


@pytest.fixture(scope="session")
def tiny(data_dir):
    """tiny(**{"section.key": value}) -> config of stage 1."""
    return lambda **overrides: shrink(
        stage1.get_config(), data_dir, {"model.embed_dim": 32, "data.max_tokens": 64, **overrides}
    )


@pytest.fixture(scope="session")
def tiny2(data_dir):
    """tiny2(**{"section.key": value}) -> config of stage 2, of the same speech side as `tiny`."""
    heads = {"llm.sizes.num_kv_heads": 1, "llm.sizes.head_dim": 16, "model.embed_dim": 32}
    return lambda **overrides: shrink(stage2.get_config(), data_dir, {**heads, **overrides})


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """(whisper, bert): directories of tiny random towers, the former with a decoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bases")
    sizes = {"encoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_layers": 1}
    whisper = transformers.WhisperConfig(
        **sizes, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=60, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, max_target_positions=8,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(whisper).save_pretrained(folder / "whisper")
    bert = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=384
    )
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    return folder / "whisper", folder / "bert"
