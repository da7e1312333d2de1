"""The original download of a corpus, as its owners ship it: a folder, an archive, or a folder of archives.

On `gs://` all of it is copied to this host first, many files at once: read one by one, a corpus of small recordings
would take a request's time each, and some builders look at files more than once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from mser_jax import storage
from mser_jax.corpora import archives, scratch

# What Mac's and Windows' file managers, git and file systems leave in folders and archives.
_LITTER = {"__MACOSX", ".DS_Store", "Thumbs.db", ".git", "lost+found"}
# What a corpus that was built holds (by that it is told from a source), should one be built into its own source.
_BUILT = {"index.parquet", "dataset_info.json"}
_PRINT_BYTES = 1 << 20  # of the beginning and the end of an archive; a zip's checksums are at the end


@contextlib.contextmanager
def opened(source: epath.PathLike, parent: epath.PathLike, *, nested: bool = True) -> Iterator[epath.Path]:
    """The folder with the files of `source`; what is unpacked or copied lies below `parent` and is removed at the end.

    Args:
      source: a folder or an archive, local or `gs://`.
      parent: a local folder (made if missing) with room for what is unpacked, and for a source on `gs://`.
      nested: also unpack archives that lie in a folder (owners often ship a folder of zips): then files are read from
        links to `source` and what was unpacked stands in a folder named like its archive, without the ending.

    Raises:
      FileNotFoundError: no such source.
      ArchiveError: as archives.unpack; or more than archives.MAX_DEPTH archives in each other.
      OSError: no room to unpack or to copy.
    """
    path = existing(source)
    remote, is_folder = storage.is_remote(path), path.is_dir()
    if is_folder and not remote and not (nested and _archives(path)):
        yield path
        return
    with scratch.folder(Path(parent)) as folder:
        depth = 0 if is_folder else 1
        if is_folder:
            (_copy if remote else _link)(path, folder)
            budget = archives.Budget(folder)
        else:
            with _local(path, folder) as archive:
                budget = archives.Budget(folder)
                archives.unpack(archive, folder, budget, os.fspath(path))
        while nested and (found := _archives(epath.Path(folder))):
            depth += 1
            if depth > archives.MAX_DEPTH:
                raise archives.ArchiveError(
                    f"{path}: more than {archives.MAX_DEPTH} archives in each other, the innermost"
                    f" {found[0].relative_to(folder)}. Unpack it yourself and give the folder as the source"
                )
            for archive in map(Path, found):
                _unpack_in_place(archive, folder, budget, os.fspath(path))
        yield epath.Path(folder)


def existing(source: epath.PathLike) -> epath.Path:
    """Return the path of `source`. FileNotFoundError: there is none. ValueError: a device or a pipe."""
    path = storage.absolute(source)
    if not path.exists():
        raise FileNotFoundError(f"source {os.fspath(source)!r}: no such folder or archive. Give the original download")
    if not (storage.is_remote(path) or path.is_dir() or Path(path).is_file()):  # epath's is_file says "no folder"
        raise ValueError(f"source {os.fspath(source)!r}: neither a folder nor a file. Give the original download")
    return path


def fingerprint(source: epath.PathLike) -> dict[str, Any]:
    """Compute what tells a source from another without reading all of it.

    path: absolute. files, bytes: their number and size. names: hash over the path and size of each file; of an archive
    over its beginning and its end.

    Raises:
      FileNotFoundError: no such source.
    """
    path = existing(source)
    digest, sizes = hashlib.sha256(), []
    if path.is_dir():
        for relative, size in sorted(_sizes(path).items()):
            sizes.append(size)
            digest.update(os.fsencode(f"{relative}\0{size}\n"))
    elif storage.is_remote(path):
        info = storage.file_system(path).info(os.fspath(path))
        sizes.append(info["size"])
        digest.update(str(info.get("crc32c") or info.get("md5Hash")).encode())
    else:
        with path.open("rb") as file:
            sizes.append(file.seek(0, os.SEEK_END))
            for start in (0, max(0, sizes[0] - _PRINT_BYTES)):
                file.seek(start)
                digest.update(file.read(_PRINT_BYTES))
    return {
        "path": readable(path),
        "files": len(sizes),
        "bytes": sum(size for size in sizes if size > 0),
        "names": digest.hexdigest()[:16],
    }


def _sizes(folder: epath.Path) -> dict[str, int]:
    """Size of each file by its path below `folder`, −1 of a link to nothing."""
    if storage.is_remote(folder):
        found = storage.file_system(folder).find(os.fspath(folder), detail=True)
        return {os.fspath(path.relative_to(folder)): found[os.fspath(path)[5:]]["size"] for path in walk(folder)}
    sizes = {}
    for path in walk(folder):
        try:
            sizes[os.fspath(path.relative_to(folder))] = Path(path).stat().st_size
        except OSError:
            sizes[os.fspath(path.relative_to(folder))] = -1
    return sizes


def is_same(source: epath.PathLike, built_from: Mapping[str, Any], found: Callable[[], Mapping[str, Any]]) -> bool:
    """Tell whether a source is the one of the fingerprint `built_from`; by its path where it is no longer there.

    found: its own fingerprint, asked for where it is there.
    """
    path = storage.absolute(source)
    if not path.exists():
        return readable(path) == built_from["path"]
    return all(built_from.get(key) == found()[key] for key in ("files", "bytes", "names"))


def describe(found: Mapping[str, Any]) -> str:
    """Describe a fingerprint for reading."""
    plural = "" if found["files"] == 1 else "s"
    return f"{found['path']} ({found['files']} file{plural}, {found['bytes'] / 2**20:.1f} MiB)"


def readable(path: epath.PathLike) -> str:
    """Write a path for texts: bytes of it that are not UTF-8 as \\x.."""
    return os.fsencode(path).decode(errors="backslashreplace")


def files(folder: epath.Path, suffixes: Sequence[str]) -> list[epath.Path]:
    """All files below `folder` that end in one of `suffixes` (any case), in the order of their relative paths."""
    found = []
    # Names are the same in any order of the file system; parts are compared, as "a/b" should come before "a-b".
    for path in walk(folder):
        if path.name.lower().endswith(tuple(suffixes)):
            found.append((path.relative_to(folder).parts, path))
    return [path for _, path in sorted(found, key=lambda pair: pair[0])]


def unread(folder: epath.Path) -> list[str]:
    """List the archives below `folder` that Python cannot read, and parts of split ones."""
    return sorted(readable(path.relative_to(folder)) for path in walk(folder) if archives.UNREADABLE.search(path.name))


def walk(folder: epath.Path) -> Iterator[epath.Path]:
    """Every file below `folder`, following links, without what file managers leave behind.

    A folder that several links lead to is entered once: under its own name where it has one here.

    Raises:
      OSError: a folder that may not be read.
    """
    if storage.is_remote(folder):
        names = storage.file_system(folder).find(os.fspath(folder))
        paths = (epath.Path(f"gs://{name}") for name in names)
    else:
        paths = (epath.Path(path) for path in _walk_local(os.fspath(folder)))
    for path in paths:
        parts = path.relative_to(folder).parts
        if not (path.name.startswith("._") or _LITTER.intersection(parts)):
            yield path


def _walk_local(root: str) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise error

    # A link to the source, or to what it lies in, goes round.
    above = {_identity(os.fspath(parent)) for parent in Path(root).resolve().parents}
    seen, pending = above, [root]
    while pending:
        links = []
        start = pending.pop(0)
        if _identity(start) in seen:
            continue
        for parent, folders, names in os.walk(start, onerror=stop):
            seen.add(_identity(parent))
            if set(names) >= _BUILT:
                folders.clear()
                continue
            paths = {name: f"{parent}/{name}" for name in sorted(folders)}
            links += [path for path in paths.values() if Path(path).is_symlink()]
            folders[:] = [
                name for name, path in paths.items()
                if name not in _LITTER and not scratch.NAMES.match(name)
                and not Path(path).is_symlink() and _identity(path) not in seen
            ]  # fmt: skip
            yield from (f"{parent}/{name}" for name in names)
        pending += links


def _identity(path: str) -> tuple[int, int]:
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def find(folder: epath.Path, ending: str) -> epath.Path:
    """The first file below `folder` whose path ends in `ending` (whole parts: "Labels/a.csv").

    Raises:
      FileNotFoundError: none does.
    """
    found = sorted(path for path in walk(folder) if os.fspath(path).endswith(f"/{ending}"))
    if not found:
        raise FileNotFoundError(f"{folder}: no {ending} in it, and without it nothing is known of the recordings")
    return found[0]


def _unpack_in_place(archive: Path, folder: Path, budget: archives.Budget, source: str) -> None:
    """Replaces an archive below `folder`, or the link to it, by what it holds."""
    is_link = archive.is_symlink()
    path = archive.readlink() if is_link else archive
    name = readable(path) if is_link else f"{source}: {readable(archive.relative_to(folder))}"
    target = Path(_stem(archive))
    # Never into a folder that is there: its files may be links to the source's own.
    for number in itertools.count(1):
        if not target.exists():
            break
        target = archive.parent / f"again{number}" / target.name
    size = archive.stat().st_size
    archives.unpack(os.fspath(path), target, budget, name)
    archive.unlink()
    if not is_link:
        budget.give_back(size)


@contextlib.contextmanager
def _local(path: epath.Path, folder: Path) -> Iterator[str]:
    """The path of a local file, of one on `gs://` that of a copy below `folder` that is removed afterwards."""
    if not storage.is_remote(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        copy, files = Path(scratch) / path.name, storage.file_system(path)
        _room(folder, files.info(os.fspath(path))["size"], os.fspath(path))
        files.get_file(os.fspath(path), os.fspath(copy))
        yield os.fspath(copy)


def _copy(source: epath.Path, folder: Path) -> None:
    """The files of a folder on `gs://` below `folder`, many at once."""
    file_system = storage.file_system(source)
    found = file_system.find(os.fspath(source), detail=True)
    remote = [path for path in walk(source) if not os.fspath(path).endswith("/")]
    size = sum(info["size"] for info in found.values())
    _room(folder, size, os.fspath(source))
    print(
        f"copying {len(remote)} files ({size / 2**30:.2f} GiB) from {source} to {folder}", file=sys.stderr, flush=True
    )
    local = [folder / path.relative_to(source) for path in remote]
    for parent in {path.parent for path in local}:
        parent.mkdir(parents=True, exist_ok=True)
    file_system.get([os.fspath(path) for path in remote], [os.fspath(path) for path in local])


def _room(folder: Path, needed: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{name}: needs {needed / 2**30:.1f} GiB copied, {free / 2**30:.1f} GiB are free at {folder}")


def _archives(folder: epath.Path) -> list[epath.Path]:
    # Of a link to nothing the error is told when it is opened; a named pipe would never end.
    paths = files(folder, archives.ENDINGS)
    return [path for path in paths if storage.is_remote(path) or Path(path).is_file() or not Path(path).exists()]


def _stem(archive: Path) -> str:
    name = os.fspath(archive)
    ending = max((ending for ending in archives.ENDINGS if name.lower().endswith(ending)), key=len)
    return name[: -len(ending)]


def _link(source: epath.Path, folder: Path) -> None:
    """A tree of links to the files of `source`: archives can be replaced in it by what they hold."""
    for path in list(walk(source)):  # not while it grows: `folder` may lie in `source`
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path(path).absolute())
