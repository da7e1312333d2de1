"""One builder of a corpus at a time, also across processes; what a killed one left behind is removed."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from etils import epath


def temporary_folder(folder: epath.Path) -> epath.Path:
    """A name beside `folder` to build under, so that a rename is all that is left to do."""
    return folder.parent / f"incomplete.{uuid.uuid4().hex[:8]}_{folder.name}"


@contextlib.contextmanager
def build_lock(folder: epath.Path) -> Iterator[None]:
    """Holds the lock of `folder` (a corpus version, not there yet); waits for whoever has it.

    The lock is the kernel's (flock): it ends with its process, however that ends. Where there is none (gs://)
    the rename of the finished folder decides.
    """
    if str(folder).startswith("gs://"):
        yield
        return
    parent = Path(folder).parent
    parent.mkdir(parents=True, exist_ok=True)
    with open(parent / f".{folder.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is building it; waiting", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in parent.glob(f"incomplete.*_{folder.name}"):
            epath.Path(leftover).rmtree()
        yield
