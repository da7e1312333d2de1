"""Gradient reversal and heads."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mser_jax.models.adversary import AdversaryHeads, reverse_gradient


def test_identity_forward_minus_scale_backward():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    for scale in (0.0, 0.3, jnp.float32(2.0)):
        np.testing.assert_array_equal(reverse_gradient(x, scale), x)
        grad = jax.jit(jax.grad(lambda x, s: jnp.sum(reverse_gradient(x, s) ** 2)))(x, scale)
        np.testing.assert_allclose(grad, -scale * 2 * x, rtol=1e-6)


def test_heads_descend_while_the_embedding_ascends():
    """One plain gradient step lowers the heads' loss by their parameters and raises it by the embedding."""
    heads = AdversaryHeads(8, (("language", 5), ("domain", 2)), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(heads)
    x = jax.random.normal(jax.random.key(1), (16, 8))
    labels = jax.random.randint(jax.random.key(2), (16,), 0, 5)

    def loss(params, x):
        logits = nnx.merge(graphdef, params)(x, 0.5)
        assert {k: v.shape for k, v in logits.items()} == {"language": (16, 5), "domain": (16, 2)}
        return -jnp.take_along_axis(jax.nn.log_softmax(logits["language"]), labels[:, None], 1).mean()

    before = loss(params, x)
    by_params, by_x = jax.grad(loss, argnums=(0, 1))(params, x)
    assert loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, by_params), x) < before
    assert loss(params, x - 0.1 * by_x) > before
