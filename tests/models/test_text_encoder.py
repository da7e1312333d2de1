"""The text encoder against torch's BertModel and XLMRobertaModel, with and without padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from mser_jax.models.text_encoder import TextEncoder, TextEncoderConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
OURS = {"num_layers": 3, "width": 32, "num_heads": 4, "mlp_width": 64, "vocab_size": 50, "max_positions": 40}
MODULES = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "layers/attention/query": "attention.self.query",
    "layers/attention/key": "attention.self.key",
    "layers/attention/value": "attention.self.value",
    "layers/attention/out": "attention.output.dense",
    "layers/attention_norm": "attention.output.LayerNorm",
    "layers/mlp_in": "intermediate.dense",
    "layers/mlp_out": "output.dense",
    "layers/mlp_norm": "output.LayerNorm",
}


def torch_to_ours(encoder: TextEncoder, theirs: torch.nn.Module) -> TextEncoder:
    weights = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    used = set()

    def find(path, leaf):
        *module, name = [str(k.key) for k in path]
        module = "/".join(module)
        source = f"{MODULES[module]}.{'bias' if name == 'bias' else 'weight'}"
        if module.startswith("layers/"):
            keys = [f"encoder.layer.{i}.{source}" for i in range(3)]
            w = np.stack([weights[k].T if name == "kernel" else weights[k] for k in keys])
        else:
            keys, w = [source], weights[source]
        used.update(keys)
        assert w.shape == leaf.shape, (path, w.shape, leaf.shape)
        return jnp.asarray(w)

    graphdef, state = nnx.split(encoder)
    encoder = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(find, nnx.as_pure(state)))
    assert used == set(weights), "weights of the torch model that we have no place for"
    return encoder


@pytest.mark.parametrize("family", ["bert", "xlm_roberta"])
def test_parity_with_torch(family):
    """Tolerance 1e-5 maximal absolute difference, f32."""
    torch.manual_seed(0)
    common = {"vocab_size": 50, "max_position_embeddings": 40, **SIZES}
    if family == "bert":
        config, pad = BertConfig(**common, type_vocab_size=2, pad_token_id=0), 0
        theirs, cfg = BertModel(config, add_pooling_layer=False), TextEncoderConfig(**OURS, token_types=2)
    else:
        config, pad = XLMRobertaConfig(**common, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5), 1
        theirs = XLMRobertaModel(config, add_pooling_layer=False)
        cfg = TextEncoderConfig(**OURS, position_offset=2, norm_eps=1e-5)
    theirs = theirs.eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ours = torch_to_ours(TextEncoder(cfg, rngs=nnx.Rngs(0)), theirs)

    rng = np.random.default_rng(0)
    for lengths in ([38] * 3, [13, 1, 7]):  # 38: all that XLM-R's table of 40 rows holds
        mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
        tokens = np.where(mask, rng.integers(2, 50, mask.shape), pad)
        with torch.no_grad():
            reference = theirs(
                torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(int))
            ).last_hidden_state.numpy()
        out = np.asarray(ours(jnp.asarray(tokens), jnp.asarray(mask)))
        np.testing.assert_allclose(out[mask], reference[mask], atol=1e-5, rtol=0)
        # The batches of this project pad with 0 whatever the tokenizer's padding id.
        zeros = np.asarray(ours(jnp.asarray(np.where(mask, tokens, 0)), jnp.asarray(mask)))
        np.testing.assert_allclose(zeros[mask], reference[mask], atol=1e-5, rtol=0)


def test_too_long_is_refused():
    cfg = TextEncoderConfig(**OURS, position_offset=2)
    with pytest.raises(ValueError, match="39 tokens, but the position table ends at 38"):
        TextEncoder(cfg, rngs=nnx.Rngs(0))(jnp.zeros((1, 39), int), jnp.ones((1, 39), bool))
