"""Q-Former and pool: shapes, masking, queries that hear the frames."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mser_jax.models.emotion_qformer import AttentionPool, EmotionQFormer, QFormerConfig

CFG = QFormerConfig(num_layers=2, num_queries=3, width=16, num_heads=2, mlp_width=32)


def test_padding_is_ignored_and_frames_are_heard(build, call):
    model = build(lambda r: EmotionQFormer(CFG, 12, rngs=r))
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((2, 9, 12)).astype(np.float32)
    queries = call(model, "__call__", frames, jnp.ones((2, 9), bool))
    assert queries.shape == (2, 3, 16)
    padded = np.concatenate([frames, rng.standard_normal((2, 4, 12)).astype(np.float32)], 1)
    np.testing.assert_allclose(
        call(model, "__call__", padded, jnp.arange(13)[None] < jnp.array([[9], [9]])), queries, atol=1e-5
    )
    assert np.abs(queries[0] - queries[1]).max() > 1e-2  # utterances differ
    assert np.abs(queries[:, 0] - queries[:, 1]).max() > 1e-2  # queries differ
    # Order of the frames carries no meaning of its own here: positions are the encoder's business.
    backwards = call(model, "__call__", frames[:, ::-1], jnp.ones((2, 9), bool))
    np.testing.assert_allclose(backwards, queries, atol=1e-5)


def test_no_frames_is_finite(build, call):
    model = build(lambda r: EmotionQFormer(CFG, 12, rngs=r))
    assert np.all(np.isfinite(call(model, "__call__", jnp.zeros((1, 4, 12)), jnp.zeros((1, 4), bool))))


def test_dropout_needs_a_key(build, call):
    cfg = QFormerConfig(num_layers=1, num_queries=3, width=16, num_heads=2, mlp_width=32, dropout=0.5)
    model = build(lambda r: EmotionQFormer(cfg, 12, rngs=r))
    frames, mask = jnp.ones((1, 5, 12)), jnp.ones((1, 5), bool)
    run = functools.partial(call, model, "__call__", frames, mask)
    np.testing.assert_array_equal(run(), run())
    assert np.any(run(rng=jax.random.key(0)) != run(rng=jax.random.key(1)))


def test_pool_is_a_softmax_weighted_mean():
    pool = AttentionPool(4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    score = x @ np.asarray(pool.score.kernel[...], np.float64)
    weights = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    np.testing.assert_allclose(pool(jnp.asarray(x, jnp.float32)), (weights * x).sum(1), atol=1e-6)
