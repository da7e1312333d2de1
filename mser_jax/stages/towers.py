"""The towers of a network: their sizes from the config or a pretrained directory, their weights from the latter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax.models import lora
from mser_jax.models.llm import LLMConfig
from mser_jax.models.text_encoder import TextEncoderConfig
from mser_jax.models.wav2vec2 import Wav2Vec2Config
from mser_jax.models.whisper import WhisperConfig
from mser_jax.pretrained import load as pretrained

# Section of the config = first element of the parameters' paths: {section: (kind of tower, {family: its config})}.
TOWERS = {
    "speech_encoder": ("speech", {cls.family: cls for cls in (WhisperConfig, Wav2Vec2Config)}),
    "text_encoder": ("text", {cls.family: cls for cls in (TextEncoderConfig,)}),
    "llm": ("llm", {cls.family: cls for cls in (LLMConfig,)}),
}
# How a tower is run; everything else about it is its architecture.
RUNTIME = ("dropout", "remat")

Towers = dict[str, Any]


def describe(towers: Towers) -> dict[str, dict[str, Any]]:
    """JSON of the architectures, for a checkpoint's metadata: {section: {"family": …, "num_layers": …, …}}."""
    return {
        name: {"family": cfg.family, **{k: v for k, v in dataclasses.asdict(cfg).items() if k not in RUNTIME}}
        for name, cfg in towers.items()
    }


def make(config: ConfigDict, saved: Mapping[str, Mapping[str, Any]] | None = None) -> Towers:
    """{section: the tower's config} of the towers that the config has.

    Sizes are those of the checkpoint that is scored (`saved`, as `describe` wrote them), else those of the directory
    `init`, else the section's own `sizes`.

    Raises:
        ConfigError: `init` cannot be read or is no model for this tower; unknown family or sizes.
    """
    return {name: _make(name, config[name], (saved or {}).get(name)) for name in TOWERS if name in config}


def _make(name: str, section: ConfigDict, saved: Mapping[str, Any] | None) -> Any:
    kind, classes = TOWERS[name]
    options = {key: section[key] for key in RUNTIME}
    with config_lib.blame(f"{name}.init"):
        if saved is None and section.init:
            hf = pretrained.read_config(pretrained.resolve(section.init))
            return pretrained.family_of(hf, (kind,)).config_from_hf(hf, **options)
    sizes = dict(saved or {"family": section.family, **section.sizes.to_dict()})
    family = sizes.pop("family")
    if family not in classes:
        raise config_lib.ConfigError(f"--config.{name}.family={family!r}: expected one of {', '.join(classes)}")
    known = [field.name for field in dataclasses.fields(classes[family]) if field.name not in RUNTIME]
    if unknown := sorted(set(sizes) - set(known)):
        raise config_lib.ConfigError(f"--config.{name}.sizes: {family} has no {unknown}; it has {', '.join(known)}")
    # JSON has lists where configs have tuples.
    return classes[family](**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}, **options)


def directory(config: ConfigDict, name: str) -> Path | None:
    """Where the weights of a tower come from; None: from its initialisation."""
    init = config[name].init
    with config_lib.blame(f"{name}.init"):
        return pretrained.resolve(init) if init else None


def tokenizer_weights(config: ConfigDict, name: str, scored: bool) -> Path | None:
    """Return the directory of the weights that a tokenizer reads for, None where there is none to hold it against.

    A checkpoint that is `scored` holds its weights; with a tokenizer of its own it needs no directory beside it.
    """
    return None if scored and config[name].tokenizer else directory(config, name)


def initialised_from(config: ConfigDict) -> dict[str, str]:
    """{section: directory or hub id} of the towers that start from pretrained weights."""
    return {name: config[name].init for name in TOWERS if name in config and config[name].init}


def tokenizer_name(config: ConfigDict, name: str = "text_encoder") -> str:
    """The `tokenizer` of section `name`; where that is empty the one in its `init`, else bytes."""
    section = config[name]
    if section.tokenizer or not section.init:
        return section.tokenizer or "byt5"
    return str(directory(config, name))


def load(config: ConfigDict, towers: Towers, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The pretrained leaves of `abstract` {path: shape, dtype, sharding}; LoRA adapters are not among them.

    Raises:
        ConfigError: a directory's tensors do not fit; all that do not are listed.
    """
    out: dict[str, jax.Array] = {}
    for name, cfg in towers.items():
        folder = directory(config, name)
        if folder is None:
            continue
        prefix = f"{name}/"
        wanted = {
            path.removeprefix(prefix): leaf
            for path, leaf in abstract.items()
            if path.startswith(prefix) and not lora.is_adapter(path)
        }
        with config_lib.blame(f"{name}.init"):
            family = pretrained.family_of(pretrained.read_config(folder), (TOWERS[name][0],))
            loaded = pretrained.load(folder, family.key_map(cfg), wanted)
        out |= {prefix + path: array for path, array in loaded.items()}
        logging.info("%s: %d tensors from %s", name, len(loaded), folder)
    return out
