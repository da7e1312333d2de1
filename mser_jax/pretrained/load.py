"""Reading a Hugging Face directory: safetensors, tensor by tensor, straight into sharded arrays."""

from __future__ import annotations

from mser_jax.pretrained.keymap import PretrainedError

__all__ = ["PretrainedError"]
