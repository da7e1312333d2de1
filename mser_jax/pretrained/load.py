"""Reading a Hugging Face directory: safetensors, tensor by tensor, straight into sharded arrays."""

from __future__ import annotations

import difflib
import functools
import importlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from huggingface_hub.errors import StrictDataclassError
from jax import lax
from jax.sharding import SingleDeviceSharding

from mser_jax.pretrained import files
from mser_jax.pretrained.files import TensorInfo, fingerprint
from mser_jax.pretrained.hub import resolve
from mser_jax.pretrained.keymap import Entry, KeyMap, PretrainedError, Transform

__all__ = ["PretrainedError", "family_of", "fingerprint", "load", "match", "read_config", "resolve"]

FAMILIES = {"speech": ("whisper", "wav2vec2"), "text": ("bert",), "llm": ("llm",)}

# A tensor larger than this is read in as many turns: on the host, XLM-R's 1 GB table never is a second time.
_READ_BYTES = 2**26
# Nearest names cost the product of missing and left-over names.
_MAX_NEAREST = 50

# [start, stop) on each axis of ours: the part of a parameter that a device holds.
Box = tuple[tuple[int, int], ...]


def read_config(directory: str | Path) -> dict[str, Any]:
    """config.json, completed with the defaults of transformers' class for its model_type.

    `do_normalize`, which says what wav2vec2's front end does, is taken over from the front end's own file.

    Raises:
        PretrainedError: there is none, it is no JSON, it names no model_type, or transformers refuses its values.
    """
    path = Path(directory) / files.CONFIG
    files.refuse_adapters(Path(directory))
    hf = files.read_json(path)
    if quantised := hf.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise PretrainedError(
            f"{path}: these weights are quantised (quantization_config: {method}), which is not implemented: give the "
            "model that they were made from"
        )
    if not isinstance(hf.get("model_type"), str):
        raise PretrainedError(f"{path} has no model_type, so the architecture is not known")
    # Here, not above: transformers takes seconds to import.
    from transformers import CONFIG_MAPPING, AutoConfig

    if hf["model_type"] not in CONFIG_MAPPING:
        return hf
    try:
        return AutoConfig.for_model(**hf).to_dict() | _front_end(path.parent)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise PretrainedError(f"{path}: transformers refuses it: {error}") from None


def _front_end(directory: Path) -> dict[str, Any]:
    """{"do_normalize": …} of the feature extractor, if it is there and says so; as transformers 4 and 5 write it."""
    for name, inside in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        if (directory / name).exists():
            content = files.read_json(directory / name)
            content = content if inside is None else content.get(inside, {})
            if "do_normalize" in content:
                return {"do_normalize": content["do_normalize"]}
    return {}


def family_of(hf: Mapping[str, Any], among: Sequence[str] = tuple(FAMILIES)) -> ModuleType:
    """The module of the family (`whisper`, `bert`, …) for config.json's model_type.

    Args:
        hf: config.json.
        among: kinds of tower to choose from: "speech", "text", "llm".

    Raises:
        PretrainedError: none of them has this model_type.
    """
    known: dict[str, ModuleType] = {}
    for family in (family for kind in among for family in FAMILIES[kind]):
        module = importlib.import_module(f"mser_jax.pretrained.{family}")
        known.update(dict.fromkeys(module.MODEL_TYPES, module))
    model_type = hf.get("model_type")
    if model_type not in known:
        near = difflib.get_close_matches(str(model_type), known, n=1)
        raise PretrainedError(
            f"model_type {model_type!r} is no {' or '.join(among)} model that is implemented here; those are "
            f"{sorted(known)}" + (f". Did you mean {near[0]!r}?" if near else "")
        )
    return known[model_type]


def load(directory: str | Path, key_map: KeyMap, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The parameters of `directory` as `abstract` describes them.

    A host holds its own shards and one tensor (or 64 MiB of a larger one): each tensor is read once, the parts
    that local devices hold go to them, are transposed and cast there, and are written into their shard. Every
    process reads what its own devices hold, and need not wait for others. Replicas are copied between devices.

    Args:
        directory: as `resolve` returns it.
        key_map: the family's table for the model's config.
        abstract: {path: shape, dtype and, optionally, sharding (default: this process's first device)}, the paths
            being relative to the tower, as in the table.

    Returns:
        Exactly the paths, shapes, dtypes and shardings of `abstract`, in its order.

    Raises:
        PretrainedError: something is missing, left over or mis-shaped: all of it is listed. Or a value is NaN, infinite
            or beyond its leaf's dtype.
    """
    found = match(directory, key_map, {path: leaf.shape for path, leaf in abstract.items()})[1]
    # Work on single devices, which a mesh in context would forbid.
    with jax.set_mesh(None):
        params = {entry.ours: _assemble(entry, found, abstract[entry.ours]) for entry in key_map.entries}
    return {path: params[path] for path in abstract}


def match(
    directory: str | Path, key_map: KeyMap, shapes: Mapping[str, Sequence[int]]
) -> tuple[str, dict[str, TensorInfo], dict[str, TensorInfo]]:
    """Holds the files of `directory` against the table and our {path: shape}. Reads headers, constants and repeats.

    Returns:
        The prefix of the names in the files; {name without prefix: where it lies} of what we need; {name in the
        files: where it lies} of everything else but repeats: the table says to ignore or to compute it.

    Raises:
        PretrainedError: as `load`.
    """
    directory = Path(directory)
    files.refuse_adapters(directory)
    present = files.index(directory)
    spelt = {key_map.rename(name): name for name in present}
    wanted = key_map.tensors(shapes)
    prefix = key_map.find_prefix(wanted, spelt)
    if prefix is None:
        raise PretrainedError(f"{directory}: {_no_name_known(key_map, list(wanted), list(spelt))}")
    found = {name: present[spelt[prefix + name]] for name in wanted if prefix + name in spelt}
    used = {prefix + name for name in found}
    others = {name: present[spelt[name]] for name in spelt if name not in used}

    missing = [prefix + name for name in wanted if name not in found]
    constants = {prefix + name: value for name, value in key_map.constants.items()}
    repeats = {name: again for name in others for regex, again in key_map.repeats if re.search(regex, name)}
    computed = {*constants, *repeats}
    left_over = [name for name in others if name not in computed and not key_map.is_ignored(name)]
    table = [entry.ours for entry in key_map.entries]
    problems = [
        *_listed("missing from the files", missing, left_over),
        *_listed("left over in the files", left_over, missing),
        *_listed("parameters of ours that the table lacks", [path for path in shapes if path not in table], table),
        *_listed("parameters of the table that ours lacks", [path for path in table if path not in shapes], shapes),
        *_listed("of another shape", _wrong_shapes(prefix, found, wanted)),
        *_listed("no floating-point numbers (quantised?)", _wrong_dtypes(prefix, found)),
        *_listed("not what is computed here", _wrong_constants(constants, others)),
        *_listed("not what it should repeat", _wrong_repeats(prefix, repeats, others, found)),
    ]
    if problems:
        raise PretrainedError(f"{directory} does not fit this {key_map.family}:\n" + "\n".join(problems))
    return prefix, found, {spelt[name]: info for name, info in others.items() if name not in repeats}


def _listed(title: str, names: Sequence[str], candidates: Iterable[str] = ()) -> list[str]:
    """A title and a line for each name, with the nearest candidate; nothing for no names."""
    lines = [f"{title} ({len(names)}):"] if names else []
    candidates = list(candidates)
    for position, name in enumerate(names):
        near = difflib.get_close_matches(name, candidates, n=1) if position < _MAX_NEAREST else []
        lines.append(f"  {name}" + (f"   (nearest: {near[0]})" if near else ""))
    return lines


def _wrong_shapes(prefix: str, found: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [
        f"{prefix}{name}: expected {list(wanted[name])}, the file has {list(info.shape)}"
        for name, info in found.items()
        if info.shape != wanted[name]
    ]


def _wrong_dtypes(prefix: str, found: Mapping[str, TensorInfo]) -> list[str]:
    return [f"{prefix}{name}: {info.dtype}" for name, info in found.items() if info.dtype not in files.FLOATS]


def _wrong_constants(constants: Mapping[str, np.ndarray], others: Mapping[str, TensorInfo]) -> list[str]:
    wrong = []
    for name in constants.keys() & others.keys():
        theirs = files.read(others[name])
        # The spacing of the numbers it is stored in, and what other orders of f32 roundings make of it.
        step = 0.0 if theirs.dtype == np.float64 else float(ml_dtypes.finfo(theirs.dtype).eps)
        ours = constants[name]
        if (
            theirs.shape != ours.shape
            or not np.abs(theirs.astype(np.float64) - ours).max() <= step * np.abs(ours).max() + 1e-4
        ):
            wrong.append(name)
    return wrong


def _wrong_repeats(
    prefix: str, repeats: Mapping[str, str], others: Mapping[str, TensorInfo], found: Mapping[str, TensorInfo]
) -> list[str]:
    return [
        f"{name}: config.json says it is {prefix}{again}, but they differ"
        for name, again in repeats.items()
        if again in found and not files.equal(others[name], found[again])
    ]


def _no_name_known(key_map: KeyMap, wanted: Sequence[str], present: Sequence[str]) -> str:
    """The message for files whose names all begin with something we do not know, or are of another architecture."""
    elsewhere = next((name for name in present if name.endswith("." + wanted[0])), None)
    message = f"none of the {len(wanted)} tensors of this {key_map.family} is under any of {list(key_map.prefixes)}. "
    if elsewhere is not None:
        return message + f"They seem to stand under {elsewhere.removesuffix(wanted[0])!r}: save the tower by itself."
    return message + f"Expected names such as {wanted[:3]}, the files have {sorted(present)[:3]}: another architecture?"


def _assemble(entry: Entry, found: Mapping[str, TensorInfo], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """One parameter, from all its layers' tensors."""
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    devices: dict[Box, list[jax.Device]] = {}
    for device, cut in sharding.addressable_devices_indices_map(leaf.shape).items():
        box = tuple(axis.indices(size)[:2] for axis, size in zip(cut, leaf.shape, strict=True))
        devices.setdefault(box, []).append(device)
    shards = {}
    for box, holders in devices.items():
        # zeros(device=…) would be made on the first device and copied.
        with jax.default_device(holders[0]):
            shards[box] = jnp.zeros([stop - start for start, stop in box], leaf.dtype)
    for layer in range(leaf.shape[0]) if entry.stacked else (0,):
        boxes = [box for box in shards if not entry.stacked or box[0][0] <= layer < box[0][1]]
        for box, start, piece in _pieces(entry, layer, boxes, found[entry.name(layer)]) if boxes else ():
            piece = jax.device_put(piece, devices[box][0])
            # Dispatch would run ahead, and hold a second copy of all that was read.
            written = _write(shards[box], piece, np.array(start, np.int32), entry.transform)
            shards[box], *bad = jax.block_until_ready(written)
            if any(bad):
                raise PretrainedError(_not_numbers(found[entry.name(layer)], entry.name(layer), leaf, *map(int, bad)))
    copies = [jax.device_put(shard, device) for box, shard in shards.items() for device in devices[box]]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)


def _pieces(
    entry: Entry, layer: int, boxes: Sequence[Box], info: TensorInfo
) -> Iterator[tuple[Box, tuple[int, ...], np.ndarray]]:
    """(box, where in its shard, piece of the torch tensor) for one layer, read a few rows at a time."""
    cuts = {box: entry.transform.to_theirs(box[1:] if entry.stacked else box) for box in boxes}
    first, last = min(cut[0][0] for cut in cuts.values()), max(cut[0][1] for cut in cuts.values())
    row_bytes = math.prod(info.shape[1:]) * files.itemsize(info)
    step = max(1, _READ_BYTES // max(1, row_bytes))
    for begin in range(first, last, step):
        rows = files.read(info, begin, min(begin + step, last))
        for box, ((start, stop), *rest) in cuts.items():
            low, high = max(start, begin), min(stop, begin + len(rows))
            if low < high:
                piece = rows[(slice(low - begin, high - begin), *(slice(*axis) for axis in rest))]
                where = entry.transform.to_ours((low - start, *(0 for _ in rest)))
                yield box, (layer - box[0][0], *where) if entry.stacked else where, piece


def _not_numbers(info: TensorInfo, name: str, leaf: jax.ShapeDtypeStruct, bad: int, lost: int) -> str:
    """The message for values that are no finite numbers, in the file or once they are cast."""
    if bad:
        return (
            f"{info.file}: {bad} values of {name} are NaN or infinite: the file is damaged, or its training diverged. "
            "Fetch it again, or take other weights"
        )
    return (
        f"{info.file}: {lost} values of {name} ({info.dtype}) are beyond {leaf.dtype}: keep these parameters in "
        "float32 or bfloat16"
    )


@functools.partial(jax.jit, donate_argnums=0, static_argnames="transform")
def _write(
    shard: jax.Array, piece: jax.Array, start: jax.Array, transform: Transform
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The shard with a transformed piece of a torch tensor at `start`, in place.

    Also the number of values of the piece that are not finite, and of those that the cast made so.
    """
    bad = jnp.count_nonzero(~jnp.isfinite(piece))
    piece = jnp.transpose(piece, transform.axes) if transform.axes else piece
    if transform.offset:
        piece = piece.astype(jnp.float32) + transform.offset
    piece = piece.reshape((1,) * (shard.ndim - piece.ndim) + piece.shape)
    piece = piece.astype(shard.dtype)
    lost = jnp.count_nonzero(~jnp.isfinite(piece)) - bad
    return lax.dynamic_update_slice(shard, piece, list(start)), bad, lost
