"""Tiny torch models as real files, and our modules with what is loaded from a directory."""

import jax
import numpy as np
import torch
from flax import nnx

from mser_jax import state
from mser_jax.models.text_encoder import TextEncoder
from mser_jax.parallel import sharding
from mser_jax.pretrained import load


def save_random(model: torch.nn.Module, directory, **options):
    """The torch model with every parameter (fixed ones apart) moved off 0 and 1, saved; in evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.eval()
    model.save_pretrained(directory, **options)
    return model


def define(directory, kind):
    """(family, config, state.ModelDefinition) of a directory, as its config.json has it."""
    hf = load.read_config(directory)
    family = load.family_of(hf, (kind,))
    cfg = family.config_from_hf(hf)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return TextEncoder(cfg, rngs=rngs) if kind == "text" else cfg.make(dtype=np.float32, rngs=rngs)

    return family, cfg, state.define(make)


def abstract_on(definition, mesh):
    """The abstract parameters with the shardings they have on `mesh`."""
    shardings = sharding.infer_shardings(definition.abstract, mesh)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
        for path, leaf in definition.abstract.items()
    }


def load_tower(directory, kind):
    """Our module with the weights of `directory`."""
    family, cfg, definition = define(directory, kind)
    return definition.merge(load.load(directory, family.key_map(cfg), definition.abstract))
