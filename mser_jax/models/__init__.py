"""Flax NNX modules: no I/O, no mesh construction."""
