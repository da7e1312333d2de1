"""From a path as a manifest names it to a file of its folder: slashes, Unicode forms, and paths that lead out."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import functools
import os
import posixpath
import re
import stat
import unicodedata
from pathlib import Path
from typing import Any

from etils import epath

from mser_jax import storage
from mser_jax.corpora import record

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_MOST_COMPARED = 20  # names of missing files that are compared with all names of their folder: it is slow
_SHOWN = 200  # characters of a path in a message


class OutsideError(ValueError):
    """A path leads out of the folder. place: the folder that it leads to."""

    def __init__(self, text: str, place: str):
        super().__init__(f"path {text[:_SHOWN]!r} leads out of the folder")
        self.place = place


@dataclasses.dataclass(frozen=True)
class File:
    """A recording of a folder.

    path: where it lies. id: its path in the folder, with "/" and in Unicode's composed form; the same on any system.
    stamp: what changes when it is written again (a local file: size, mtime, ctime in ns, inode; on gs:// the object's
      checksum); () where it is no file.
    missing: why there is no such file, "" where there is.
    """

    path: str
    id: str
    stamp: tuple[int | str, ...]
    missing: str = ""


class Folder:
    """Finds the files of one folder; what it has listed is remembered."""

    def __init__(self, folder: epath.PathLike, outside: str = ""):
        """`outside`: a folder elsewhere whose recordings may be named too, "" = none.

        Raises:
          FileNotFoundError: `outside` is not there.
        """
        self.given = os.fspath(storage.absolute(folder))
        self.path = epath.Path(_real(self.given))
        self._roots = [os.fspath(self.path)]
        if outside:
            self._roots.append(_real(os.fspath(storage.absolute(outside))))
            if not epath.Path(self._roots[1]).is_dir():
                raise FileNotFoundError(f"outside={outside}: no such folder")
        self._parents: dict[str, str] = {}
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._compared = 0

    def find(self, text: str) -> File:
        """Return the file that a manifest calls `text`.

        Backslashes are slashes where no file has them in its name; Unicode's forms (NFC, NFD) are the same name; case
        is not, but the message for a missing file tells the nearest name.

        Raises:
          OutsideError: it leads out of the folder, by itself or over a link.
          ValueError: it is no path of this system.
          OSError: the storage does not answer.
        """
        self._check(text)
        whole = self._whole(text)
        if whole == os.fspath(self.path):
            raise ValueError(f"path {text!r} is the folder itself, expected a recording in it")
        candidates = [whole] + ([self._whole(text.replace("\\", "/"))] if "\\" in text else [])
        for path in candidates:
            if (found := self._look(path, text)) is not None:
                return found
        root = self._root_of(candidates[-1])
        if root is None:
            raise OutsideError(text, posixpath.dirname(whole))
        other, nearest = self._search(root, candidates[-1])
        if other and (found := self._look(other, text)) is not None:
            return found
        detail = "no such file" + (f"; there is {record.storable(nearest)!r}" if nearest else "")
        return File(whole, self._id(candidates[-1]), (), detail)

    def _check(self, text: str) -> None:
        if match := _CONTROL.search(text):
            raise ValueError(f"path {text[:_SHOWN]!r} holds the control character {match[0]!r}")
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            raise ValueError(
                f"path {text[:_SHOWN]!r} holds half of a surrogate pair; it is no name of a file"
            ) from None
        if _DRIVE.match(text) and not posixpath.lexists(posixpath.join(self.given, text)):
            raise ValueError(f"path {text[:_SHOWN]!r} is one of Windows; write it relative to the folder, with '/'")
        if (match := _URL.match(text)) and not storage.is_remote(text):
            raise ValueError(f"path {text[:_SHOWN]!r}: nothing is read from {match[0]}; copy the recording first")

    def _whole(self, text: str) -> str:
        """Absolute, without "." and ".."."""
        base = os.fspath(self.path).rstrip("/")
        if storage.is_remote(text):
            return _normal(text)
        if not text.startswith("/"):
            return _normal(f"{base}/{text}")
        path = f"/{posixpath.normpath(text).lstrip('/')}"
        # The folder as it was given may be a link to where it is.
        given = self.given.rstrip("/")
        return base + path[len(given) :] if path.startswith(f"{given}/") else path

    def _root_of(self, path: str) -> str | None:
        return next((root for root in self._roots if path.startswith(f"{root.rstrip('/')}/")), None)

    def _look(self, path: str, text: str) -> File | None:
        """The file at a path, None where there is none."""
        if storage.is_remote(path):
            if self._root_of(path) is None:
                raise OutsideError(text, posixpath.dirname(path))
            found = self._objects.get(path)
            return found and File(path, self._id(path), (str(found.get("crc32c") or found.get("md5Hash")),))
        try:
            parent, _, name = path.rpartition("/")
            if (real := self._parents.get(parent)) is None:
                real = self._parents[parent] = posixpath.realpath(parent or "/").rstrip("/")
            real = f"{real}/{name}"
            state = os.lstat(path)
            if stat.S_ISLNK(state.st_mode):
                real, state = posixpath.realpath(path), Path(path).stat()
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return None
        if self._root_of(real) is None:
            raise OutsideError(text, posixpath.dirname(real))
        stamp = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
        return File(path, self._id(path), stamp if stat.S_ISREG(state.st_mode) else ())

    def _id(self, path: str) -> str:
        path = path.removeprefix(f"{self._roots[0].rstrip('/')}/")
        return path if path.isascii() else unicodedata.normalize("NFC", record.storable(path))

    def _search(self, root: str, path: str) -> tuple[str, str]:
        """The one path below `root` that differs in its Unicode form only, and else the nearest name; "" where none."""
        parts, current = path[len(root) :].strip("/").split("/"), root.rstrip("/")
        for depth, part in enumerate(parts):
            names = self._names(current)
            same = names.get(unicodedata.normalize("NFC", part), ())
            if len(same) != 1:
                near = self._nearest(part, names)
                return "", "/".join([*parts[:depth], near]) if near else ""
            current = f"{current}/{same[0]}"
        return current, ""

    def _names(self, folder: str) -> dict[str, list[str]]:
        """The names in a folder by their composed form."""
        if folder in self._listed:
            return self._listed[folder]
        found = self._listed[folder] = {}
        if storage.is_remote(folder):
            start = f"{folder}/"
            below = (path[len(start) :] for path in self._objects if path.startswith(start))
            names = sorted({path.partition("/")[0] for path in below})
        else:
            try:
                names = [entry.name for entry in os.scandir(folder)]
            except OSError:
                names = []
        for name in names:
            found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
        return found

    def _nearest(self, name: str, names: dict[str, list[str]]) -> str:
        for other in names:
            if other.casefold() == unicodedata.normalize("NFC", name).casefold():
                return other
        self._compared += 1
        few = self._compared <= _MOST_COMPARED
        return next(iter(difflib.get_close_matches(name[:255], list(names)[:5000], n=1)), "") if few else ""

    @functools.cached_property
    def _objects(self) -> dict[str, dict[str, Any]]:
        """Every object below the roots on gs://: one listing, as a request a file would take hours."""
        found = {}
        for root in filter(storage.is_remote, self._roots):
            for name, info in storage.file_system(root).find(root, detail=True).items():
                found[f"gs://{name}"] = info
        return found


def _real(path: str) -> str:
    return path if storage.is_remote(path) else posixpath.realpath(path)


def _normal(path: str) -> str:
    if storage.is_remote(path):
        return f"gs://{posixpath.normpath(path.partition('://')[2])}"
    return posixpath.normpath(path)
