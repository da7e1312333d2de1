"""Host batches to global device arrays. The only module of the data package that imports jax."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from mser_jax.parallel import sharding


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows [n, ...] -> global arrays [n · processes, ...], leading dimension over data × fsdp.

    Raises:
        ValueError: the global batch does not divide over the devices.
    """
    target = sharding.batch_sharding(mesh)
    rows = len(next(iter(batch.values()))) * jax.process_count()
    parts = int(np.prod([mesh.shape[axis] for axis in sharding.BATCH_AXES]))
    if rows % parts:
        raise ValueError(
            f"A global batch of {rows} does not divide over data × fsdp = {parts} devices of the mesh "
            f"{dict(mesh.shape)}: set data.batch_size to a multiple of {parts}."
        )
    return {
        name: jax.make_array_from_process_local_data(target, value, (rows, *value.shape[1:]))
        for name, value in batch.items()
    }


def device_batches(
    batches: Iterable[dict[str, np.ndarray]], mesh: Mesh, lookahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Batches on the devices, in order, with the next `lookahead` being copied while one is used.

    `batches` stays the caller's to close.
    """
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        queue.append(to_device(batch, mesh))
        if len(queue) > lookahead:
            yield queue.popleft()
    yield from queue
