"""LoRA adapters ⇄ PEFT directories: adapter_config.json and adapter_model.safetensors.

A stacked adapter of ours is two tensors a layer, lora_A [rank, in] and lora_B [out, rank], under
"base_model.model.<name of the torch module>". The family's table (keymap.py) knows the modules.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from safetensors.numpy import load_file, save_file

from mser_jax.models import lora
from mser_jax.pretrained import files
from mser_jax.pretrained.keymap import LAYER, Entry, KeyMap, PretrainedError, Transform

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
# What adapter_config.json may say without changing what is computed from the tensors.
_HARMLESS = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "megatron_core", "qalora_group_size"),
)
# The only values that are implemented; a key that is absent has them.
_FIXED = {"peft_type": ("LORA",), "bias": ("none", None), "init_lora_weights": (True, False, "gaussian")}


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What a PEFT directory holds: params {"layers/attention/query/lora/a": f32 array, …}, relative to the tower."""

    params: dict[str, jax.Array]
    rank: int
    alpha: float

    @property
    def pattern(self) -> str:
        """For `lora.attach(tower, pattern, rank=…, alpha=…)`: makes just these adapters."""
        return f"^({'|'.join(map(re.escape, _layers(self.params)))})$"


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


def load(directory: str | Path, key_map: KeyMap, shapes: Mapping[str, Sequence[int]]) -> Adapters:
    """Reads a PEFT directory for a tower of parameters `shapes` {path relative to the tower: shape}, the base's.

    Adapters of parts that the table ignores (Whisper's decoder) are passed over, with a warning.

    Raises:
        PretrainedError: adapter_config.json says what is not implemented (each key is named), or tensors are
            missing, left over or mis-shaped (all are listed).
    """
    directory = Path(directory)
    config = files.read_json(directory / CONFIG)
    _refuse(directory / CONFIG, config)
    if not (directory / WEIGHTS).exists():
        there = sorted(path.name for path in directory.iterdir())
        raise PretrainedError(f"{directory}: no {WEIGHTS} (pickles are not read), but {there}")
    found, problems = _modules_in(directory / WEIGHTS, key_map)
    entries = {layer: entry for layer, entry in _linears(key_map).items() if entry.ours in shapes}
    names = {layer: [*entry.tensors(shapes[entry.ours])] for layer, entry in entries.items()}
    prefix = key_map.find_prefix((name for group in names.values() for name in group), found) or ""

    rank, params = config["r"], {}
    for layer, group in names.items():
        if not any(prefix + name in found for name in group):
            continue
        halves = [found.pop(prefix + name, {}) for name in group]
        fan_in, fan_out = shapes[entries[layer].ours][-2:]
        for half, shape, ours in (("A", (rank, fan_in), "a"), ("B", (fan_out, rank), "b")):
            got = [tensors.get(half) for tensors in halves]
            lines = [
                f"lora_{half} of {prefix}{_module(name)}: expected {shape}, "
                + ("there is none" if value is None else f"got {value.shape}")
                for name, value in zip(group, got, strict=True)
                if value is None or value.shape != shape
            ]
            problems += lines
            if not lines:
                stack = [value.T.astype(np.float32) for value in got]
                params[f"{layer}/lora/{ours}"] = jnp.asarray(np.stack(stack) if entries[layer].stacked else stack[0])
    ignored = sorted(_module(name) for name in found if key_map.is_ignored(name))
    known = [prefix + _module(name) for group in names.values() for name in group]
    problems += [_left_over(_module(name), known) for name in sorted(found) if not key_map.is_ignored(name)]
    if problems or not params:
        lines = "\n  ".join(problems or [f"no adapter of its layers; there are adapters of {ignored[:5]}"])
        raise PretrainedError(f"{directory} does not fit this {key_map.family}:\n  {lines}")
    if ignored:
        logging.warning("%s: %d adapters outside this %s are not used", directory, len(ignored), key_map.family)
    return Adapters(params, rank, float(config["lora_alpha"]))


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


def _refuse(path: Path, config: Mapping[str, Any]) -> None:
    """Raises PretrainedError naming all that is not implemented; whatever is new in PEFT is, unless it is empty."""
    wrong = [
        f"{key}={config[key]!r}, only {values[0]!r} is implemented"
        for key, values in _FIXED.items()
        if config.get(key, values[0]) not in values
    ]
    wrong += [
        f"{key}={value!r} is not implemented"
        for key, value in config.items()
        if value and key not in _HARMLESS and key not in _FIXED
    ]
    wrong += [f"{key} is missing" for key in ("r", "lora_alpha") if config.get(key) is None]
    if wrong:
        raise PretrainedError(f"{path}:\n  " + "\n  ".join(wrong))


def _modules_in(file: Path, key_map: KeyMap) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """{name of the weight that is adapted, in the table's spelling: {"A" | "B": tensor}}, and what is no adapter."""
    found: dict[str, dict[str, np.ndarray]] = {}
    others = []
    for name, value in load_file(file).items():
        if hit := _TENSOR.fullmatch(name):
            found.setdefault(key_map.rename(f"{hit['module']}.weight"), {})[hit["half"]] = value
        else:
            others.append(f"{name} is no LoRA of a linear layer")
    return found, sorted(others)


def _left_over(module: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(module, known, n=1)
    return f"left over: adapters of {module}" + (f" (nearest of ours: {near[0]})" if near else "")
