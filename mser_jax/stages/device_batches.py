"""Training batches on the devices, read ahead, and what of them could not be decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax.data import device, pipeline, unreadable


class DeviceBatches:
    """Training batches on the devices, the next ones read ahead in the background."""

    def __init__(
        self,
        host: pipeline.Batches,
        mesh: Mesh,
        ids: np.ndarray,
        max_unreadable: float,
        change: Callable[[pipeline.Batch], pipeline.Batch] | None = None,
    ) -> None:
        """
        Args:
            host: of this process.
            mesh: the devices.
            ids: of the records of the training mix.
            max_unreadable: share of them.
            change: made to each batch of `host` before it goes to the devices.
        """
        self._host, self._ids, self._share = host, ids, max_unreadable
        self._whole = NamedSharding(mesh, P())
        self._unreadable: dict[int, str] = {}
        bare = ({name: value for name, value in batch.items() if name != "reason"} for batch in host)
        self._device = device.device_batches(map(change, bare) if change else bare, mesh)

    def __next__(self) -> dict[str, jax.Array]:
        return next(self._device)

    def check(self, batch: Mapping[str, jax.Array]) -> None:
        """See base.BatchIterator."""
        # Each process knows what it could not decode itself; the rows of all of them tell what they agree upon.
        rows = np.asarray(jax.device_put(jnp.where(batch["valid"], -1, batch["record"]), self._whole))
        self._unreadable |= {int(row): self._host.unreadable.get(int(row), "") for row in rows[rows >= 0]}
        unreadable.check(self._unreadable, self._ids, self._share, "the training mix")

    def close(self) -> None:
        """Ends worker processes and threads."""
        self._host.close()
        if self._unreadable:
            logging.warning("%s", unreadable.describe(self._unreadable, self._ids, "the training mix"))
