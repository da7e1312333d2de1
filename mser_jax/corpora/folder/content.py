"""What the recordings of a folder hold: digests of their bytes, computed once for as long as a file is not written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from concurrent import futures

from etils import epath
from tqdm import tqdm

from mser_jax import storage
from mser_jax.corpora.folder.files import File

THREADS = 8  # at once: the disk is what takes the time, and hashing releases the GIL
# A file this young (seconds) may be written again within one tick of its clock: what it holds is not remembered.
_YOUNG = 2.0
NO_FILE = "no file"


def digests(files: Sequence[File], memory: epath.Path | None = None) -> list[str]:
    """Compute a digest of each file's bytes, as text; NO_FILE where it is none.

    memory: a file that is read and written, None = none: digests by path and stamp, so that only what has changed is
      read again. On gs:// the storage's own checksum is taken and nothing is read.

    Raises:
      OSError: a recording that is there cannot be read.
    """
    known = _load(memory)
    found: dict[str, str] = {}
    unread: dict[str, File] = {}
    for file in files:
        path = file.path
        if not file.stamp:
            found[path] = NO_FILE
        elif storage.is_remote(path):
            found[path] = str(file.stamp[0])
        elif known.get(path, [None])[:-1] == list(file.stamp):
            found[path] = known[path][-1]
        else:
            unread[path] = file
    if unread:
        found |= dict(zip(unread, _read(list(unread)), strict=True))
    now = time.time_ns()
    lasting = {
        path: [*file.stamp, found[path]] for file in files
        if len(file.stamp) > 1 and now - max(file.stamp[1:3]) > _YOUNG * 1e9 and (path := file.path)
    }  # fmt: skip
    if memory and lasting != known:
        with contextlib.suppress(OSError):  # a read-only place costs time, not the run
            storage.replace(memory, json.dumps(lasting))
    return [found[file.path] for file in files]


def _load(memory: epath.Path | None) -> dict[str, list]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text()) if memory else {}
        if isinstance(known, dict) and all(isinstance(entry, list) and entry for entry in known.values()):
            return known
    return {}


def _read(paths: Sequence[str]) -> list[str]:
    interval = 0.5 if sys.stderr.isatty() else 10.0
    bar = tqdm(total=len(paths), desc="looking for changed recordings", unit="file", delay=3, mininterval=interval)
    with bar, futures.ThreadPoolExecutor(THREADS, thread_name_prefix="digest") as pool:
        found = []
        for digest in pool.map(_digest, paths):
            found.append(digest)
            bar.update()
        return found


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except FileNotFoundError:
        return NO_FILE  # gone since it was listed
