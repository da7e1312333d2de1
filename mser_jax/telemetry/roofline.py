"""How long a compiled step takes at least, from published peaks (peaks.toml). A prediction: nothing is measured.

Each operation takes the longer of its arithmetic and its HBM traffic (Williams et al. 2009). Collectives that the
compiler made asynchronous are taken to hide behind that, or to be hidden behind; synchronous ones are added. Latencies,
launch overheads, what a kernel loses against its peak and the host's share are left out: a real step is slower.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources

import numpy as np
from jax.sharding import Mesh

from mser_jax.parallel.mesh import num_slices
from mser_jax.telemetry.hlo import Collective, Work


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip; see peaks.toml for units."""

    name: str
    kind: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dims: int
    ring: int
    dcn_bandwidth: float
    devices: int
    source: str

    @property
    def device(self) -> Chip:
        """The share of one jax device, where a chip is several."""
        n = self.devices
        halves = ("flops", "hbm_bytes", "hbm_bandwidth", "link_bandwidth", "dcn_bandwidth")
        return dataclasses.replace(self, devices=1, **{key: getattr(self, key) / n for key in halves})


def chips() -> dict[str, Chip]:
    """{name as in a topology: its peaks}."""
    text = resources.files("mser_jax.telemetry").joinpath("peaks.toml").read_text(encoding="utf-8")
    return {name: Chip(name=name, **values) for name, values in tomllib.loads(text).items()}


def h100_description() -> str:
    """The text proto (stream_executor.GpuTargetConfigProto) by which XLA compiles for an H100 that is not there."""
    return resources.files("mser_jax.telemetry").joinpath("h100.txtpb").read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """All runs of one kind of collective over one set of mesh axes.

    `bytes` are those of the arrays, `wire_bytes` what a device sends; `seconds` on ICI and DCN together.
    """

    kind: str
    axes: str
    asynchronous: bool
    count: int
    bytes: float
    wire_bytes: float
    ici_seconds: float
    dcn_seconds: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step by what they are spent on. `operations`: each at the longer of arithmetic and traffic."""

    compute: float
    hbm: float
    operations: float
    ici: float
    dcn: float
    exposed: float  # collectives that are synchronous
    flops: float
    bytes: float
    transfers: tuple[Transfer, ...]

    @property
    def step(self) -> float:
        """Seconds."""
        hidden = max(self.ici + self.dcn - self.exposed, 0.0)
        return max(self.operations, hidden) + self.exposed

    @property
    def bound(self) -> str:
        """The term that is longest."""
        terms = {"compute": self.compute, "HBM": self.hbm, "ICI": self.ici, "DCN": self.dcn}
        return max(terms, key=terms.get)


def predict(work: Sequence[Work], collectives: Sequence[Collective], mesh: Mesh, chip: Chip) -> Roofline:
    """The roofline of one device of `mesh`; `chip` as of `chips()`."""
    device = chip.device
    compute = sum(w.flops * w.count for w in work) / device.flops
    hbm = sum(w.bytes * w.count for w in work) / device.hbm_bandwidth
    operations = sum(max(w.flops / device.flops, w.bytes / device.hbm_bandwidth) * w.count for w in work)
    transfers = _transfers(collectives, mesh, device)
    seconds = [(t.ici_seconds, t.dcn_seconds, t.asynchronous) for t in transfers]
    return Roofline(
        compute=compute,
        hbm=hbm,
        operations=operations,
        ici=sum(ici for ici, _, _ in seconds),
        dcn=sum(dcn for _, dcn, _ in seconds),
        exposed=sum(ici + dcn for ici, dcn, asynchronous in seconds if not asynchronous),
        flops=sum(w.flops * w.count for w in work),
        bytes=sum(w.bytes * w.count for w in work),
        transfers=transfers,
    )


def _transfers(collectives: Sequence[Collective], mesh: Mesh, chip: Chip) -> tuple[Transfer, ...]:
    grouped: dict[tuple[str, str, bool], list[tuple[Collective, float, float]]] = {}
    for one in collectives:
        # Slices lie one after the other in a mesh (parallel/mesh.py).
        stride = mesh.size // num_slices(mesh.devices.flat) if one.between_slices else 1
        one = dataclasses.replace(one, group=one.group or tuple(range(0, mesh.size, stride)))
        key = (one.kind, axes_of(one.group, mesh.shape), one.asynchronous)
        grouped.setdefault(key, []).append((one, *seconds(one, list(mesh.devices.flat), chip)))
    rows = [
        Transfer(
            *key,
            count=sum(one.count for one, _, _ in found),
            bytes=sum(one.bytes * one.count for one, _, _ in found),
            wire_bytes=sum(one.wire_bytes for one, _, _ in found),
            ici_seconds=sum(ici for _, ici, _ in found),
            dcn_seconds=sum(dcn for _, _, dcn in found),
        )
        for key, found in grouped.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.ici_seconds - row.dcn_seconds))


def axes_of(group: Sequence[int], shape: Mapping[str, int]) -> str:
    """'fsdp' or 'data+fsdp': the mesh axes along which the devices of a group differ."""
    places = np.unravel_index(np.asarray(group), tuple(shape.values()))
    return "+".join(axis for axis, where in zip(shape, places, strict=True) if len(set(where.tolist())) > 1) or "none"


def seconds(one: Collective, devices: Sequence[object], chip: Chip) -> tuple[float, float]:
    """(on ICI, on DCN) of all runs of a collective, at full use of the links.

    Within a slice an all-reduce uses the links of every dimension of the torus that its group spans, and the others one
    ring through them, as TPU compilers do. Between slices it is taken to go in stages: within each, then between them
    what each chip then holds.
    """
    group = [devices[i] for i in one.group]
    slices = [getattr(device, "slice_index", None) or 0 for device in group]
    parts = len(set(slices))
    inside = [device for device, number in zip(group, slices, strict=True) if number == slices[0]]
    total = one.bytes * one.count
    ici = dcn = 0.0
    if len(inside) > 1:
        share = dataclasses.replace(one, group=tuple(range(len(inside)))).wire_bytes
        ici = share / (_links(one.kind, inside, devices, chip) * chip.link_bandwidth)
    if parts > 1:
        factor = {"all-reduce": 2 * (parts - 1) / parts, "collective-permute": 1.0}.get(one.kind, (parts - 1) / parts)
        dcn = factor * total / len(inside) / chip.dcn_bandwidth
    return ici, dcn


def _links(kind: str, group: Sequence[object], devices: Sequence[object], chip: Chip) -> int:
    """How many links of a chip carry one direction of a collective among `group`."""
    if chip.dims == 0 or kind == "collective-permute":
        return 1
    coordinates = np.array([device.coords for device in group])
    extents = np.array([device.coords for device in devices]).max(0) + 1
    sizes = [len(set(column)) for column in coordinates.T.tolist()]
    links = [2 if size == extent and extent % chip.ring == 0 else 1
             for size, extent in zip(sizes, extents.tolist(), strict=True) if size > 1]  # fmt: skip
    if not links:
        return 1  # two cores of one chip
    # Through two dimensions there is a closed ring, whether they close themselves or not.
    return sum(links) if kind == "all-reduce" else min(2, sum(links))
