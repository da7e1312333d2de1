"""The one place where a device mesh is made."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    mode: str = "explicit",
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with axes ("data", "fsdp", "tensor") over `devices` (default: all of them).

    One of the sizes may be -1: it takes what the others leave. `mode` is "explicit" (a missing sharding is an error
    when the step is traced) or "auto" (GSPMD decides).

    Raises:
        ValueError: the sizes do not multiply to the number of devices, or the mode is unknown.
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
    return jax.make_mesh(shape, AXES, axis_types=(types[mode],) * len(AXES), devices=devices)
