"""BERT, RoBERTa and XLM-R through real files; multilingual E5 on sentences in six languages."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from towers import load_tower, save_random
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from mser_jax.pretrained import bert
from mser_jax.pretrained.keymap import PretrainedError

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
COMMON = {"vocab_size": 50, "max_position_embeddings": 40, **SIZES}


@pytest.mark.parametrize(
    ("model", "config", "options"),
    [
        (BertModel, BertConfig, {}),
        (BertForPreTraining, BertConfig, {"type_vocab_size": 3, "layer_norm_eps": 1e-3, "num_attention_heads": 2}),
        (RobertaForMaskedLM, RobertaConfig, {"layer_norm_eps": 1e-5}),
        (XLMRobertaModel, XLMRobertaConfig, {"type_vocab_size": 1}),
        (XLMRobertaForSequenceClassification, XLMRobertaConfig, {"pad_token_id": 3, "num_hidden_layers": 1}),
    ],
)
def test_tiny_models_through_files(tmp_path, model, config, options):
    """Several lengths, up to what the position table holds, padded and not. Tolerance 1e-5, f32."""
    torch.manual_seed(0)
    whole = save_random(model(config(**{**COMMON, **options})), tmp_path)
    theirs = getattr(whole, whole.base_model_prefix, whole)
    ours = load_tower(tmp_path, "text")
    pad = whole.config.pad_token_id
    rng = np.random.default_rng(0)
    for lengths in ([ours.cfg.max_positions - ours.cfg.position_offset] * 3, [13, 1, 7]):
        mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
        tokens = np.where(mask, rng.integers(4, 50, mask.shape), pad)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(int)))
        # The batches of this project pad with 0 whatever the tokenizer's padding id.
        for padded in (tokens, np.where(mask, tokens, 0)):
            out = np.asarray(ours(jnp.asarray(padded), jnp.asarray(mask)))
            np.testing.assert_allclose(out[mask], expected.last_hidden_state.numpy()[mask], atol=1e-5, rtol=0)


def test_old_spelling_of_norms(tmp_path):
    """Google's BERT files say gamma and beta, and hold position_ids."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    theirs = save_random(BertModel(BertConfig(**COMMON)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    assert sum("gamma" in name for name in old) == 7
    old["bert.embeddings.position_ids"] = torch.arange(40)
    save_file(old, tmp_path / "model.safetensors")
    ours = load_tower(tmp_path, "text")
    tokens = np.random.default_rng(0).integers(4, 50, (2, 9))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).last_hidden_state.numpy()
    np.testing.assert_allclose(ours(jnp.asarray(tokens), jnp.ones((2, 9), bool)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("vocab_size", None),
    ],
)
def test_what_is_not_implemented_is_refused(key, value):
    with pytest.raises(PretrainedError, match=key):
        bert.config_from_hf({**BertConfig(**COMMON).to_dict(), key: value})


def test_positions_begin_after_the_padding_row():
    for pad, offset in ((1, 2), (0, 1)):
        hf = XLMRobertaConfig(**COMMON, pad_token_id=pad).to_dict()
        assert bert.config_from_hf(hf).position_offset == offset
        assert bert.config_to_hf(bert.config_from_hf(hf))["pad_token_id"] == pad
    assert bert.config_from_hf(BertConfig(**COMMON, pad_token_id=3).to_dict()).position_offset == 0


SENTENCES = [
    "query: She was so happy that she could not stop laughing.",
    "query: Halt! Er war wütend und schlug die Tür zu.",
    "query: Tengo miedo de quedarme sola en casa esta noche.",
    "query: Che tristezza, non ce la faccio più, e nessuno mi ascolta quando ne parlo.",
    "query: To jest zupełnie zwyczajny dzień, nic się nie dzieje.",
    "query: 今天的天气真好，我们一起去公园吧！",
]


def test_e5_embeddings_in_six_languages(weights):
    """Mean pooling, unit norm, one padded batch, the directory's tokenizer. Tolerance 1e-5, f32; states 2e-5."""
    directory = weights / "multilingual-e5-small"
    batch = AutoTokenizer.from_pretrained(directory)(SENTENCES, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].numpy().astype(bool)
    assert len(set(mask.sum(1))) > 3, "several lengths"
    theirs = AutoModel.from_pretrained(directory, dtype=torch.float32, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = theirs(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.numpy()
    ours = np.asarray(load_tower(directory, "text")(jnp.asarray(batch["input_ids"].numpy()), jnp.asarray(mask)))
    np.testing.assert_allclose(ours[mask], expected[mask], atol=2e-5, rtol=0)

    def embed(states):
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    np.testing.assert_allclose(embed(ours), embed(expected), atol=1e-5, rtol=0)
