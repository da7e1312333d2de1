"""The assembled network: padding, edge inputs, precision, temperature, FLOPs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mser_jax.models import log_mel as log_mel_lib
from mser_jax.models.dual_encoder import DualEncoder, DualEncoderConfig, flops_per_example
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.text_encoder import TextEncoderConfig
from mser_jax.models.whisper import WhisperConfig

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TINY = DualEncoderConfig(
    speech=WhisperConfig(num_layers=2, width=32, num_heads=4, mlp_width=64),
    text=TextEncoderConfig(num_layers=2, width=32, num_heads=4, mlp_width=64, max_positions=64),
    qformer=QFormerConfig(num_layers=2, num_queries=4, width=32, num_heads=4, mlp_width=64),
    embed_dim=24,
    heads=(("language", 3),),
)


@pytest.fixture(scope="module")
def model(build):
    return build(functools.partial(DualEncoder, TINY))


def clip(samples, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(samples) * 2000 * (1 + np.sin(np.arange(samples) / 900))).astype(np.int16)


def test_an_utterance_alone_or_padded_in_a_batch(model, call):
    """Tolerance 1e-5 on unit vectors."""
    lengths = [1600, 9999]
    batch = np.zeros((2, 24000), np.int16)
    for row, n in zip(batch, lengths, strict=True):
        row[:n] = clip(n, n)
    together = call(model, "encode_speech", batch, np.array(lengths, np.int32))
    for i, n in enumerate(lengths):
        alone = call(model, "encode_speech", clip(n, n)[None], np.array([n], np.int32))
        np.testing.assert_allclose(together.embedding[i], alone.embedding[0], atol=1e-5)
        np.testing.assert_allclose(together.queries[i], alone.queries[0], atol=1e-4)
    assert together.embedding.shape == (2, 24) and together.queries.shape == (2, 4, 32)
    assert together.embedding.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(together.embedding, axis=-1), 1.0, atol=1e-6)
    # Not for want of hearing anything:
    assert np.abs(together.embedding[0] - together.embedding[1]).max() > 1e-3


def test_text_padding(model, call):
    tokens = np.random.default_rng(0).integers(3, 300, (2, 9))
    long = np.pad(tokens, ((0, 0), (0, 20)))
    alone = call(model, "encode_text", tokens, np.ones((2, 9), bool))
    padded = call(model, "encode_text", long, np.arange(29)[None] < np.array([[9], [9]]))
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(alone, axis=-1), 1.0, atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


def test_silence_short_and_empty_are_finite_with_gradients(model):
    graphdef, params = nnx.split(model)
    waveform = np.zeros((3, 1600), np.int16)
    waveform[1] = clip(1600)

    def loss(params):
        model = nnx.merge(graphdef, params)
        speech = model.encode_speech(waveform, np.array([1600, 1600, 0], np.int32)).embedding
        text = model.encode_text(np.zeros((3, 4), np.int32), np.zeros((3, 4), bool))
        return jnp.sum(speech**3) + jnp.sum(text**3)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(g)), path


def test_every_parameter_learns(model):
    graphdef, params = nnx.split(model)
    waveform = np.stack([clip(8000, i) for i in range(4)])
    tokens = np.random.default_rng(0).integers(3, 300, (4, 9))

    def loss(params):
        model = nnx.merge(graphdef, params)
        speech = model.encode_speech(waveform, np.full(4, 8000)).embedding
        logits = model.logit_scale() * speech @ model.encode_text(tokens, np.ones((4, 9), bool)).T
        adversary = model.adversary_logits(speech, 1.0)["language"]
        return -jnp.diagonal(jax.nn.log_softmax(logits)).mean() + jnp.square(adversary).mean()

    for path, g in jax.tree_util.tree_leaves_with_path(nnx.as_pure(jax.jit(jax.grad(loss))(params))):
        # A bias of the keys shifts all logits of a query alike.
        if "key" in str(path) and "bias" in str(path):
            continue
        assert np.abs(g).max() > 0, path


def test_rng_switches_dropout_and_spec_augment_on(build, call):
    for change in (
        {"speech": dataclasses.replace(TINY.speech, dropout=0.2)},
        {"qformer": dataclasses.replace(TINY.qformer, dropout=0.2)},
        {"spec_augment": SpecAugmentConfig(time_masks=2, freq_masks=2)},
    ):
        model = build(functools.partial(DualEncoder, dataclasses.replace(TINY, **change)))
        wave, n = clip(8000)[None], np.array([8000])
        runs = [call(model, "encode_speech", wave, n, rng=jax.random.key(k)).embedding for k in (0, 0, 1)]
        np.testing.assert_array_equal(runs[0], runs[1])
        assert np.abs(runs[0] - runs[2]).max() > 1e-4


def test_bfloat16_stays_close(model, build, call):
    """Cosine ≥ .999 to the f32 embedding with the same (f32) parameters."""
    params = nnx.split(model)[1]
    half = build(functools.partial(DualEncoder, dataclasses.replace(TINY, dtype=jnp.bfloat16)))
    half = nnx.merge(nnx.split(half)[0], params)
    assert {p.dtype for p in jax.tree.leaves(nnx.split(half)[1])} == {jnp.dtype(jnp.float32)}
    wave, n = np.stack([clip(8000, i) for i in range(3)]), np.array([8000, 4000, 1600])
    tokens, mask = np.random.default_rng(0).integers(3, 300, (3, 9)), np.ones((3, 9), bool)
    speech = call(half, "encode_speech", wave, n)
    assert speech.queries.dtype == jnp.bfloat16 and speech.embedding.dtype == jnp.float32
    for a, b in (
        (speech.embedding, call(model, "encode_speech", wave, n).embedding),
        (call(half, "encode_text", tokens, mask), call(model, "encode_text", tokens, mask)),
    ):
        assert (a * b).sum(-1).min() > 0.999 and np.abs(a - b).max() > 0


def test_temperature_starts_clamps_and_comes_back(build):
    model = build(functools.partial(DualEncoder, TINY))
    np.testing.assert_allclose(model.logit_scale(), 1 / 0.07, rtol=1e-6)

    def scale(value, sign=1.0):
        model.log_logit_scale[...] = jnp.float32(value)
        graphdef, params = nnx.split(model)
        out, grads = jax.value_and_grad(lambda p: sign * nnx.merge(graphdef, p).logit_scale())(params)
        return out, grads["log_logit_scale"][...]

    np.testing.assert_allclose(scale(3.0), (np.exp(3.0), np.exp(3.0)), rtol=1e-6)
    np.testing.assert_allclose(scale(6.0), (100.0, 100.0), rtol=1e-6)  # descent lowers it: passes
    np.testing.assert_allclose(scale(6.0, -1.0), (-100.0, 0.0), rtol=1e-6)  # would raise it further: stopped


@pytest.mark.parametrize("strides", [(1, 2), (2, 2)])
def test_flops_agree_with_xla(build, strides):
    """Within 10 % of XLA's count for single layers (it counts a scanned body once) and 4 s.

    XLA also counts element-wise work, and an FFT three times as dear as it is: that is taken out.
    """
    cfg = DualEncoderConfig(
        speech=WhisperConfig(num_layers=1, width=192, num_heads=2, mlp_width=768, conv_strides=strides),
        text=TextEncoderConfig(num_layers=1, width=128, num_heads=2),
        qformer=QFormerConfig(num_layers=1, num_queries=8),
    )
    model = build(functools.partial(DualEncoder, cfg))
    ours = flops_per_example(cfg, 64000, 64)

    def counted(f, *shapes):
        args = [jax.ShapeDtypeStruct((2, *shape), dtype) for shape, dtype in shapes]
        return jax.jit(f).lower(*args).cost_analysis()["flops"] / 2

    audio = ((64000,), jnp.int16), ((), jnp.int32)
    mel = counted(log_mel_lib.log_mel, *audio)
    fft = counted(jnp.fft.rfft, ((400, 400), jnp.float32))
    mel_ours = log_mel_lib.flops(64000, 80)
    speech = counted(lambda w, n: model.encode_speech(w, n).embedding, *audio) - mel
    text = counted(model.encode_text, ((64,), jnp.int32), ((64,), jnp.bool_))
    assert mel - fft == pytest.approx(mel_ours - 400 * 2.5 * 400 * np.log2(400), rel=0.1)
    assert speech == pytest.approx(ours["speech_encoder"] - mel_ours + ours["qformer"], rel=0.1)
    assert text == pytest.approx(ours["text_encoder"], rel=0.1)
    deeper = dataclasses.replace(cfg, speech=dataclasses.replace(cfg.speech, num_layers=3))
    layer = flops_per_example(deeper, 64000, 64)["speech_encoder"] - ours["speech_encoder"]
    frames = 200 if strides == (1, 2) else 100
    assert layer == pytest.approx(2 * (2 * frames * 192 * (4 * 192 + 2 * 768) + 4 * frames**2 * 192))
