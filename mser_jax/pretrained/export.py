"""Our parameters → a directory that transformers' from_pretrained loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from mser_jax.pretrained import files
from mser_jax.pretrained.keymap import Entry, KeyMap, PretrainedError
from mser_jax.pretrained.load import match

# What a base has beside its weights: tokenizer, front end, generation, chat template. Never pickles.
_BESIDE = (".json", ".txt", ".model", ".jinja")


class _Tensor(NamedTuple):
    """A tensor to be written: its bytes, and how to come by it (given the parameter it is part of, if any)."""

    num_bytes: int
    entry: Entry | None
    make: Callable[[np.ndarray | None], np.ndarray]


def save(
    directory: str | Path,
    params: Mapping[str, jax.Array | np.ndarray],
    key_map: KeyMap,
    hf_config: Mapping[str, Any],
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes safetensors and config.json; all or nothing: the directory appears when it is complete.

    With several processes all must call it; the first writes. The host holds one file's tensors at a time.

    Args:
        directory: where to; it must not exist, or be empty.
        params: {path relative to the tower: array}, all of them; dtypes are kept.
        key_map: the family's table.
        hf_config: config.json for a tower by itself (the family's `config_to_hf`); not used with a base.
        base: a directory of the same sizes, as a rule the one the weights came from. Its other tensors (decoder,
            pooler, heads), its config.json and its tokenizer and preprocessor files are copied, so that whatever class
            loads the base loads the result.
        overwrite: replace a directory that holds something.
        max_shard_size: from here on the weights are several files with an index.

    Raises:
        PretrainedError: the directory is not empty, or params do not fit the table or the base (all is listed).
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())) and not overwrite:
        raise PretrainedError(f"{directory} is there already and not empty: name another, or ask to overwrite it")
    tensors, config = _plan(params, key_map, hf_config, None if base is None else Path(base))
    dtypes = {np.dtype(value.dtype).name for value in params.values()}
    config["dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    config.pop("torch_dtype", None)
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.num_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as tmp:
        new = Path(tmp) / "new"
        new.mkdir()
        for file, names in split.filename_to_tensors.items():
            content = _gather({name: tensors[name] for name in names}, params)
            if jax.process_index() == 0:
                # Without this entry transformers does not know whose tensors these are.
                save_file(content, new / file, metadata={"format": "pt"})
        if jax.process_index() == 0:
            if split.is_sharded:
                _write_json(new / files.INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
            _write_json(new / files.CONFIG, config)
            if base is not None:
                _copy_beside(Path(base), new)
            if directory.exists():
                directory.replace(Path(tmp) / "old")
            new.replace(directory)


def _plan(
    params: Mapping[str, jax.Array | np.ndarray], key_map: KeyMap, hf_config: Mapping[str, Any], base: Path | None
) -> tuple[dict[str, _Tensor], dict[str, Any]]:
    """{name in the files: what to write}, parameter by parameter, and config.json."""
    table = [entry.ours for entry in key_map.entries]
    if set(table) != set(params):
        lacking, unknown = sorted(set(table) - set(params)), sorted(set(params) - set(table))
        raise PretrainedError(
            f"params do not fit the table of this {key_map.family}: missing {lacking}, left over {unknown}"
        )
    if base is None:
        prefix, others, config = key_map.prefixes[0], {}, dict(hf_config)
    else:
        prefix, _, others = match(base, key_map, {path: value.shape for path, value in params.items()})
        config = files.read_json(base / files.CONFIG)
    tensors = {}
    for entry in key_map.entries:
        value = params[entry.ours]
        for layer in range(value.shape[0]) if entry.stacked else (0,):
            num_bytes = value.nbytes // (value.shape[0] if entry.stacked else 1)
            tensors[prefix + entry.name(layer)] = _Tensor(num_bytes, entry, _slicer(entry, layer))
    for name, constant in key_map.constants.items():
        if prefix + name not in others:
            tensors[prefix + name] = _Tensor(constant.nbytes, None, lambda _, constant=constant: constant)
    for name, info in others.items():
        tensors[name] = _Tensor(files.num_bytes(info), None, lambda _, info=info: files.read(info))
    return tensors, config


def _slicer(entry: Entry, layer: int) -> Callable[[np.ndarray], np.ndarray]:
    """theirs = transpose(ours - offset), of one layer."""

    def make(ours: np.ndarray) -> np.ndarray:
        ours = ours[layer] if entry.stacked else ours
        transform = entry.transform
        if transform.offset:
            ours = (ours.astype(np.float32) - np.float32(transform.offset)).astype(ours.dtype)
        return np.ascontiguousarray(ours if transform.axes is None else ours.transpose(transform.inverse_axes))

    return make


def _gather(tensors: Mapping[str, _Tensor], params: Mapping[str, jax.Array | np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one file on the host; every parameter is fetched once."""
    out: dict[str, np.ndarray] = {}
    held: tuple[str | None, np.ndarray | None] = (None, None)
    for name, tensor in tensors.items():
        path = None if tensor.entry is None else tensor.entry.ours
        if path is not None and path != held[0]:
            held = (path, _to_host(params[path]))
        out[name] = tensor.make(held[1])
    return out


def _to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array; on every process, where several hold it."""
    if isinstance(x, np.ndarray):
        return x
    if not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    # Not np.asarray(x): that keeps its copy as long as x lives.
    out = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            out[shard.index] = shard.data
    return out


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_beside(base: Path, new: Path) -> None:
    """Tokenizer and the like; also the pooling modules that sentence-transformers keeps in "1_Pooling", …"""
    for path in sorted([*base.iterdir(), *base.glob("[0-9]_*/*")]):
        target = new / path.relative_to(base)
        # An index of the base's weights would be a lie; config.json was written anew.
        wanted = path.is_file() and path.suffix in _BESIDE and not path.name.endswith(".index.json")
        if wanted and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
