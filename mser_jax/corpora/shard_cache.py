"""Record files on `gs://`: copied once to this host's disk and read there, or in place, if that is asked for.

array_record's Linux wheels read `gs://` (Google's C++ client) but cannot write it. Read in place, each record is a
request of its own, broken off when the record is there: at 50 ms a request a thread gets 20 records a second, and
training waits for it. So shards are copied to $MSER_CACHE_DIR (~/.cache/mser_jax) before they are read: only those with
records that the run needs, each checked against Google's CRC32C, shared by the processes of a host, with the rate and
the time left shown. MSER_CACHE_DIR=off reads in place, and says what that costs. A bucket that is mounted with gcsfuse
is a folder like any other: give its path as data_dir.
"""

from __future__ import annotations

import base64
import dataclasses
import fcntl
import functools
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from fsspec.callbacks import Callback
from tqdm import tqdm

from mser_jax import storage

VARIABLE = "MSER_CACHE_DIR"
OFF = "off"
PARALLEL = 8  # files at once: one connection does not fill a host's network
ATTEMPTS = 3
_INTERVAL = 0.5 if sys.stderr.isatty() else 10.0  # seconds between two lines of progress


@dataclasses.dataclass(frozen=True)
class Shard:
    """A record file and what is read of it; the fields are those that array_record asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RemoteRecords:
    """The records of shards on `gs://`. `local` is how to read them; one by one (`[row]`) is for a look."""

    def __init__(self, shards: Sequence[Any]) -> None:
        """`shards`: TFDS's file instructions, in the order of the records."""
        self._shards = [Shard(os.fspath(s.filename), s.skip, s.take, s.examples_in_shard) for s in shards]
        self._ends = np.cumsum([shard.take for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> bytes:
        return self.local(np.array([row]))[row]

    def local(self, rows: np.ndarray) -> ArrayRecordDataSource:
        """All records by their row; the shards that hold `rows` (int [n]) are on this host's disk when it returns.

        Raises:
            OSError: no room, or a copy came out wrong again and again; the message says what to do.
        """
        needed = np.unique(np.searchsorted(self._ends, rows, side="right")).tolist()
        if cache_root() is None:
            logging.warning(
                "%s=%s: %d record files are read on gs:// in place, a request a record: about 20 records a second for "
                "each of data.num_threads. Set %s to a directory to copy them once.", VARIABLE, OFF, len(needed),
                VARIABLE,
            )  # fmt: skip
            return ArrayRecordDataSource(self._shards)
        copies = copy([self._shards[number].filename for number in needed])
        shards = list(self._shards)
        for number, path in zip(needed, copies, strict=True):
            shards[number] = dataclasses.replace(shards[number], filename=os.fspath(path))
        return ArrayRecordDataSource(shards)


def cache_root() -> Path | None:
    """Where copies are kept on this host; None where MSER_CACHE_DIR=off."""
    given = os.environ.get(VARIABLE, "")
    return None if given == OFF else Path(given or "~/.cache/mser_jax").expanduser()


def local_folder(folder: epath.PathLike) -> Path:
    """This host's place for what belongs to `folder`: itself, or its image below the cache where that is on `gs://`."""
    text = os.fspath(folder)
    if not storage.is_remote(text):
        return Path(text)
    return (cache_root() or Path("~/.cache/mser_jax").expanduser()) / text.partition("://")[2]


def copy(files: Sequence[str]) -> list[Path]:
    """This host's copies of `gs://` files, in their order; what is not there yet is copied, several at once."""
    listed: dict[str, dict[str, Any]] = {}
    for folder in {file.rpartition("/")[0] for file in files}:
        for info in storage.file_system(folder).ls(folder, detail=True):
            listed[f"gs://{info['name']}"] = info
    gone = [file for file in files if file not in listed]
    if gone:
        raise FileNotFoundError(f"{gone[0]}: not there (nor {len(gone) - 1} more). Prepare the corpus again")
    targets = [copy_path(file, listed[file]["crc32c"]) for file in files]
    missing = [(file, target) for file, target in zip(files, targets, strict=True)
               if not _is_there(target, listed[file])]  # fmt: skip
    if missing:
        _copy_missing(missing, listed)
    return targets


def copy_path(file: str, crc32c: str) -> Path:
    """Where the copy of a `gs://` file of that CRC32C (base64, as Google tells it) lies: other content, other name."""
    folder, _, name = file.rpartition("/")
    return local_folder(folder) / f"{base64.b64decode(crc32c).hex()}-{name}"


def crc32c_of(path: Path) -> str:
    """CRC32C of a file in base64, as Google tells it."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(2**22):
            checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()


def _is_there(target: Path, info: dict[str, Any]) -> bool:
    return target.exists() and target.stat().st_size == info["size"]


def _copy_missing(missing: Sequence[tuple[str, Path]], listed: dict[str, dict[str, Any]]) -> None:
    size = sum(listed[file]["size"] for file, _ in missing)
    root = missing[0][1].parent
    root.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(root).free):
        raise OSError(
            f"{root}: {size / 1e9:.1f} GB of records to copy and {free / 1e9:.1f} GB free. Set {VARIABLE} to a larger "
            f"disk (on a TPU VM /dev/shm is its memory), mount the bucket with gcsfuse, or {VARIABLE}={OFF} to read in "
            "place"
        )
    begin = time.monotonic()
    bar = tqdm(
        total=size, unit="B", unit_scale=True, desc=f"copying {len(missing)} record files to {root}",
        mininterval=_INTERVAL,
    )  # fmt: skip
    with bar, futures.ThreadPoolExecutor(PARALLEL) as pool:
        jobs = [pool.submit(_copy_one, file, target, listed[file], bar) for file, target in missing]
        try:
            for job in futures.as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    seconds = max(time.monotonic() - begin, 1e-6)
    logging.info("%d record files, %.1f MB, are at %s now (%.0f s, %.0f MB/s)", len(missing), size / 1e6, root, seconds,
                 size / 1e6 / seconds)  # fmt: skip


def _copy_one(file: str, target: Path, info: dict[str, Any], bar: tqdm) -> None:
    """Copies under the lock of the file: of the processes of a host one copies it and the others wait."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_there(target, info):
            bar.update(info["size"])
            return
        part = target.with_name(f".{target.name}.part")
        for _ in range(ATTEMPTS):
            storage.retried(functools.partial(_get, file, part, bar), file)
            found = crc32c_of(part)
            if part.stat().st_size == info["size"] and found == info["crc32c"]:
                part.replace(target)
                return
            logging.warning("%s: copied with CRC32C %s, expected %s; copying again", file, found, info["crc32c"])
            bar.update(-part.stat().st_size)
    raise OSError(
        f"{file}: {ATTEMPTS} copies to {target.parent} came out wrong ({info['size']} bytes and CRC32C "
        f"{info['crc32c']} expected). Is the file being written? Else look at this host's disk and network"
    )


def publish(built: Path, folder: epath.Path, last: str) -> None:
    """Uploads the files of the local folder `built` to `folder` on `gs://`, the file `last` after all others.

    What Google stored is checked against what was read here; the record files stay on this host, as its copies.
    """
    files = sorted(built.iterdir(), key=lambda path: (path.name == last, path.name))
    for path in tqdm(files, desc=f"uploading to {folder}", unit="file", mininterval=_INTERVAL):
        target, expected = os.fspath(folder / path.name), crc32c_of(path)
        storage.file_system(target).put_file(os.fspath(path), target)
        stored = storage.file_system(target).info(target)
        if stored["crc32c"] != expected:
            raise OSError(f"{target}: stored with CRC32C {stored['crc32c']}, expected {expected}. Build it again")
        if ".array_record" in path.name and cache_root():
            copied = copy_path(target, expected)
            copied.parent.mkdir(parents=True, exist_ok=True)
            path.replace(copied)


def _get(file: str, part: Path, bar: tqdm) -> None:
    progress = _Progress(bar)
    try:
        storage.file_system(file).get_file(file, os.fspath(part), callback=progress)
    except BaseException:
        bar.update(-progress.done)
        raise


class _Progress(Callback):
    def __init__(self, bar: tqdm) -> None:
        super().__init__()
        self._bar, self.done = bar, 0

    def relative_update(self, inc: int = 1) -> None:
        self._bar.update(inc)
        self.done += inc
