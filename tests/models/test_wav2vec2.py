"""The wav2vec2 family against transformers' torch models; padding, lengths, layer mix."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from mser_jax.models.wav2vec2 import Wav2Vec2Encoder
from mser_jax.models.wav2vec2_features import RelativePositions
from mser_jax.parallel import sharding
from mser_jax.pretrained import wav2vec2 as table

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 24, 20),
    "conv_kernel": (10, 8, 8),
    "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
# The published convolutions: 400 samples every 320. Elsewhere three of them, which compile sooner.
SEVEN = {
    "conv_dim": (16, 16, 24, 16, 16, 16, 20),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}
BASE = {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
BUCKETS = {"num_buckets": 16, "max_bucket_distance": 24}
VARIANTS = {
    "wav2vec2_base": (transformers.Wav2Vec2Model, BASE | SEVEN),
    "xls_r": (transformers.Wav2Vec2Model, LARGE | SEVEN),
    "group_norm_with_bias_then_stable": (transformers.Wav2Vec2Model, BASE | dict.fromkeys(list(LARGE)[1:], True)),
    "odd_position_kernel": (transformers.Wav2Vec2Model, LARGE | {"conv_bias": False, "num_conv_pos_embeddings": 15}),
    "hubert_base": (transformers.HubertModel, BASE | {"feat_proj_layer_norm": False}),
    "hubert_large": (transformers.HubertModel, LARGE | {"feat_proj_layer_norm": True}),
    "wavlm_base": (transformers.WavLMModel, BASE | BUCKETS),
    "wavlm_large": (transformers.WavLMModel, LARGE | BUCKETS | {"conv_bias": False, "layer_norm_eps": 1e-3}),
}


@functools.lru_cache
def torch_model(variant: str):
    """A tiny random model of transformers; biases, norms and gates drawn too."""
    torch.manual_seed(0)
    kind, options = VARIANTS[variant]
    model = kind(kind.config_class(**{**SIZES, **options})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@functools.lru_cache
def converted(variant: str) -> tuple[Wav2Vec2Encoder, torch.nn.Module]:
    """Our encoder with torch's weights, by the family's table; every tensor of torch's is used or named as ignored."""
    theirs = torch_model(variant)
    cfg = table.config_from_hf(theirs.config.to_dict())
    keys = table.key_map(cfg)
    weights = {keys.rename(name): value.numpy() for name, value in theirs.state_dict().items()}
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Wav2Vec2Encoder(cfg, rngs=nnx.Rngs(0))))
    entries = {entry.ours: entry for entry in keys.entries}
    used = set()

    def find(key_path, leaf):
        entry = entries.pop(sharding.path_of(key_path))
        names = [entry.name(i) for i in range(cfg.num_layers if entry.stacked else 1)]
        used.update(names)
        tensors = [weights[name] for name in names]
        tensors = [t if entry.transform.axes is None else t.transpose(entry.transform.axes) for t in tensors]
        value = np.stack(tensors) if entry.stacked else tensors[0]
        assert value.shape == leaf.shape, (entry, value.shape, leaf.shape)
        return jnp.asarray(value)

    state = jax.tree_util.tree_map_with_path(find, nnx.as_pure(state))
    assert not entries, f"in the table, not in the model: {sorted(entries)}"
    left = {name for name in weights if name not in used and not keys.is_ignored(name)}
    assert not left, f"not in the table: {sorted(left)}"
    return nnx.merge(graphdef, state), theirs


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode(graphdef, params, waveform, num_samples, normalise, mix):
    encoder = nnx.merge(graphdef, params)
    features, mask = encoder.front_end(waveform, num_samples)
    if not normalise:
        features = waveform
    return encoder(features, mask, mix_logits=mix, collect=True)


def encode(encoder, waveform, num_samples, *, normalise=False, mix=None):
    """All outputs under jit; without `normalise` the waveform goes in as it is, also its padding."""
    graphdef, params = nnx.split(encoder)
    return _encode(graphdef, params, waveform, np.asarray(num_samples), normalise, mix)


def speech(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hidden_states(theirs, waveform, mask=None):
    """All hidden states and the last one, which is after the final norm where the layout has one.

    So it was among `hidden_states` in transformers 4 (and is here); transformers 5 lists what the last layer
    returned, before that norm.
    """
    with torch.no_grad():
        mask = None if mask is None else torch.from_numpy(mask).long()
        out = theirs(torch.from_numpy(waveform), attention_mask=mask, output_hidden_states=True)
        return [state.numpy() for state in (*out.hidden_states[:-1], out.last_hidden_state)]


@pytest.mark.parametrize("num_samples", [400, 5003])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_hidden_state_equals_transformers_without_padding(variant, num_samples):
    """Tolerance 1e-4 maximal absolute difference (1e-5 is what is seen), f32."""
    ours, theirs = converted(variant)
    x = speech(1, 2, num_samples)
    expected = hidden_states(theirs, x)
    out = encode(ours, x, [num_samples] * 2)
    assert out.hidden_states.shape == (4, 2, ours.cfg.num_frames(num_samples), 32)
    assert len(expected) == 4 and out.mask.all()
    for i, state in enumerate(expected):
        np.testing.assert_allclose(out.hidden_states[i], state, atol=1e-4, rtol=0, err_msg=f"hidden state {i}")
    np.testing.assert_array_equal(out.last, out.hidden_states[-1])


@pytest.mark.parametrize("variant", [name for name, (_, o) in VARIANTS.items() if o["feat_extract_norm"] == "layer"])
def test_padded_batch_equals_transformers_with_attention_mask(variant):
    """Large layouts are fed with an attention mask; tolerance 1e-4 on valid frames."""
    ours, theirs = converted(variant)
    lengths = np.array([9000, 3333, 720])
    mask = np.arange(9000) < lengths[:, None]
    x = np.where(mask, speech(2, 3, 9000), 0.0).astype(np.float32)
    expected = hidden_states(theirs, x, mask)
    out = encode(ours, x, lengths)
    np.testing.assert_array_equal(out.mask.sum(1), [ours.cfg.num_frames(n) for n in lengths])
    for i, state in enumerate(expected):
        difference = np.where(out.mask[..., None], out.hidden_states[i] - state, 0.0)
        np.testing.assert_allclose(difference, 0.0, atol=1e-4, err_msg=f"hidden state {i}")


@pytest.mark.parametrize("variant", ["wav2vec2_base", "wavlm_large"])
def test_padding_changes_nothing(variant):
    """Whatever stands in the padding; lengths at which the number of frames changes, and below one frame."""
    ours, theirs = converted(variant)
    mix = jnp.array([0.3, -1.0, 2.0, 0.7])
    shortest = ours.cfg.receptive_field
    lengths = [7000, shortest + 319, shortest + 320, shortest - 1, 1]
    x = speech(3, 5, 7000)
    batch = encode(ours, x, lengths, mix=mix)
    for row, n in enumerate(lengths):
        frames = ours.cfg.num_frames(n)
        assert batch.mask[row, :frames].all() and not batch.mask[row, frames:].any()
        # What transformers gives the utterance alone, and what we do.
        samples = np.pad(x[row : row + 1, :n], ((0, 0), (0, max(0, shortest - n))))
        np.testing.assert_allclose(batch.last[row : row + 1, :frames], hidden_states(theirs, samples)[-1], atol=1e-4)
        if n in (shortest + 319, 1):
            alone = encode(ours, x[row : row + 1, :n], [n], mix=mix)
            assert alone.last.shape[1] == frames == alone.mask.sum()
            for name in ("last", "mixed"):
                padded = getattr(batch, name)[row : row + 1, :frames]
                np.testing.assert_allclose(padded, getattr(alone, name), atol=1e-5, err_msg=f"{name}, {n} samples")


@pytest.mark.parametrize("variant", ["wav2vec2_base", "wavlm_large"])
def test_no_samples_is_finite_and_has_no_valid_frame(variant):
    ours, _ = converted(variant)
    out = encode(ours, speech(4, 2, 3000), [0, 3000], normalise=True, mix=jnp.zeros(4))
    assert not out.mask[0].any() and out.mask[1].all()
    assert all(np.isfinite(x).all() for x in (out.last, out.mixed, out.hidden_states))


def test_frames_of_many_lengths_equal_transformers():
    theirs = torch_model("wav2vec2_base")
    cfg = converted("wav2vec2_base")[0].cfg
    assert cfg.receptive_field == 400
    lengths = [*range(400, 2400), 16000, 479_999, 480_000]
    expected = theirs._get_feat_extract_output_lengths(torch.tensor(lengths)).tolist()
    assert [cfg.num_frames(n) for n in lengths] == expected
    assert {cfg.num_frames(n) for n in range(400)} == {1}


@pytest.mark.parametrize("variant", ["wav2vec2_base", "xls_r"])
def test_feature_extractor_equals_torch(variant):
    """Tolerance 1e-5."""
    ours, theirs = converted(variant)
    x = speech(5, 2, 4000)
    with torch.no_grad():
        expected = theirs.feature_extractor(torch.from_numpy(x)).transpose(1, 2).numpy()
    frames, mask = jax.jit(lambda x: ours.feature_extractor(x, jnp.array([4000, 4000])))(x)
    assert mask.all() and np.abs(expected).max() > 0.5
    np.testing.assert_allclose(frames, expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["wav2vec2_base", "odd_position_kernel"])
def test_positional_convolution_equals_torch(variant):
    """Tolerance 1e-5; also of fewer frames than the kernel is long."""
    ours, theirs = converted(variant)
    for frames in (1, 2, 7, 40):
        x = speech(6, 2, frames, 32)
        with torch.no_grad():
            expected = theirs.encoder.pos_conv_embed(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(jax.jit(ours.positions)(x), x + expected, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 100, 1600])
def test_relative_position_bias_equals_wavlms(length):
    """Exactly: the bias is read from a table, with the published numbers of buckets and distances."""
    theirs = WavLMAttention(8, 2)
    ours = RelativePositions(320, 800, 2, rngs=nnx.Rngs(0))
    ours.embedding.table[...] = jnp.asarray(theirs.rel_attn_embed.weight.detach().numpy())
    with torch.no_grad():
        expected = theirs.compute_bias(length, length).numpy()
    np.testing.assert_array_equal(jax.jit(ours, static_argnums=0)(length), expected)


def test_gated_attention_equals_wavlms():
    """One attention module with masked keys; tolerance 1e-5. The second layer's, so that a bias is given."""
    ours, theirs = converted("wavlm_base")
    torch_layer, torch_first = theirs.encoder.layers[1].attention, theirs.encoder.layers[0].attention
    graphdef, params = nnx.split(ours.layers)
    layer = nnx.merge(graphdef, jax.tree.map(lambda p: p[1], params))
    x = speech(7, 2, 30, 32)
    mask = np.arange(30) < np.array([[30], [11]])
    with torch.no_grad():
        bias = torch_first.compute_bias(30, 30).repeat(2, 1, 1)
        expected = torch_layer(torch.from_numpy(x), torch.from_numpy(mask).long(), bias)[0].numpy()
        without = torch_layer(torch.from_numpy(x), torch.from_numpy(mask).long(), torch.zeros_like(bias))[0].numpy()
    out = jax.jit(lambda x: layer.attention(x, None, mask, ours.relative(30)))(x)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.abs(expected - without).max() > 1e-3  # the bias matters


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_front_end_equals_transformers_feature_extractor(dtype):
    """Zero mean and unit variance over valid samples; tolerance 1e-5. Silence and one sample too."""
    ours, _ = converted("wav2vec2_base")
    rng = np.random.default_rng(8)
    lengths = [4000, 1234, 1, 500]
    wave = (rng.standard_normal((4, 4000)) * 2000 + 300).astype(np.int16)
    wave[3] = 0
    as_float = wave.astype(np.float32) / 32768
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor(
        [row[:n] for row, n in zip(as_float, lengths, strict=True)],
        sampling_rate=16000,
        padding=True,
        return_tensors="np",
    )
    features, mask = ours.front_end(wave if dtype == "int16" else as_float, np.array(lengths))
    assert features.dtype == jnp.float32
    np.testing.assert_array_equal(mask, expected["attention_mask"].astype(bool))
    np.testing.assert_allclose(features, expected["input_values"], atol=1e-5)

    plain = Wav2Vec2Encoder.front_end
    unscaled = type("Plain", (), {"cfg": dataclasses.replace(ours.cfg, normalise=False)})()
    features, _ = plain(unscaled, wave, np.array(lengths))
    np.testing.assert_array_equal(features, np.where(mask, as_float, 0.0))


@pytest.mark.parametrize("variant", ["wav2vec2_base", "wavlm_large"])
def test_mix_is_the_weighted_sum_of_normalised_hidden_states(variant):
    ours, _ = converted(variant)
    logits = jnp.array([0.3, -1.0, 2.0, 0.7])
    out = encode(ours, speech(9, 2, 4000), [4000] * 2, mix=logits)
    states = np.asarray(out.hidden_states, np.float64)
    normal = (states - states.mean(-1, keepdims=True)) / np.sqrt(states.var(-1, keepdims=True) + 1e-5)
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(out.mixed, np.einsum("l,lbtd->btd", weights, normal), atol=1e-5)
