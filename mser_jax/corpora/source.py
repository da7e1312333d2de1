"""The original download of a corpus, as its owners ship it: a folder, an archive, or a folder of archives.

On `gs://` all of it is copied to this host first, many files at once: read one by one, a corpus of small recordings
would take a request's time each, and some builders look at files more than once.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

from mser_jax import storage

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Nothing in the standard library reads these.
OTHER_ARCHIVES = (".rar", ".7z")
# What Mac's and Windows' file managers leave in folders and archives.
_LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")


@contextlib.contextmanager
def opened(source: epath.PathLike, scratch: epath.PathLike, *, nested: bool = True) -> Iterator[epath.Path]:
    """The folder with the files of `source`; what is unpacked or copied lies below `scratch` and is removed at the end.

    Args:
      source: a folder or an archive of ARCHIVES, local or `gs://`.
      scratch: a local folder (made if missing) with room for what is unpacked, and for a source on `gs://`.
      nested: also unpack archives that lie in a folder (owners often ship a folder of zips): then files are read from
        links to `source` and what was unpacked stands in a folder named like its archive, without the ending.

    Raises:
      FileNotFoundError: no such source.
      ValueError: an archive of a kind that Python cannot read, or one that is damaged (named).
      OSError: no room to unpack or to copy.
    """
    path = epath.Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"source {os.fspath(source)!r}: no such folder or archive. Give the original download")
    remote = storage.is_remote(path)
    if path.is_dir() and not remote and not (nested and _archives(path)):
        yield path
        return
    Path(scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unpacked.", dir=scratch) as folder:
        if path.is_dir() and remote:
            _copy(path, Path(folder))
        elif path.is_dir():
            _link(path, Path(folder))
        else:
            unpack(path, Path(folder))
        while nested and (found := _archives(epath.Path(folder))):
            for archive in found:
                unpack(archive, Path(_stem(archive)))
                archive.unlink()
        yield epath.Path(folder)


def files(folder: epath.Path, suffixes: Sequence[str]) -> list[epath.Path]:
    """All files below `folder` that end in one of `suffixes` (any case), in the order of their relative paths."""
    found = []
    # Names are the same in any order of the file system; parts are compared, as "a/b" should come before "a-b".
    for path in walk(folder):
        if path.name.lower().endswith(tuple(suffixes)):
            found.append((path.relative_to(folder).parts, path))
    return [path for _, path in sorted(found, key=lambda pair: pair[0])]


def walk(folder: epath.Path) -> Iterator[epath.Path]:
    """Every file below `folder`, following links, without what file managers leave behind."""
    if storage.is_remote(folder):
        names = storage.file_system(folder).find(os.fspath(folder))
        paths = [epath.Path(f"gs://{name}") for name in names]
    else:
        paths = [
            epath.Path(parent) / name
            for parent, _, names in os.walk(os.fspath(folder), followlinks=True)
            for name in names
        ]
    for path in paths:
        parts = path.relative_to(folder).parts
        if not (path.name.startswith("._") or set(parts) & set(_LITTER)):
            yield path


def find(folder: epath.Path, ending: str) -> epath.Path:
    """The first file below `folder` whose path ends in `ending` (whole parts: "Labels/a.csv").

    Raises:
      FileNotFoundError: none does.
    """
    found = sorted(path for path in walk(folder) if os.fspath(path).endswith(f"/{ending}"))
    if not found:
        raise FileNotFoundError(f"{folder}: no {ending} in it, and without it nothing is known of the recordings")
    return found[0]


def rows(path: epath.Path, delimiter: str = ",") -> Iterator[dict[str, str]]:
    """The lines of a table, one by one: UTF-8, the first line names the columns, no quotes between tabs."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    with path.open("r", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file, delimiter=delimiter, quoting=quoting)


def text(path: epath.Path, *encodings: str) -> str:
    """A text file that does not say how it is encoded: UTF-16 where it begins with that byte order mark, else the first
    of UTF-8, `encodings` and Latin-1 in which it is valid.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    for encoding in ("utf-8-sig", *encodings):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode("latin-1")


def unpack(archive: epath.Path, folder: Path) -> None:
    """Unpacks one archive into `folder`; a member that would land outside is refused.

    Raises:
      ValueError: not an archive Python reads, or damaged.
      OSError: no room for it.
    """
    name = os.fspath(archive)
    if name.lower().endswith(OTHER_ARCHIVES):
        raise ValueError(f"{name}: unpack it yourself (bsdtar -xf, 7z x or unrar x) and give the folder as the source")
    if not name.lower().endswith(ARCHIVES):
        raise ValueError(f"{name}: expected a folder or an archive ({', '.join(ARCHIVES)})")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"unpacking {name}", file=sys.stderr, flush=True)
    try:
        with _local(archive, folder) as path:
            if name.lower().endswith(".zip"):
                with zipfile.ZipFile(path) as file:
                    _room(folder, sum(member.file_size for member in file.infolist()), name)
                    file.extractall(folder)
            else:
                with tarfile.open(path) as file:
                    file.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name}: damaged archive ({error}). Download it again") from error


@contextlib.contextmanager
def _local(path: epath.Path, folder: Path) -> Iterator[str]:
    """The path of a local file, of one on `gs://` that of a copy below `folder` that is removed afterwards."""
    if not storage.is_remote(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        copy, files = Path(scratch) / path.name, storage.file_system(path)
        _room(folder, files.info(os.fspath(path))["size"], os.fspath(path), "copied")
        files.get_file(os.fspath(path), os.fspath(copy))
        yield os.fspath(copy)


def _copy(source: epath.Path, folder: Path) -> None:
    """The files of a folder on `gs://` below `folder`, many at once."""
    file_system = storage.file_system(source)
    found = file_system.find(os.fspath(source), detail=True)
    remote = [path for path in walk(source) if not os.fspath(path).endswith("/")]
    size = sum(info["size"] for info in found.values())
    _room(folder, size, os.fspath(source), "copied")
    print(
        f"copying {len(remote)} files ({size / 2**30:.2f} GiB) from {source} to {folder}", file=sys.stderr, flush=True
    )
    local = [folder / path.relative_to(source) for path in remote]
    for parent in {path.parent for path in local}:
        parent.mkdir(parents=True, exist_ok=True)
    file_system.get([os.fspath(path) for path in remote], [os.fspath(path) for path in local])


def _room(folder: Path, needed: int, name: str, how: str = "unpacked") -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{name}: needs {needed / 2**30:.1f} GiB {how}, {free / 2**30:.1f} GiB are free at {folder}")


def _archives(folder: epath.Path) -> list[epath.Path]:
    return files(folder, ARCHIVES)


def _stem(archive: epath.Path) -> str:
    name = os.fspath(archive)
    ending = max((ending for ending in ARCHIVES if name.lower().endswith(ending)), key=len)
    return name[: -len(ending)]


def _link(source: epath.Path, folder: Path) -> None:
    """A tree of links to the files of `source`: archives can be replaced in it by what they hold."""
    for path in walk(source):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Path(path).absolute())
