"""The files of a Hugging Face directory: where each tensor lies, and its bytes. Only safetensors is read."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mser_jax.pretrained.keymap import PretrainedError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
# A PEFT adapter: what changes the weights of some base, here or elsewhere.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATS = ("F64", "F32", "F16", "BF16")
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
# What XLA asks of host memory that it is to use without a copy of its own.
_ALIGNMENT = 64
# Two tensors are compared in pieces of this size.
_CHUNK_BYTES = 2**26


class TensorInfo(NamedTuple):
    """Where a tensor lies: `offset` bytes into `file`, row-major; `dtype` as safetensors names it ("BF16")."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        PretrainedError: there is no such file, or it holds something else.
    """
    if path.exists() and not path.is_file():  # reading a pipe never ends
        raise PretrainedError(f"{path}: expected a file, got a folder, a pipe or a device")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise PretrainedError(f"{path.parent}: no {path.name} here, but {there or 'nothing'}") from None
    except ValueError as error:
        raise PretrainedError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise PretrainedError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def refuse_adapters(directory: Path) -> None:
    """Raise PretrainedError where a LoRA adapter lies in the directory, beside weights or alone.

    transformers applies one that lies beside weights, so to pass over it would be to read another model.
    """
    found = [name for name in ADAPTERS if (directory / name).exists()]
    if not found:
        return
    base = read_json(directory / ADAPTERS[0]).get("base_model_name_or_path") if ADAPTERS[0] in found else None
    raise PretrainedError(
        f"{directory} holds a LoRA adapter ({', '.join(found)}) of {base or 'some base'}, and adapters of others "
        "are not applied here. Merge it with peft, PeftModel.from_pretrained(BASE, DIRECTORY).merge_and_unload()"
        ".save_pretrained(OUT), and give OUT; or move these files away to take the weights without it"
    )


def weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or the shards that model.safetensors.index.json names.

    Raises:
        PretrainedError: neither is there (pickles are refused), or shards are missing; all of them are named.
    """
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    if not (directory / INDEX).exists():
        raise PretrainedError(_no_weights(directory))
    names = sorted(set(read_json(directory / INDEX).get("weight_map", {}).values()))
    missing = [name for name in names if not (directory / name).exists()]
    if missing or not names:
        raise PretrainedError(
            f"{directory / INDEX} names files that are not there: {missing}. Fetch them again."
            if names
            else f"{directory / INDEX} has no weight_map: expected {{tensor name: file}}"
        )
    return [directory / name for name in names]


def _no_weights(directory: Path) -> str:
    others = sorted(path.name for pattern in _OTHER_FORMATS for path in directory.glob(pattern))
    if others:
        return (
            f"{directory}: no {WEIGHTS} here, only {others}. Pickles are refused: reading one runs the code in it. "
            "Where you trust its source, convert it with transformers: "
            f'python -c \'from transformers import AutoModel; AutoModel.from_pretrained("{directory}").'
            'save_pretrained("OUT")\''
        )
    there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    return f"{directory}: expected {WEIGHTS} or {INDEX} with its shards, found {there or 'nothing'}"


def index(directory: Path) -> dict[str, TensorInfo]:
    """{tensor name: where it lies} over all weight files. Reads headers only.

    Raises:
        PretrainedError: no weight files, a file that is damaged, a tensor that two files have, files that are
            not as their index says.
    """
    found: dict[str, TensorInfo] = {}
    for file in weight_files(directory):
        for name, info in _header(file).items():
            if name in found:
                raise PretrainedError(f"{directory}: {name} is in both {found[name].file.name} and {file.name}")
            found[name] = info
    if (directory / WEIGHTS).exists():
        return found
    told = read_json(directory / INDEX)["weight_map"]
    if wrong := [name for name in {**told, **found} if name not in found or told.get(name) != found[name].file.name]:
        name = sorted(wrong)[0]
        there = f"it is in {found[name].file.name}" if name in found else "no file has it"
        raise PretrainedError(
            f"{directory / INDEX} and its files are not of one model: it puts {name} into {told.get(name, 'no file')}, "
            f"and {there} ({len(wrong)} tensors differ). Fetch all of them again"
        )
    return found


def _header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file: 8 bytes of header size, JSON, data (huggingface.co/docs/safetensors)."""
    try:
        with safe_open(file, "np"):  # checks sizes and offsets against each other and the length of the file
            pass
    except (SafetensorError, OSError) as error:
        with open(file, "rb") as stream:
            pointer = stream.read(20).startswith(b"version https://git")
        hint = "It is a git-lfs pointer: run `git lfs pull`." if pointer else "Truncated or damaged: fetch it again."
        raise PretrainedError(
            f"{file} ({file.stat().st_size} bytes) is no whole safetensors file: {error}. {hint}"
        ) from None
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    return {
        name: TensorInfo(file, 8 + size + value["data_offsets"][0], value["dtype"], tuple(value["shape"]))
        for name, value in header.items()
    }


def itemsize(info: TensorInfo) -> int:
    """Bytes of one element.

    Raises:
        PretrainedError: a dtype we do not know.
    """
    if info.dtype not in _DTYPES:
        raise PretrainedError(f"{info.file}: a tensor of dtype {info.dtype}; known are {sorted(_DTYPES)}")
    return _DTYPES[info.dtype].itemsize


def num_bytes(info: TensorInfo) -> int:
    """Bytes of the tensor."""
    return math.prod(info.shape) * itemsize(info)


def read(info: TensorInfo, start: int = 0, stop: int | None = None) -> np.ndarray:
    """The tensor, or its rows start … stop - 1, in memory of its own.

    The file is read, not mapped: pages of a mapped file count as held memory for as long as the map lives.

    Raises:
        PretrainedError: the file ends early (it changed since its header was read), or a dtype we do not know.
    """
    element, shape, row = itemsize(info), info.shape, 0
    if shape:
        row = math.prod(shape[1:]) * element
        shape = ((shape[0] if stop is None else stop) - start, *shape[1:])
    size = math.prod(shape) * element
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    memory = memory[-memory.ctypes.data % _ALIGNMENT :][:size]
    with open(info.file, "rb", buffering=0) as stream:
        stream.seek(info.offset + start * row)
        # One call reads 2 GiB at most.
        done = 0
        while done < size:
            count = stream.readinto(memory[done:])
            if not count:
                raise PretrainedError(f"{info.file} ends at byte {stream.tell()}, inside a tensor: fetch it again")
            done += count
    return memory.view(_DTYPES[info.dtype]).reshape(shape)


def equal(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether both tensors are the same, bit for bit; read piece by piece.

    Raises:
        PretrainedError: as `read`.
    """
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    rows = one.shape[0] if one.shape else 1
    step = max(1, _CHUNK_BYTES * rows // max(1, num_bytes(one))) if one.shape else 1
    return all(
        read(one, start, min(start + step, rows)).tobytes() == read(other, start, min(start + step, rows)).tobytes()
        for start in range(0, rows, step)
    )


def fingerprint(directory: str | os.PathLike) -> str:
    """SHA-256 (hex) over config.json and all weight files: changes when any weight does.

    Costs one reading of the files, some 2 s a GB.

    Raises:
        PretrainedError: as `weight_files`.
    """
    directory = Path(directory)
    whole = hashlib.sha256(json.dumps(read_json(directory / CONFIG), sort_keys=True).encode())
    for file in weight_files(directory):
        with open(file, "rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()
