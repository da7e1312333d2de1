"""A piece of work that several programs could do, done by one of them: claims that die with their owner.

A claim is a file `claim-00000` beside the work, made with O_EXCL locally and ifGenerationMatch=0 on `gs://`: of those
who try one has it. Its owner writes the time into it again and again; where that time is older than `stale_after` the
owner is dead, and whoever makes the next file, `claim-00001`, has the work. Nothing is ever deleted, so two who see the
same dead owner cannot both win, and an owner that only slept sees that it has lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from mser_jax import storage

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who has a piece of work: name, the number of the claim, whether it beats (`alive`) or was given back."""

    name: str
    number: int
    alive: bool
    released: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    """A piece of work that is ours, until `lost`."""

    folder: epath.Path
    number: int
    owner: str

    def beat(self, *, released: bool = False, forever: bool = False) -> None:
        """Says that the owner lives; that it is done (`released`); or that it needs no further beats (`forever`)."""
        storage.replace(_path(self.folder, self.number), _text(self.owner, released, forever))

    @property
    def lost(self) -> bool:
        """Whether somebody took it over."""
        return _path(self.folder, self.number + 1).exists()


def take(
    folder: epath.Path, *, stale_after: float = STALE_SECONDS, owner: str = "", force: bool = False
) -> Claim | None:
    """The claim on the work in `folder`, or None while somebody else has it.

    Args:
        folder: of the work, local or gs://; made here.
        stale_after: seconds without a beat after which an owner is dead. Clocks of hosts may differ by less.
        owner: what others are told; host, process and a random tail by default.
        force: from a living owner, too.
    """
    holder = who(folder, stale_after=stale_after)
    if holder and holder.alive and not force:
        return None
    number = holder.number + 1 if holder else 0
    owner = owner or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:4]}"
    return Claim(folder, number, owner) if storage.create(_path(folder, number), _text(owner)) else None


def who(folder: epath.Path, *, stale_after: float = STALE_SECONDS) -> Holder | None:
    """Who claimed the work in `folder` last, or None."""
    found = [int(m[1]) for path in (folder.iterdir() if folder.exists() else ())
             if (m := re.fullmatch(r"claim-(\d{5})", path.name))]  # fmt: skip
    if not found:
        return None
    path = _path(folder, max(found))
    try:
        told = json.loads(path.read_text())
    except json.JSONDecodeError:  # made this moment, or its owner died while it wrote
        told = {"owner": "unknown", "time": path.stat().mtime, "released": False, "forever": False}
    alive = not told["released"] and (told["forever"] or time.time() - told["time"] < stale_after)
    return Holder(told["owner"], max(found), alive, told["released"])


@contextlib.contextmanager
def held(claim: Claim, every: float = HEARTBEAT_SECONDS) -> Iterator[threading.Event]:
    """Beats in a thread while the block runs, and gives the claim back after it. The event is set when it was lost."""
    done, lost = threading.Event(), threading.Event()

    def beat() -> None:
        while not done.wait(every):
            with contextlib.suppress(OSError):  # the next one may come through
                if claim.lost:
                    lost.set()
                    return
                claim.beat()

    thread = threading.Thread(target=beat, name="claim", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()
        if not lost.is_set():
            claim.beat(released=True)


def _path(folder: epath.Path, number: int) -> epath.Path:
    return folder / f"claim-{number:05d}"


def _text(owner: str, released: bool = False, forever: bool = False) -> str:
    return json.dumps({"owner": owner, "time": time.time(), "released": released, "forever": forever})
