"""mser_jax: zero-shot speech emotion recognition across languages, in JAX."""

__version__ = "0.1.0"
