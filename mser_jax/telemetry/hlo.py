"""What a compiled program does, read from its HLO text: collectives, multiply-adds and memory traffic.

XLA's own `cost_analysis` is of one device and counts the body of a loop once; here a body counts as often as it runs.
Everything is of one device: shapes in a compiled SPMD program are those of a shard.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

from mser_jax.telemetry import hlo_text
from mser_jax.telemetry.hlo_text import Instruction

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """`count` runs of one collective of `kind` over groups of devices like `group`, each moving `bytes`.

    `bytes` are those of its larger side (all-gather: its result; reduce-scatter: its operand). `asynchronous`: it is
    started and awaited apart, or runs inside a fusion with other work. `between_slices`: the hosts' network does it,
    among the chips that have the same place in their slices; `group` is then ().
    """

    kind: str
    bytes: int
    count: int
    group: tuple[int, ...]
    asynchronous: bool
    op_name: str
    between_slices: bool = False

    @property
    def wire_bytes(self) -> float:
        """What a device sends in all of them, by the ring algorithm."""
        n = max(len(self.group), 1)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return share * self.bytes * self.count


@dataclasses.dataclass(frozen=True)
class Work:
    """`count` runs of one instruction: its floating-point operations in products, and bytes read and written in HBM."""

    name: str
    opcode: str
    flops: float
    bytes: int
    count: int
    op_name: str


class Module:
    """A compiled module's computations; `text` is what `jax.stages.Compiled.as_text()` returns.

    Raises:
        ValueError: it holds no entry computation.
    """

    def __init__(self, text: str) -> None:
        self.entry, self.computations = hlo_text.computations(text)

    def trip_count(self, loop: Instruction) -> int:
        """How often a `while` runs: as the compiler noted, else from `i < constant` in its condition; 1 if unknown."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
        if noted:
            return int(noted[1])
        condition = self.computations.get(loop.called("condition") or "", {})
        bounds = [int(i.operands[0]) for i in condition.values()
                  if i.opcode == "constant" and i.operands and i.operands[0].isdigit()]  # fmt: skip
        return max(bounds, default=1)

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often it runs), loops unrolled in number; fusions are one instruction."""

        def walk(name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
            for instruction in self.computations.get(name, {}).values():
                yield name, instruction, times
                if instruction.opcode == "while":
                    yield from walk(instruction.called("body") or "", times * self.trip_count(instruction))
                elif instruction.opcode in ("call", "async-start"):
                    yield from walk(instruction.called("to_apply") or instruction.called("calls") or "", times)
                elif instruction.opcode == "conditional":
                    for branch in re.findall(r"%([\w.-]+)", re.sub(r"metadata=.*", "", instruction.text)):
                        yield from walk(branch, times)

        return walk(self.entry, 1)

    def fused(self, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """(computation, instruction) of all that a fusion holds, fusions inside it too."""
        name = instruction.called("calls") or ""
        for inner in self.computations.get(name, {}).values():
            yield name, inner
            if inner.opcode == "fusion":
                yield from self.fused(inner)

    def collectives(self) -> list[Collective]:
        """Every collective that runs.

        TPU compilers cut an asynchronous one into a start, steps within fusions that do other work, and an end. All
        name the same channel, and are one here.
        """
        found: dict[tuple[str, str, str], Collective] = {}
        for name, instruction, times in self.executed():
            if instruction.opcode == "send" and (one := _megascale(instruction, times)):
                found[name, "", instruction.name] = one
            inside = list(self.fused(instruction)) if instruction.opcode == "fusion" else [(name, instruction)]
            for where, one in inside:
                if one.opcode.removesuffix("-start") in COLLECTIVES:
                    channel = re.search(r"channel_id=(\d+)", one.text)
                    fused = instruction is not one and not where.startswith("all-reduce-scatter")
                    key = (name, channel[1] if channel and fused else "", "" if channel and fused else one.name)
                    found.setdefault(key, self._collective(where, one, instruction, times))
        return list(found.values())

    def _collective(self, where: str, one: Instruction, outer: Instruction, times: int) -> Collective:
        kind = one.opcode.removesuffix("-start")
        if where.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # TPU's fusion of an all-reduce with the slice that is kept
        own = self.computations[where]
        shapes = [s for name in one.operands if name in own for s in own[name].shapes]
        result = one.shapes
        if one.opcode.endswith("-start"):  # (operands, results, and context)
            result = one.shapes[len(shapes) : 2 * len(shapes)]
        size = max(sum(s.bytes for s in shapes), sum(s.bytes for s in result))
        part_of_fusion = outer is not one and not where.startswith("all-reduce-scatter")
        overlapped = one.opcode.endswith("-start") or part_of_fusion
        return Collective(kind, size, times, hlo_text.group_of(one.text), overlapped, one.op_name or outer.op_name)

    def work(self) -> list[Work]:
        """FLOPs of products and HBM traffic of every instruction that runs; collectives are not among them."""
        found = []
        for name, instruction, times in self.executed():
            if (instruction.opcode in _FREE and not _is_gemm(instruction)) or instruction.opcode.split("-start")[
                0
            ] in COLLECTIVES:
                continue
            if instruction.opcode == "fusion":
                flops = sum(self._flops(where, inner) for where, inner in self.fused(instruction))
            else:
                flops = self._flops(name, instruction)
            found.append(
                Work(
                    instruction.name,
                    instruction.opcode,
                    flops,
                    self._bytes(name, instruction),
                    times,
                    instruction.op_name,
                )
            )
        return found

    def _flops(self, where: str, instruction: Instruction) -> float:
        product = instruction.opcode in ("dot", "convolution") or _is_gemm(instruction)
        if not product or len(instruction.operands) < 2:
            return 0.0
        shapes = [self.computations[where][name].shapes[0].dims for name in instruction.operands[:2]]
        out = instruction.shapes[0].dims
        if instruction.opcode != "convolution":
            contracted = re.search(r'lhs_contracting_dim(?:s=|ensions":)[{\[]([0-9,"]*)', instruction.text)
            sizes = [shapes[0][int(d)] for d in contracted[1].replace('"', "").split(",") if d] if contracted else []
            return 2.0 * math.prod(out) * math.prod(sizes)
        return hlo_text.convolution_flops(shapes[0], shapes[1], out, instruction.text)

    def _bytes(self, where: str, instruction: Instruction) -> int:
        """Bytes in HBM: what of its operands is read, and its result; slices and updates in place count as such."""
        own = self.computations[where]
        operands = [own[name].shapes for name in instruction.operands if name in own]
        read = [sum(s.bytes for s in shapes if not s.on_chip) for shapes in operands]
        written = sum(s.bytes for s in instruction.shapes if not s.on_chip)
        if instruction.opcode == "dynamic-slice":
            read = [written]
        elif instruction.opcode == "dynamic-update-slice":
            read, written = [], 2 * (read[1] if len(read) > 1 else 0)
        elif instruction.opcode == "fusion":
            inside = instruction.called("calls") or ""
            for one in self.computations.get(inside, {}).values():
                if one.opcode == "parameter" and int(one.operands[0]) < len(read):
                    index = int(one.operands[0])
                    read[index] = min(read[index], self._read(inside, one))
            written = min(written, self._written(inside))
        return sum(read) + written

    def _read(self, where: str, value: Instruction) -> int:
        """Bytes read of a value inside a fusion: of slices where it is only sliced, none where it is updated."""
        whole, total = sum(s.bytes for s in value.shapes), 0
        for user in self.computations[where].values():
            if value.name not in user.operands:
                continue
            if user.opcode == "dynamic-slice":
                total += sum(s.bytes for s in user.shapes)
            elif user.opcode == "bitcast":
                total += self._read(where, user)
            elif user.opcode == "fusion":
                inside = user.called("calls") or ""
                for one in self.computations.get(inside, {}).values():
                    if one.opcode == "parameter" and user.operands[int(one.operands[0])] == value.name:
                        total += self._read(inside, one)
            elif user.opcode in _PASSES_ON or user.opcode.removesuffix("-start") in COLLECTIVES:
                continue
            elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == value.name):
                return whole
        return min(total, whole)

    def _written(self, where: str, name: str = "") -> int:
        """Bytes that a fused computation writes as its result or as value `name`; an update in place is its update."""
        own = self.computations.get(where, {})
        one = own[name] if name else next((i for i in own.values() if i.root), None)
        if one is None or one.opcode in ("custom-call", "parameter", "get-tuple-element", *COLLECTIVES):
            return 0
        if one.opcode == "dynamic-update-slice" and one.operands[1] in own:
            return sum(s.bytes for s in own[one.operands[1]].shapes)
        if one.opcode == "bitcast" and one.operands[0] in own:
            return self._written(where, one.operands[0])
        if one.opcode == "tuple":
            return sum(self._written(where, part) for part in one.operands if part in own)
        if one.opcode == "fusion":
            return self._written(one.called("calls") or "")
        return sum(s.bytes for s in one.shapes)


# What steps of asynchronous collectives do with their buffers inside a fusion.
_PASSES_ON = ("tuple", "custom-call")
# They move nothing, or what they run is counted by itself.
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "send",
        "send-done",
        "recv",
        "recv-done",
        "replica-id",
        "iota",
        "copy-done",
        "async-start",
        "async-update",
        "async-done",
        "opt-barrier",
        "all-gather-done",
        "all-reduce-done",
        "collective-permute-done",
        "custom-call",
    )
)


def _megascale(instruction: Instruction, times: int) -> Collective | None:
    """A collective between TPU slices, which libtpu writes as a transfer to the host; None for another transfer."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.text)
    if not kind or not instruction.shapes:
        return None
    name = kind[1].lower().replace("_", "-")
    return Collective(name, instruction.shapes[0].bytes, times, (), True, instruction.op_name, between_slices=True)


def _is_gemm(instruction: Instruction) -> bool:
    """Whether it is a product that XLA leaves to cuBLAS."""
    return instruction.opcode == "custom-call" and 'custom_call_target="__cublas' in instruction.text


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that an instruction makes in HBM."""

    bytes: int
    dtype: str
    dims: tuple[int, ...]
    op_name: str


def largest(module: Module, count: int = 8) -> list[Buffer]:
    """The largest arrays that instructions make in HBM, one a shape and origin; some may share memory."""
    found: dict[tuple[str, tuple[int, ...], str], Buffer] = {}
    for _, instruction, _ in module.executed():
        if instruction.opcode not in _FREE:
            for shape in instruction.shapes:
                if not shape.on_chip:
                    buffer = Buffer(shape.bytes, shape.dtype, shape.dims, instruction.op_name)
                    found.setdefault((shape.dtype, shape.dims, instruction.op_name), buffer)
    return sorted(found.values(), key=lambda buffer: -buffer.bytes)[:count]
