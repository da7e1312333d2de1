"""One builder of a corpus at a time, also across processes; what a killed one left behind is removed."""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from mser_jax import claims, storage

POLL_SECONDS = 2.0


def temporary_folder(folder: epath.Path) -> epath.Path:
    """A name beside `folder` to build under, so that a rename is all that is left to do."""
    return folder.parent / f"incomplete.{uuid.uuid4().hex[:8]}_{folder.name}"


@contextlib.contextmanager
def build_lock(folder: epath.Path) -> Iterator[Callable[[], None]]:
    """Holds the lock of `folder` (a corpus version, not there yet); waits for whoever has it.

    The lock is the kernel's (flock): it ends with its process, however that ends. On `gs://`, where there is none, it
    is a claim (claims.py), which ends when its holder has been silent for a while. What is yielded raises RuntimeError
    where another process may have it by now: to be called before anything of `folder` is replaced.
    """
    if storage.is_remote(folder):
        claim = _claim(folder.parent / f".{folder.name}.lock")
        with claims.held(claim) as lost:
            yield lambda: _refuse(folder, lost.is_set() or claim.lost)
        return
    parent = Path(folder).parent
    parent.mkdir(parents=True, exist_ok=True)
    with open(parent / f".{folder.name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is building it; waiting", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        remove_leftovers(folder)
        yield lambda: None  # the kernel takes it from nobody


def remove_leftovers(folder: epath.Path) -> None:
    """Remove what `temporary_folder` named; only its lock's holder may."""
    for leftover in Path(folder).parent.glob(f"incomplete.*_{folder.name}"):
        epath.Path(leftover).rmtree()


def _refuse(folder: epath.Path, lost: bool) -> None:
    if lost:
        raise RuntimeError(
            f"{folder}: this process was silent for too long, and another may be building there. Nothing was replaced; "
            "the same command waits for the other one, or builds again"
        )


def _claim(folder: epath.Path) -> claims.Claim:
    told = False
    while (claim := claims.take(folder, at_once=True)) is None:
        if not told:
            print(f"{folder.parent}: another process is building there; waiting", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    return claim
