"""Modules built and called under jit: op by op takes most of the time of these tests."""

import functools

import jax
import pytest
from flax import nnx


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(graphdef, method, params, args, kwargs):
    return getattr(nnx.merge(graphdef, params), method)(*args, **kwargs)


@pytest.fixture(scope="session")
def build():
    """build(make) -> the module that make(rngs) describes, seed 0."""

    def build(make):
        graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]
        return nnx.merge(graphdef, jax.jit(lambda: nnx.split(make(nnx.Rngs(0)))[1])())

    return build


@pytest.fixture(scope="session")
def call():
    """call(module, method, *args, **kwargs) under jit."""

    def call(module, method, *args, **kwargs):
        graphdef, params = nnx.split(module)
        return _call(graphdef, method, params, args, kwargs)

    return call
