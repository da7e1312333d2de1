"""The encoder against transformers' torch WhisperEncoder; padding, length limit, layer mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import WhisperConfig as TorchWhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as TorchWhisperEncoder

from mser_jax.models.whisper import WhisperConfig, WhisperEncoder, sinusoids

TINY = WhisperConfig(num_layers=3, width=32, num_heads=4, mlp_width=64, num_mels=80)


def torch_to_ours(encoder: WhisperEncoder, theirs: TorchWhisperEncoder) -> WhisperEncoder:
    """Our module with torch's weights: kernels transposed, layers stacked."""
    names = {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.out_proj",
        "attention_norm": "self_attn_layer_norm",
        "mlp_in": "fc1",
        "mlp_out": "fc2",
        "mlp_norm": "final_layer_norm",
    }
    weights = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
    kind = {"kernel": "weight", "scale": "weight", "bias": "bias"}

    def find(path, leaf):
        *module, name = [str(k.key) for k in path]
        module = "/".join(module)
        if module.startswith("layers/"):
            source = names[module.removeprefix("layers/")]
            w = [weights[f"layers.{i}.{source}.{kind[name]}"] for i in range(TINY.num_layers)]
            w = np.stack([x.T if name == "kernel" else x for x in w])
        else:
            w = weights[f"{module.replace('final_norm', 'layer_norm')}.{kind[name]}"]
            w = w.transpose(2, 1, 0) if name == "kernel" else w
        assert w.shape == leaf.shape, (path, w.shape, leaf.shape)
        return jnp.asarray(w)

    graphdef, state = nnx.split(encoder)
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(find, nnx.as_pure(state)))


def test_parity_with_torch_at_30_s_all_hidden_states():
    """Tolerance 1e-5 maximal absolute difference, f32."""
    torch.manual_seed(0)
    config = TorchWhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        num_mel_bins=80,
        dropout=0.0,
    )
    theirs = TorchWhisperEncoder(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():  # biases and norms are 0 and 1 otherwise
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    ours = torch_to_ours(WhisperEncoder(TINY, rngs=nnx.Rngs(0)), theirs)

    x = np.random.default_rng(0).standard_normal((2, 3000, 80)).astype(np.float32)
    with torch.no_grad():
        reference = theirs(torch.from_numpy(x.transpose(0, 2, 1)), output_hidden_states=True)
    out = jax.jit(lambda x: tuple(ours(x, jnp.ones((2, 3000), bool), collect=True)))(x)
    last, _, _, states = out
    assert len(reference.hidden_states) == states.shape[0] == 4
    for i, state in enumerate(reference.hidden_states):
        np.testing.assert_allclose(states[i], state.numpy(), atol=1e-5, rtol=0, err_msg=f"hidden state {i}")
    np.testing.assert_allclose(last, reference.last_hidden_state.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [64, 512, 1280])
def test_positions_equal_whispers(width):
    from transformers.models.whisper.modeling_whisper import sinusoids as theirs

    # One unit in the last place of torch's f32 exp, times 1500 frames.
    np.testing.assert_allclose(sinusoids(1500, width), theirs(1500, width).numpy(), atol=4e-5)


@pytest.mark.parametrize("strides", [(1, 2), (2, 2)])
@pytest.mark.parametrize("frames", [1, 2, 37, 64])
def test_padding_changes_nothing(strides, frames):
    cfg = WhisperConfig(num_layers=2, width=32, num_heads=4, mlp_width=64, conv_strides=strides)
    encoder = WhisperEncoder(cfg, rngs=nnx.Rngs(0))
    encoder.conv1.bias[...] = jnp.ones(32)  # what would leak from padded frames
    x = np.random.default_rng(1).standard_normal((1, frames, 80)).astype(np.float32)
    alone = encoder(x, jnp.ones((1, frames), bool), mix_logits=jnp.arange(3.0))
    padded = np.concatenate([x, np.full((1, 29, 80), 9.0, np.float32)], 1)
    batch = encoder(padded, (jnp.arange(frames + 29) < frames)[None], mix_logits=jnp.arange(3.0))
    n = cfg.num_frames(160 * frames)
    assert alone.last.shape[1] == n == alone.mask.sum() == batch.mask.sum() and batch.mask[0, :n].all()
    np.testing.assert_allclose(batch.last[:, :n], alone.last, atol=1e-5)
    np.testing.assert_allclose(batch.mixed[:, :n], alone.mixed, atol=1e-5)


def test_mix_is_the_weighted_sum_of_normalised_hidden_states():
    encoder = WhisperEncoder(TINY, rngs=nnx.Rngs(3))
    x = np.random.default_rng(2).standard_normal((2, 40, 80)).astype(np.float32)
    logits = jnp.array([0.3, -1.0, 2.0, 0.7])
    out = encoder(x, jnp.ones((2, 40), bool), mix_logits=logits, collect=True)
    states = np.asarray(out.hidden_states, np.float64)
    normal = (states - states.mean(-1, keepdims=True)) / np.sqrt(states.var(-1, keepdims=True) + 1e-5)
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(out.mixed, np.einsum("l,lbtd->btd", weights, normal), atol=1e-5)


def test_longer_than_30_s_is_refused():
    encoder = WhisperEncoder(TINY, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="30 s"):
        encoder(jnp.zeros((1, 3001, 80)), jnp.ones((1, 3001), bool))
