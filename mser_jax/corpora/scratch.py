"""Folders for what is unpacked or half built, which go away with their process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

UNPACKED, BUILDING = "unpacked.", "building."
# How these folders are called, and those that build_lock.py makes.
NAMES = re.compile(r"(unpacked|building|incomplete)\.[0-9a-z_]{8}")


@contextlib.contextmanager
def folder(parent: Path, prefix: str = UNPACKED) -> Iterator[Path]:
    """Make a folder below `parent` that is removed at the end; those of killed processes are removed at the start.

    Its process holds the kernel's lock (flock) on it, which ends with the process.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent, prefix)
    path, descriptor = _new(parent, prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep(parent: Path, prefix: str = UNPACKED) -> None:
    """Remove the folders below `parent` whose processes are no more."""
    for leftover in parent.glob(f"{prefix}*"):
        descriptor = _lock(leftover) if NAMES.fullmatch(leftover.name) else None
        if descriptor is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(descriptor)


def _new(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for a leftover before it was locked
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if path.exists():
                return path, descriptor
            os.close(descriptor)
        except BlockingIOError:  # that is about to happen
            os.close(descriptor)
        except OSError:  # no locks on this file system: then nobody removes leftovers either
            return path, descriptor


def _lock(path: Path) -> int | None:
    """Takes the lock of a folder; None where its process lives."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor
