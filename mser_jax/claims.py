"""A piece of work that several programs could do, done by one of them: claims that die with their owner.

A claim is a file `claim-00000` beside the work, made with O_EXCL locally and ifGenerationMatch=0 on `gs://`: of those
who try one has it. Its owner writes the time into it again and again; where that time is older than `stale_after` the
owner is dead, and whoever makes the next file, `claim-00001`, has the work. Nothing is ever deleted, so two who see the
same dead owner cannot both win, and an owner that only slept sees that it has lost. Where the owner's process was one
of this very machine, the kernel tells sooner that it has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging
from etils import epath

from mser_jax import storage

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
# Owners in this process that have not ended: storage may refuse to let one give its claim back.
_OWNERS: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who has a piece of work: name, the number of the claim, whether it beats (`alive`) or was given back.

    host, pid, since: of its process, since when it has the work (seconds since 1970); "", 0, 0.0: not told.
    heard: when it wrote last, by its own clock.
    gone: it was on this machine and has ended. elsewhere: it was on another.
    """

    name: str
    number: int
    alive: bool
    released: bool = False
    host: str = ""
    pid: int = 0
    since: float = 0.0
    heard: float = 0.0
    gone: bool = False
    elsewhere: bool = True


@dataclasses.dataclass(frozen=True)
class Claim:
    """A piece of work that is ours, until `lost`."""

    folder: epath.Path
    number: int
    owner: str
    since: float = dataclasses.field(default_factory=time.time)

    def beat(self, *, released: bool = False, forever: bool = False) -> None:
        """Says that the owner lives; that it is done (`released`); or that it needs no further beats (`forever`)."""
        storage.replace(_path(self.folder, self.number), _text(self, released, forever))

    @property
    def lost(self) -> bool:
        """Whether somebody took it over."""
        return _path(self.folder, self.number + 1).exists()


def take(
    folder: epath.Path,
    *,
    stale_after: float = STALE_SECONDS,
    owner: str = "",
    force: bool = False,
    at_once: bool = False,
) -> Claim | None:
    """The claim on the work in `folder`, or None while somebody else has it.

    Args:
        folder: of the work, local or gs://; made here.
        stale_after: seconds without a beat after which an owner is dead. Clocks of hosts may differ by less.
        owner: what others are told; host, process and a random tail by default.
        force: from a living owner, too.
        at_once: an owner of this machine is dead as soon as its process has ended, not only when it is stale. Not for
            work that processes do which outlive their owner.
    """
    holder = who(folder, stale_after=stale_after)
    if holder and holder.alive and not force and not (at_once and holder.gone):
        return None
    number = holder.number + 1 if holder else 0
    owner = owner or f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:4]}"
    claim = Claim(folder, number, owner)
    if not storage.create(_path(folder, number), _text(claim)):
        return None
    _OWNERS.add(owner)
    return claim


def who(folder: epath.Path, *, stale_after: float = STALE_SECONDS) -> Holder | None:
    """Who claimed the work in `folder` last, or None."""
    found = [int(m[1]) for path in (folder.iterdir() if folder.exists() else ())
             if (m := re.fullmatch(r"claim-(\d{5})", path.name))]  # fmt: skip
    if not found:
        return None
    path = _path(folder, max(found))
    try:
        told = json.loads(path.read_bytes())
        told["owner"], told["time"], told["released"], told["forever"]
    except (ValueError, TypeError, KeyError):  # made this moment, its owner died while it wrote, or the disk rotted
        told = {"owner": "unknown", "time": path.stat().mtime, "released": False, "forever": False}
    alive = not told["released"] and (told["forever"] or time.time() - told["time"] < stale_after)
    here = told.get("machine") == _machine()
    facts = {name: told[name] for name in ("host", "pid", "since") if name in told}
    ours = here and told["pid"] == os.getpid() and told["owner"] not in _OWNERS
    gone = here and not told["forever"] and (ours or _has_ended(told["pid"], told["started"]))
    return Holder(
        told["owner"], max(found), alive, told["released"], **facts, heard=told["time"], gone=gone, elsewhere=not here
    )


class Lost(threading.Event):
    """Set when the claim was taken over, and by itself when no beat came through for `stale_after` seconds."""

    def __init__(self, stale_after: float) -> None:
        super().__init__()
        self.stale_after, self.last_beat = stale_after, time.monotonic()

    def is_set(self) -> bool:
        """Tell if others may have the work by now. The clock decides, as the thread that beats may hang."""
        return super().is_set() or time.monotonic() - self.last_beat >= self.stale_after


@contextlib.contextmanager
def held(claim: Claim, every: float = HEARTBEAT_SECONDS, stale_after: float = STALE_SECONDS) -> Iterator[Lost]:
    """Beats in a thread while the block runs, and gives the claim back after it.

    The event that it yields is set when the claim is lost: another has taken it, or storage refused every beat for
    `stale_after` seconds, so that another may.
    """
    done, lost = threading.Event(), Lost(stale_after)

    def beat() -> None:
        while not done.wait(every):
            begun = time.monotonic()
            # Storage libraries raise classes of their own. Whatever it was, the next beat may come through.
            try:
                if claim.lost:
                    lost.set()
                    return
                if not done.is_set():
                    claim.beat()
                    lost.last_beat = begun
            except Exception as error:
                logging.warning("No sign of life to %s: %s", claim.folder, storage.explain(error) or repr(error))

    thread = threading.Thread(target=beat, name="claim", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        _OWNERS.discard(claim.owner)
        done.set()
        thread.join(every)  # of one that hangs in storage nobody waits for the end
        try:
            if not lost.is_set() and not claim.lost:
                claim.beat(released=True)
        except Exception as error:
            logging.warning("%s was not given back, it will go stale: %r", claim.folder, error)


def _path(folder: epath.Path, number: int) -> epath.Path:
    return folder / f"claim-{number:05d}"


def _text(claim: Claim, released: bool = False, forever: bool = False) -> str:
    told = {"owner": claim.owner, "time": time.time(), "released": released, "forever": forever}
    told |= {"since": claim.since, "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine()}
    return json.dumps(told | {"started": _started(os.getpid())})


@functools.cache
def _machine() -> str:
    """The kernel, since when it runs, and the process numbers that count: pods of one name have others."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{pathlib.Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks since the kernel's start; "" where it has ended or none tells."""
    try:
        # The name before it, in parentheses, may hold anything.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _has_ended(pid: int, started: str) -> bool:
    """Check that a process of this machine has ended, even where its number was given to another."""
    if started:
        return _started(pid) != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
