"""Cross-entropy with ignored labels against a float64 loop and its analytic gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from mser_jax.losses.classification import cross_entropy


def test_value_gradient_and_accuracy():
    rng = np.random.default_rng()
    n, classes = 23, 5
    logits = rng.normal(size=(n, classes)) * 4
    labels = rng.integers(-1, classes, n)
    valid = rng.random(n) > 0.3
    labels[:2], valid[:2] = [3, -1], True
    total, count, hits, grad = 0.0, 0, 0, np.zeros_like(logits)
    for i in range(n):
        if valid[i] and labels[i] >= 0:
            p = np.exp(logits[i]) / np.exp(logits[i]).sum()
            total -= np.log(p[labels[i]])
            count += 1
            hits += p.argmax() == labels[i]
            grad[i] = p - np.eye(classes)[labels[i]]
    (value, aux), ours = jax.value_and_grad(
        lambda x: (lambda out: (out[0], out[1:]))(cross_entropy(x, jnp.asarray(labels), jnp.asarray(valid))),
        has_aux=True,
    )(jnp.float32(logits))
    np.testing.assert_allclose(value, total, rtol=1e-5)
    assert aux[0] == count
    np.testing.assert_allclose(aux[1]["accuracy"], hits / count, rtol=1e-6)
    np.testing.assert_allclose(ours, grad, atol=1e-6)


def test_single_class_has_nothing_to_learn():
    value, weight, _ = cross_entropy(jnp.ones((3, 1)), jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    assert value == 0 and weight == 3
