"""The dual encoder on eight devices equals itself on one, in both mesh modes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mser_jax.models.dual_encoder import DualEncoder, DualEncoderConfig
from mser_jax.models.emotion_qformer import QFormerConfig
from mser_jax.models.spec_augment import SpecAugmentConfig
from mser_jax.models.text_encoder import TextEncoderConfig
from mser_jax.models.whisper import WhisperConfig
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Wide enough that several kinds of parameters are above the threshold of sharding.
CFG = DualEncoderConfig(
    speech=WhisperConfig(num_layers=2, width=64, num_heads=4, mlp_width=256, dropout=0.1),
    text=TextEncoderConfig(num_layers=2, width=64, num_heads=4, mlp_width=256, dropout=0.1),
    qformer=QFormerConfig(num_layers=2, num_queries=4, width=64, num_heads=4, mlp_width=256, dropout=0.1),
    spec_augment=SpecAugmentConfig(time_masks=1, freq_masks=1),
    embed_dim=64,
    heads=(("language", 3),),
)


def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1600, 6400, 8).astype(np.int32)
    wave = (rng.standard_normal((8, 6400)) * 3000).astype(np.int16)
    return {
        "waveform": np.where(np.arange(6400)[None] < lengths[:, None], wave, 0).astype(np.int16),
        "num_samples": lengths,
        "tokens": rng.integers(3, 300, (8, 12)).astype(np.int32),
        "token_mask": np.arange(12)[None] < rng.integers(3, 13, 8)[:, None],
        "target": rng.standard_normal((3, 8, 64)).astype(np.float32).transpose(1, 0, 2),
    }


def value_and_grad(graphdef, params, batch, rng):
    def loss(params):
        model = nnx.merge(graphdef, params)
        speech = model.encode_speech(batch["waveform"], batch["num_samples"], rng=rng)
        text = model.encode_text(batch["tokens"], batch["token_mask"], rng=rng)
        logits = model.adversary_logits(speech.embedding, 0.3)["language"]
        embeddings = jnp.stack([speech.embedding, text, speech.pooled], axis=1)
        terms = jnp.concatenate([(embeddings * batch["target"]).ravel(), jnp.square(logits).ravel()])
        scale = model.logit_scale() / 100
        return jnp.sum(terms) * scale, jnp.sum(jnp.abs(terms)) * scale

    return jax.value_and_grad(loss, has_aux=True)(params)


@pytest.fixture(scope="module")
def reference(build):
    graphdef, params = nnx.split(build(functools.partial(DualEncoder, CFG)))
    step = jax.jit(value_and_grad, static_argnums=0)
    return {drop: step(graphdef, params, batch(), jax.random.key(1) if drop else None) for drop in (False, True)}


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("mode", ["explicit", "auto"])
def test_eight_devices_equal_one(reference, build, monkeypatch, mode, drop):
    """Tolerance 1e-5, relative to the largest gradient of a leaf and to the size of the terms that the loss adds up
    (of both signs, so that their sum is near zero); the same dropout and SpecAugment.
    """
    # Biases and norms too are to be gathered.
    monkeypatch.setattr(sharding, "MIN_SHARDED_ELEMENTS", 32)
    graphdef, params = nnx.split(build(functools.partial(DualEncoder, CFG)))
    mesh = mesh_lib.make_mesh(data=2, fsdp=4, mode=mode)
    shardings = sharding.infer_shardings(params, mesh)
    assert sum(s.spec != jax.P() for s in jax.tree.leaves(shardings)) > 60
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, shardings)
        rows = jax.device_put(batch(), sharding.batch_sharding(mesh))
        key = jax.random.key(1) if drop else None
        (value, size), grads = jax.jit(value_and_grad, static_argnums=0)(graphdef, placed, rows, key)
    (expected_value, expected_size), expected_grads = reference[drop]
    np.testing.assert_allclose(size, expected_size, rtol=1e-5)
    np.testing.assert_allclose(value, expected_value, rtol=0, atol=1e-5 * expected_size)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, g), e, s in zip(leaves, jax.tree.leaves(expected_grads), jax.tree.leaves(shardings), strict=True):
        e = np.asarray(e)
        np.testing.assert_allclose(g, e, atol=1e-5 * max(1.0, np.abs(e).max()), err_msg=str(path))
        if mode == "explicit":
            assert g.sharding.is_equivalent_to(s, g.ndim), path


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_backward_does_not_keep_gathered_weights(build, mesh8, remat):
    """No stack of whole kernels [layers, in, out] is kept for the backward pass, whatever the policy."""
    cfg = dataclasses.replace(CFG, speech=dataclasses.replace(CFG.speech, remat=remat))
    graphdef, params = nnx.split(build(functools.partial(DualEncoder, cfg)))
    params = jax.device_put(params, sharding.infer_shardings(params, mesh8))
    rows = jax.device_put(batch(), sharding.batch_sharding(mesh8))

    def forward(params):
        return nnx.merge(graphdef, params).encode_speech(rows["waveform"], rows["num_samples"]).embedding

    jaxpr = jax.make_jaxpr(lambda p: jax.vjp(forward, p)[1](jnp.ones_like(forward(p))))(params)
    stacks = [
        v.aval
        for eqn in jaxpr.jaxpr.eqns
        if eqn.primitive.name == "scan"
        for v in eqn.outvars
        if v.aval.shape == (2, 64, 256)
    ]
    assert stacks, "the gradient of the stacked MLP kernel should be among them"
    assert all("fsdp" in str(a.sharding.spec) for a in stacks), stacks
