"""Checksums of a checkpoint's files, so that bits that rotted on a disk are an error and not other parameters.

`write` puts `checksums.json` beside the files when all of them are written and the checkpoint does not yet count as
complete: there is no moment at which a complete one lacks it. `problems` holds the files against it. On `gs://` Google
keeps each object's CRC32C, so nothing is downloaded for that. Files whose names begin with a dot are nobody's, and so
is what lies directly in the checkpoint's folder and was not saved with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import google_crc32c
from etils import epath

from mser_jax import storage

FILE = "checksums.json"
# Orbax writes it last, and reads only whether it is there.
_MARK = "commit_success.txt"
# Orbax writes it once more after that, with the time of the commit in it: it counts by what else it says.
_METADATA, _COMMIT_TIME = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs"
_METADATA_SECONDS = 60
_NOBODYS = re.compile(r"(^|/)(\.[^/]*)?$")
_BLOCK = 2**20
_THREADS = 8


def write(folder: epath.Path, told: dict[str, Any]) -> None:
    """Write the checksums of all files below `folder`, once the metadata `told` are among them.

    Raises:
        TimeoutError: they are not, though Orbax, which writes them in a thread of its own, had a minute for it.
    """
    wanted, deadline = json.dumps(told, sort_keys=True), time.monotonic() + _METADATA_SECONDS
    while json.dumps(metadata(folder, ()), sort_keys=True) != wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder / _METADATA} was not written in {_METADATA_SECONDS} s")
        time.sleep(0.01)
    found = _files(folder)
    sums = _checksums(folder, found)
    listed = {name: [0 if name == _METADATA else found[name]["size"], sums[name]] for name in sorted(found)}
    storage.replace(folder / FILE, _text(listed))


def problems(folder: epath.Path, part: int = 0, parts: int = 1) -> list[str] | None:
    """List what is wrong with the files below `folder`, a line each; [] when they are as saved, None without checksums.

    Args:
        folder: of one checkpoint.
        part: of the files' contents only every `parts`-th is read, from this one on: processes share the work.
        parts: see above.
    """
    try:
        listed = _listed(folder)
    except FileNotFoundError:
        return None
    except ValueError as error:
        return [f"{FILE} is damaged ({error})"]
    found = _files(folder)
    lines = [f"{name} is missing" for name in sorted(listed.keys() - found.keys())]
    lines += [f"{name} was not saved with it" for name in sorted(found.keys() - listed.keys()) if "/" in name]
    there = {name: found[name] for name in sorted(listed.keys() & found.keys(), key=lambda name: -listed[name][0])}
    cut = {name: info["size"] for name, info in there.items() if name != _METADATA and info["size"] != listed[name][0]}
    lines += [f"{name} has {size} bytes, saved were {listed[name][0]}" for name, size in cut.items()]
    mine = [name for name in there if name not in cut][part::parts]
    sums = _checksums(folder, {name: found[name] for name in mine})
    return lines + [f"{name} holds other bytes than were saved" for name in mine if sums[name] != listed[name][1]]


def metadata(folder: epath.Path, found: Sequence[str]) -> dict[str, Any]:
    """Read what the program that wrote the checkpoint says of it; {} where `found`, its problems, forbid trust."""
    if any(line.startswith(_METADATA) for line in found):
        return {}
    try:
        return json.loads((folder / _METADATA).read_bytes())["custom_metadata"] or {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def misleading(directory: epath.Path) -> list[epath.Path]:
    """List the checkpoints below `directory` whose metadata are not as saved: one may keep Orbax from opening any."""
    found = []
    for folder in directory.iterdir():
        with contextlib.suppress(OSError, ValueError, KeyError):
            if folder.name.isdigit() and _listed(folder)[_METADATA][1] != _told(folder / _METADATA):
                found.append(folder)
    return found


def set_aside(folder: epath.Path) -> str:
    """Take a damaged checkpoint out of the way, so that its step can be saved again. Returns where it is, or ""."""
    if storage.is_remote(folder):
        # Nothing can be renamed there, and copying may take hours: without its mark a save is one cut off.
        (folder / _MARK).unlink(missing_ok=True)
        return ""
    aside = folder.with_name(f"{folder.name}.damaged")
    if aside.exists():
        aside.rmtree()
    folder.rename(aside)
    return os.fspath(aside)


def _listed(folder: epath.Path) -> dict[str, list[Any]]:
    """{name: [bytes, CRC32C]}. Raises FileNotFoundError, or ValueError where it is not as it was written."""
    text = (folder / FILE).read_bytes()
    try:
        listed = json.loads(text)["files"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"no {error}") from error
    if text != _text(listed).encode():
        raise ValueError("its own checksum differs")
    return listed


def _text(listed: dict[str, list[Any]]) -> str:
    """One stable text: whoever reads it makes it again, and compares."""
    files = json.dumps(listed, sort_keys=True)
    return json.dumps({"files": listed, "self": _encode(google_crc32c.value(files.encode()))}, sort_keys=True, indent=0)


def _files(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """{name relative to `folder`: {"size": bytes, on gs:// "crc32c" too}}."""
    if storage.is_remote(folder):
        listed = storage.file_system(folder).find(os.fspath(folder), detail=True)
        root = os.fspath(folder).partition("://")[2].rstrip("/") + "/"
        pairs = ((name.removeprefix(root), info) for name, info in listed.items())
    else:
        pairs = ((os.fspath(path.relative_to(folder)), {"size": path.stat().st_size}) for path in _walk(Path(folder)))
    return {name: info for name, info in pairs if name not in (FILE, _MARK) and not _NOBODYS.search(name)}


def _walk(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names)


def _checksums(folder: epath.Path, files: dict[str, dict[str, Any]]) -> dict[str, str]:
    """{name: CRC32C in base64, as Google tells it}."""

    def one(name: str) -> str:
        if name == _METADATA:
            return _told(folder / name)
        return files[name].get("crc32c") or _read(folder / name)

    with futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="checksums") as pool:
        return dict(zip(files, pool.map(one, files), strict=True))


def _read(path: epath.Path) -> str:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = google_crc32c.extend(value, block)
    return _encode(value)


def _told(path: epath.Path) -> str:
    """Of the metadata without the time of the commit, or "" where they are no JSON with a time or none."""
    try:
        told = json.loads(path.read_bytes())
        at = told.pop(_COMMIT_TIME)
    except (ValueError, AttributeError, KeyError):
        return ""
    if not (at is None or (isinstance(at, int) and 10**18 <= at < 10**19)):
        return ""
    return _encode(google_crc32c.value(json.dumps(told, sort_keys=True).encode()))


def _encode(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()
