"""The language of the tables: which tensor of a torch checkpoint is which parameter of ours, and how it lies in it.

A family's table is a tuple of entries, written with the short-hands below:

    linear("layers/attention/query", "layers.{layer}.self_attn.q_proj")

One torch tensor is one slice of ours, always (`{layer}` counts the leading axis of a stack), and differs from it
by a permutation of axes and a constant. So a shard of ours is a slice of a tensor in a file, and every table
reads in both directions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LAYER = "{layer}"


class PretrainedError(ValueError):
    """A directory of pretrained weights that cannot be read, does not fit, or holds what is not implemented."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """ours = transpose(theirs, axes) + offset, computed in f32 where there is an offset.

    `axes` as numpy has it: axis i of ours is axis axes[i] of theirs; None changes nothing.
    """

    axes: tuple[int, ...] | None = None
    offset: float = 0.0

    def to_theirs(self, per_axis: Sequence) -> tuple:
        """What belongs to each axis of ours (a size, a slice), in the order of their axes."""
        if self.axes is None:
            return tuple(per_axis)
        out: list = [None] * len(self.axes)
        for ours, theirs in enumerate(self.axes):
            out[theirs] = per_axis[ours]
        return tuple(out)

    def to_ours(self, per_axis: Sequence) -> tuple:
        """What belongs to each axis of theirs, in the order of our axes."""
        return tuple(per_axis) if self.axes is None else tuple(per_axis[axis] for axis in self.axes)

    @property
    def inverse_axes(self) -> tuple[int, ...] | None:
        """theirs = transpose(ours - offset, inverse_axes)."""
        return None if self.axes is None else tuple(self.axes.index(i) for i in range(len(self.axes)))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours, a path, and the torch name without prefix; with `{layer}` in it ours is a stack.

    A tensor has one axis at least.
    """

    ours: str
    theirs: str
    transform: Transform = Transform()

    @property
    def stacked(self) -> bool:
        """Whether the leading axis of ours counts layers, each of which is a tensor of its own in torch."""
        return LAYER in self.theirs

    def name(self, layer: int = 0) -> str:
        """The torch name (of one layer), without prefix."""
        return self.theirs.replace(LAYER, str(layer))

    def tensors(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """{torch name: torch shape} of all tensors that a parameter of our `shape` is made of."""
        if not self.stacked:
            return {self.theirs: self.transform.to_theirs(shape)}
        return {self.name(layer): self.transform.to_theirs(shape[1:]) for layer in range(shape[0])}


def raw(ours: str, theirs: str, axes: tuple[int, ...] | None = None, offset: float = 0.0) -> tuple[Entry, ...]:
    """One tensor by its full names, e.g. a parameter that belongs to no layer class."""
    return (Entry(ours, theirs, Transform(axes, offset)),)


def linear(ours: str, theirs: str, bias: bool = True) -> tuple[Entry, ...]:
    """layers.Linear: kernel [in, out] and bias, torch's weight [out, in] and bias."""
    kernel = raw(f"{ours}/kernel", f"{theirs}.weight", (1, 0))
    return kernel + raw(f"{ours}/bias", f"{theirs}.bias") if bias else kernel


def conv1d(ours: str, theirs: str, bias: bool = True) -> tuple[Entry, ...]:
    """layers.Conv1d: kernel [size, in, out] and bias, torch's weight [out, in, size] and bias."""
    kernel = raw(f"{ours}/kernel", f"{theirs}.weight", (2, 1, 0))
    return kernel + raw(f"{ours}/bias", f"{theirs}.bias") if bias else kernel


def norm(ours: str, theirs: str, bias: bool = True, offset: float = 0.0) -> tuple[Entry, ...]:
    """layers.LayerNorm (or an RMS norm, without bias): scale and bias, torch's weight (minus `offset`) and bias."""
    scale = raw(f"{ours}/scale", f"{theirs}.weight", offset=offset)
    return scale + raw(f"{ours}/bias", f"{theirs}.bias") if bias else scale


def embedding(ours: str, theirs: str) -> tuple[Entry, ...]:
    """layers.Embedding: table, torch's weight."""
    return raw(f"{ours}/table", f"{theirs}.weight")


@dataclasses.dataclass(frozen=True)
class KeyMap:
    """The table of a family: everything that must be known to read its files and to write them.

    Attributes:
        family: for messages ("whisper encoder").
        prefixes: what may stand before all names, by the class that was saved ("model.encoder.", ""). The one under
            which most names are found is taken; the first is what export writes where there is no base.
        entries: the table.
        ignored: regexes, searched in full names, of tensors that a full checkpoint has and we do not need.
        renames: (regex, replacement) applied with re.sub to the full names in a file: older spellings.
        constants: {torch name without prefix: value} of tensors that are no parameters of ours but computed; where a
            file has them they must be equal (to the precision they are stored in), and export writes them.
        repeats: (regex, torch name without prefix): tensors, by their full names, that some files hold although they
            say again what another says (a tied head). They must be equal to it; export leaves them out.

    Raises:
        ValueError: two entries of one name.
    """

    family: str
    prefixes: tuple[str, ...]
    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)
    repeats: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for side in ("ours", "theirs"):
            names = [getattr(entry, side) for entry in self.entries]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"KeyMap {self.family}: {side} twice in the table: {twice}")

    def rename(self, name: str) -> str:
        """A name in a file in today's spelling."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def is_ignored(self, name: str) -> bool:
        """Whether we do not need the tensor of this full name."""
        return any(re.search(pattern, name) for pattern in self.ignored)

    def tensors(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """{torch name without prefix: torch shape} for our {path: shape}; paths that the table lacks are left out."""
        known = (entry for entry in self.entries if entry.ours in shapes)
        return {name: shape for entry in known for name, shape in entry.tensors(shapes[entry.ours]).items()}

    def find_prefix(self, wanted: Iterable[str], present: Iterable[str]) -> str | None:
        """The prefix under which most of the names `wanted` are `present`, the longest of equals; None: no name is."""
        wanted, present = set(wanted), set(present)
        found = {prefix: sum(prefix + name in present for name in wanted) for prefix in self.prefixes}
        best = max(self.prefixes, key=lambda prefix: (found[prefix], len(prefix)))
        return best if found[best] else None


def refuse(family: str, hf: Mapping[str, Any], fixed: Mapping[str, Any], needed: Iterable[str] = ()) -> None:
    """Checks config.json's values against the only ones that a family implements.

    Args:
        family: for the message.
        hf: config.json.
        fixed: {key: the value we implement}; a key that `hf` lacks is taken to have it.
        needed: keys that must be there.

    Raises:
        PretrainedError: all that differ and all that are missing.
    """
    problems = [
        f"{key}={hf[key]!r} is not implemented (only {value!r} is)"
        for key, value in fixed.items()
        if hf.get(key, value) != value
    ]
    problems += [f"{key} is missing" for key in needed if hf.get(key) is None]
    if problems:
        raise PretrainedError(f"config.json of this {family} model: " + "; ".join(problems))
