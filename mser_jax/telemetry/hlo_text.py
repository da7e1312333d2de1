"""The grammar of XLA's HLO text: shapes, instructions, groups of devices, windows of convolutions."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]*)\(")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array. `on_chip`: it lies in memory beside the cores (a layout with S(n), n > 0), not in HBM."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        """Without the padding of tiles."""
        width = _BYTES.get(self.dtype)
        if width is None:
            bits = re.search(r"\d+", self.dtype)
            return math.ceil(math.prod(self.dims) * (int(bits.group()) if bits else 8) / 8)
        return math.prod(self.dims) * width


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `shapes` are the arrays of its result; `text` is what follows the operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    def called(self, key: str) -> str | None:
        """The computation that attribute `key` ("calls", "body", "to_apply", …) names."""
        match = re.search(rf"\b{key}=%?([\w.-]+)", self.text)
        return match and match[1]

    @property
    def op_name(self) -> str:
        """Where it came from in the Python program."""
        match = re.search(r'op_name="([^"]*)"', self.text)
        return match[1] if match else ""


def _shapes(text: str) -> tuple[Shape, ...]:
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        on_chip = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d) for d in dims.split(",") if d)
        found.append(Shape(dtype, sizes, bool(on_chip and int(on_chip[1]))))
    return tuple(found)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    raise ValueError(f"HLO: no closing parenthesis in {text[start : start + 80]!r}…")


def _instruction(line: str) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if not head:
        return None
    rest = re.sub(r"/\*[^*]*\*/", "", line[head.end() :])
    end = _closing(rest, 0) + 1 if rest.startswith("(") else re.match(r"\S+", rest).end()
    opcode = _OPCODE.match(rest, end)
    if not opcode:
        return None
    close = _closing(rest, opcode.end() - 1)
    inside = rest[opcode.end() : close]
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    if opcode[1] in ("constant", "parameter"):
        operands = (inside,)
    return Instruction(head[2], opcode[1], _shapes(rest[:end]), operands, rest[close + 1 :], bool(head[1]))


def computations(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """(name of the entry computation, {computation: {name: instruction}}) of a module's text.

    Raises:
        ValueError: it holds no entry computation.
    """
    found: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = found.setdefault(head[1], {})
            if line.startswith("ENTRY"):
                entry = head[1]
        elif line.startswith("}"):
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("HLO: no ENTRY computation in this text")
    return entry, found


def convolution_flops(lhs: Sequence[int], rhs: Sequence[int], out: Sequence[int], text: str) -> float:
    """2 × multiply-adds of a convolution; those with zeros of padding and dilation do not count.

    TPU compilers write products as convolutions, batched ones with dilations that leave one term of a window.
    """
    left, right, result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text).groups()
    window = (
        dict(re.findall(r"(\w+)=([\dx_-]+)", re.search(r"window=\{([^}]*)\}", text)[1])) if "window=" in text else {}
    )
    spatial = [label for label in result if label.isdigit()]

    def of(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(spatial)

    pairs = 1.0
    for i, label in enumerate(spatial):
        low, _, _ = of("pad", "0_0")[i].partition("_")
        pairs *= _valid_pairs(
            lhs[left.index(label)], rhs[right.index(label)], out[result.index(label)], int(of("stride", "1")[i]),
            int(low), int(of("lhs_dilate", "1")[i]), int(of("rhs_dilate", "1")[i]),
        )  # fmt: skip
    batch, features = out[result.index("b")], out[result.index("f")]
    groups = re.search(r"batch_group_count=(\d+)", text)
    # The kernel's input features are already those of one group.
    return 2.0 * pairs * batch * features * rhs[right.index("i")] / (int(groups[1]) if groups else 1)


@functools.lru_cache(maxsize=4096)
def _valid_pairs(size: int, window: int, out: int, stride: int, low: int, lhs_dilate: int, rhs_dilate: int) -> int:
    """(output, window) positions that meet an element of the input."""
    places = np.arange(out)[:, None] * stride - low + np.arange(window)[None] * rhs_dilate
    valid = (places >= 0) & (places % lhs_dilate == 0) & (places // lhs_dilate < size)
    return int(valid.sum())


def group_of(text: str) -> tuple[int, ...]:
    """The devices of one group of a collective, by their place in the mesh; () where there is one group of all."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text)
    if pairs:
        return (int(pairs[1]), int(pairs[2]))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", text)
    if mesh:
        names = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        sizes = tuple(int(size) for _, size in names)
        ids = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(sizes))
        grouped = set(re.findall(r"'(\w+)'", mesh[3]))
        index = tuple(slice(None) if name in grouped else 0 for name, _ in names)
        return tuple(int(i) for i in np.ravel(ids.reshape(sizes)[index]))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed:
        return tuple(int(i) for i in listed[1].split(",") if i)
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text)
    return tuple(int(i) for i in _iota(iota[1])[0]) if iota else ()


def _iota(text: str) -> np.ndarray:
    """'[8,16]T(1,0)' or '[16,8]<=[8,16]T(1,0)' -> the ids."""
    shapes = [tuple(int(d) for d in dims.split(",")) for dims in re.findall(r"\[([\d,]+)\]", text)]
    ids = np.arange(math.prod(shapes[-1])).reshape(shapes[-1])
    order = re.search(r"T\(([\d,]+)\)", text)
    if order:
        ids = ids.transpose([int(d) for d in order[1].split(",")])
    return ids.reshape(shapes[0]) if len(shapes) > 1 else ids
