"""LoRA adapters → PEFT directories: adapter_config.json and adapter_model.safetensors.

A stacked adapter of ours is two tensors a layer, lora_A [rank, in] and lora_B [out, rank], under
"base_model.model.<name of the torch module>". The family's table (keymap.py) knows the modules. Adapters of others are
merged by peft before their model is read here (files.refuse_adapters).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from absl import logging
from safetensors.numpy import save_file

from mser_jax.models import lora
from mser_jax.pretrained.keymap import LAYER, Entry, KeyMap, PretrainedError, Transform

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def save(
    directory: str | Path,
    params: Mapping[str, jax.Array],
    key_map: KeyMap,
    *,
    alpha: float,
    base_model: str,
    prefix: str | None = None,
    task_type: str | None = None,
) -> None:
    """Writes the adapters of a tower such that `peft.PeftModel.from_pretrained(base, directory)` applies them.

    The directory must not exist, or be empty. transformers' WavLM is an exception, of which a warning tells: what
    adapts its attention works there only after `merge_and_unload()`.

    Args:
        directory: where to.
        params: {path relative to the tower: array}; those that are no adapters are passed over.
        key_map: the family's table.
        alpha: as given to `lora.attach`.
        base_model: a hub id or directory, for base_model_name_or_path.
        prefix: what stands before the table's names in the class that the base is loaded with ("encoder." for
            Whisper's encoder in WhisperModel, "model.encoder." in WhisperForConditionalGeneration). Default: the
            first of the table, the tower by itself.
        task_type: PEFT's ("CAUSAL_LM", "FEATURE_EXTRACTION"), or None.

    Raises:
        PretrainedError: no adapters, ranks that differ, a layer that is no Linear in torch, or a directory not empty.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PretrainedError(f"{directory} is there already and not empty: name another")
    prefix = key_map.prefixes[0] if prefix is None else prefix
    adapters = lora.split(params)[1]
    rank, entries = _check(adapters, key_map)
    tensors = {}
    for path, value in adapters.items():
        layer, _, half = path.rpartition("/lora/")
        entry, value = entries[layer], np.asarray(value)
        for index, matrix in enumerate(value if entry.stacked else value[None]):
            name = f"base_model.model.{prefix}{_module(entry.name(index))}.lora_{half.upper()}.weight"
            tensors[name] = np.ascontiguousarray(matrix.T)
    modules = ((prefix + _module(entries[layer].theirs)).split(LAYER) for layer in _layers(adapters))
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        # A string is a regex on the whole name of a module.
        "target_modules": "|".join(r"\d+".join(map(re.escape, parts)) for parts in modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check(adapters: Mapping[str, jax.Array], key_map: KeyMap) -> tuple[int, dict[str, Entry]]:
    """The rank of all adapters, and the table's linear layers; raises PretrainedError as `save`."""
    layers, entries = _layers(adapters), _linears(key_map)
    ranks = {adapters[f"{layer}/lora/a"].shape[-1] for layer in layers}
    if len(ranks) != 1:
        raise PretrainedError(f"expected adapters of one rank, got ranks {sorted(ranks)} for layers {layers}")
    if unknown := [layer for layer in layers if layer not in entries]:
        raise PretrainedError(
            f"no linear layers of a {key_map.family} in torch: {unknown}. Those are {sorted(entries)}"
        )
    # WavLM, known by its gate: transformers hands these weights to a torch function, past the modules PEFT wraps.
    gated = any(layer.endswith("attention/gate/projection") for layer in entries)
    if gated and (silent := [layer for layer in layers if re.search("attention/(query|key|value|out)$", layer)]):
        logging.warning(
            "transformers' WavLM uses the weights of %s past their modules: PEFT's adapters act there only after "
            "merge_and_unload().",
            silent,
        )
    return ranks.pop(), entries


def _layers(params: Iterable[str]) -> list[str]:
    """The paths of the layers that have adapters."""
    return sorted({path.rsplit("/lora/", 1)[0] for path in params})


def _module(name: str) -> str:
    """The torch module of a weight."""
    return name.removesuffix(".weight")


def _linears(key_map: KeyMap) -> dict[str, Entry]:
    """{path of the layer: its kernel's entry} of the linear layers in the table."""
    return {
        entry.ours.removesuffix("/kernel"): entry
        for entry in key_map.entries
        if entry.ours.endswith("/kernel") and entry.theirs.endswith(".weight") and entry.transform == Transform((1, 0))
    }
