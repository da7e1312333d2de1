"""The loss of answer tokens against numpy in float64."""

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax.losses import language_model
from mser_jax.parallel import sharding


def test_cross_entropy_counts_masked_in_tokens_only(mesh8):
    """Loss and gradient, 1e-5, on an explicit mesh; what is masked out has no gradient."""
    rng = np.random.default_rng(1)
    logits = (5 * rng.normal(size=(8, 6, 40))).astype(np.float32)
    targets = rng.integers(0, 40, (8, 6)).astype(np.int32)
    targets[:4] = logits[:4].argmax(-1)
    mask = rng.random((8, 6)) < 0.6
    log_p = logits.astype(np.float64)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    placed = jax.device_put((logits, targets, mask), NamedSharding(mesh8, P(sharding.BATCH_AXES)))
    total, weight, metrics = jax.jit(language_model.cross_entropy)(*placed)
    np.testing.assert_allclose(total, losses[mask].sum(), rtol=1e-5)
    assert float(weight) == mask.sum()
    hits, counted = metrics["token_accuracy"]
    assert float(hits) == (logits.argmax(-1) == targets)[mask].sum() and float(counted) == mask.sum()
    assert 0 < float(hits) < float(counted)
    gradient = jax.jit(jax.grad(lambda *args: language_model.cross_entropy(*args)[0]))(*placed)
    expected = (np.exp(log_p) - np.eye(40)[targets]) * mask[..., None]
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
