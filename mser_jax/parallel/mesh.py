"""The one place where a device mesh is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    mode: str = "explicit",
    devices: Sequence[jax.Device] | None = None,
    slices: int | None = None,
) -> Mesh:
    """A mesh with axes ("data", "fsdp", "tensor") over `devices` (default: all of them).

    One of the sizes may be -1: it takes what the others leave. `mode` is "explicit" (a missing sharding is an error
    when the step is traced) or "auto" (GSPMD decides).

    Slices (TPU Multislice: each with its own fast interconnect, the data-centre network between them) lie along `data`,
    slowest first: `fsdp` and `tensor`, which talk in every layer, stay within a slice. Their number is that of the
    devices' `slice_index`; `slices` sets it for devices that have none, as equal runs of the list.

    Raises:
        ValueError: the sizes do not multiply to the number of devices, the slices do not divide `data`, or the mode is
            unknown.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    types = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}
    if mode not in types:
        raise ValueError(f"mesh.mode={mode!r}: expected one of {sorted(types)}")
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = 1
    for size in sizes.values():
        fixed *= 1 if size == -1 else size
    if len(free) > 1 or fixed < 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise ValueError(
            f"mesh {sizes} does not fit {len(devices)} {devices[0].platform} device(s): the sizes must multiply to "
            f"{len(devices)}, and at most one may be -1 (the rest). Set --config.mesh.{{data,fsdp,tensor}}."
        )
    for axis in free:
        sizes[axis] = len(devices) // fixed
    shape = tuple(sizes[axis] for axis in AXES)
    axis_types = (types[mode],) * len(AXES)
    found = num_slices(devices)
    slices = slices or found
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)
    if shape[0] % slices:
        raise ValueError(
            f"mesh {sizes} over {slices} slices: their number must divide data={shape[0]}, because fsdp and tensor "
            "stay within a slice. Set --config.mesh.{data,fsdp,tensor}."
        )
    within = (shape[0] // slices, *shape[1:])
    if found == slices:
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
    else:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=axis_types)


def num_slices(devices: Iterable[jax.Device]) -> int:
    """How many slices the devices tell of; 1 where they tell of none."""
    return len({getattr(device, "slice_index", None) or 0 for device in devices})
