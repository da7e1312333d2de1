"""Archives, unpacked whole or not at all: every byte is read, to the checksum where there is one.

tarfile ends without a word at a header that is cut off or damaged, and does not read what follows the last member; the
checksum of a tar.gz is there. So members are copied here, one by one, and the end is looked at.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import posixpath
import re
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
# What Python does not read: other formats, and parts of an archive that was split.
UNREADABLE = re.compile(r"\.(rar|7z|zst|tzst|arj|cab|lz4?|ace|z\d\d|r\d\d|(zip|7z|tar|tgz|gz|rar)\.(part)?\d+)$", re.I)
MAX_DEPTH = 4  # of archives in archives; owners ship two, zip bombs any number
BLOCK = 1 << 20  # bytes read at a time
_CLUSTER = 4096  # bytes that the smallest file takes on most disks

_STREAMS: dict[bytes, Callable[[str, str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
_FOREIGN = {b"Rar!": "a RAR archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"\x28\xb5\x2f\xfd": "zstd"}
# Methods of compression in a zip that Python lacks, by their number.
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES"}
_EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
_MAX_FOLDERS = 100  # in each other, in one archive
_BY_HAND = "unpack it yourself (bsdtar -xf, 7z x or unrar x) and give the folder as the source"
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, struct.error, RuntimeError),
    *(ValueError, LookupError, ArithmeticError, TypeError, AttributeError),
)


class ArchiveError(ValueError):
    """An archive that cannot be unpacked whole; names it and says what to do."""


class NoRoomError(OSError):
    """The disk cannot hold what an archive unpacks to."""


class Budget:
    """Room that is left for what is unpacked.

    Sizes that archives state are taken before anything is written, and copying stops where a member is longer.
    """

    def __init__(self, folder: Path):
        """folder: on the disk that is written to."""
        self._folder = folder
        self._free = shutil.disk_usage(folder).free
        self._taken = 0

    def take(self, sizes: Iterable[int], name: str) -> None:
        """Reserve room for files of `sizes` bytes.

        Raises:
          NoRoomError: there is not that much; names the archive `name`.
        """
        self._taken += sum(-(-max(1, size) // _CLUSTER) * _CLUSTER for size in sizes)
        if self._taken > self._free:
            raise NoRoomError(
                f"{name}: needs at least {_in_words(self._taken)} unpacked, {_in_words(self._free)} are free at"
                f" {self._folder.parent}. Make room, or give another --data_dir"
            )

    def give_back(self, size: int) -> None:
        """Free what a file of `size` bytes took, as it was removed."""
        self._taken -= size


def _in_words(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def unpack(path: str, folder: Path, budget: Budget, name: str) -> None:
    """Unpack the archive `path` (local) into `folder`, by its content and not by its ending. `name`: for messages.

    Links among the members become the files they stand for.

    Raises:
      ArchiveError: no archive that Python reads, damaged, cut off, split, encrypted, empty, or with a member that is a
        device or would land outside.
      NoRoomError: more than the disk holds.
      OSError: it cannot be read.
    """
    print(f"unpacking {name}", file=sys.stderr, flush=True)
    try:
        opener = _opener(path, name)
        folder.mkdir(parents=True, exist_ok=True)
        count = _unzip(path, folder, budget, name) if opener is None else _untar(opener, path, folder, budget, name)
    except (ArchiveError, NoRoomError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomError(f"{name}: the disk is full at {folder}. Make room, or give another --data_dir") from error
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(name, error) from error  # gzip's and bz2's have no number; a place before the file's begin
    except _DAMAGE as error:
        raise _damaged(name, error) from error
    if not count:
        raise ArchiveError(f"{name}: an archive with no file in it. Download it again")


def _damaged(name: str, error: Exception) -> ArchiveError:
    text = " ".join(str(error).split()) or type(error).__name__
    return ArchiveError(f"{name}: damaged archive ({text}). Download it again")


def _opener(path: str, name: str) -> Callable[[str, str], Any] | None:
    """How to open the stream of a tar; None for a zip."""
    with open(path, "rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    for magic, opener in _STREAMS.items():
        if head.startswith(magic):
            return opener
    if _is_tar(head):
        return open
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")) or zipfile.is_zipfile(path):
        return None
    if not head:
        raise ArchiveError(f"{name}: empty (0 bytes). Download it again")
    if not head.strip(b"\0") and name.lower().endswith(".tar"):
        return open  # a tar of nothing
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ArchiveError(f"{name}: a pointer of Git LFS and not the archive. Run git lfs pull in its clone")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ArchiveError(f"{name}: a web page and not the archive, so the download failed. Download it again")
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise ArchiveError(f"{name}: {what}, which Python does not read: {_BY_HAND}")
    if UNREADABLE.search(name):
        raise ArchiveError(f"{name}: Python does not read it: {_BY_HAND}. Join the parts of a split archive first")
    if name.lower().endswith(ENDINGS):
        raise _damaged(name, ValueError(f"begins with {head[:8]!r}: neither zip nor tar"))
    raise ArchiveError(f"{name}: expected a folder or an archive ({', '.join(ENDINGS)})")


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class _Header(tarfile.TarInfo):
    """A tar's header, of which a damaged or missing one is an error and not the end, and a name has an end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the block of zeros that ends it
            raise
        except tarfile.HeaderError as error:
            cut = isinstance(error, tarfile.TruncatedHeaderError | tarfile.EmptyHeaderError)
            at = f"at byte {archive.offset} of the tar"
            raise tarfile.ReadError(f"cut off {at}" if cut else f"{error} {at}") from None

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # tarfile reads these whole: a few kilobytes of gzip can hold gigabytes of a name.
        if self.type in _EXTENSIONS and self.size > BLOCK:
            raise tarfile.ReadError(f"a name of {self.size} bytes")
        return super()._proc_member(archive)


def _untar(opener: Callable[[str, str], Any], path: str, folder: Path, budget: Budget, name: str) -> int:
    """Unpacks a tar; returns the number of files."""
    files: dict[str, Path] = {}
    links: list[tuple[str, str]] = []
    with opener(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as archive:
        for member in archive:
            inside = _inside(member.name, name)
            if member.isdir():
                (folder / inside).mkdir(parents=True, exist_ok=True)
            elif member.issym() or member.islnk():
                links.append((inside, _link_target(member, name)))
            elif member.isreg():
                budget.take([member.size], name)
                files[inside] = _write(archive.extractfile(member), folder / inside, member.size, name)
            elif member.type != b"V":  # the volume's label
                raise ArchiveError(f"{name}: {member.name!r} in it is a device, a pipe or part of a file")
        while block := stream.read(BLOCK):  # to the checksum
            if block.strip(b"\0"):
                raise ArchiveError(
                    f"{name}: more follows the end of the archive (several in one?). Unpack it yourself (tar -xif) and"
                    " give the folder as the source"
                )
    return len(files) + _resolve(links, files, folder)


def _link_target(member: tarfile.TarInfo, name: str) -> str:
    """The member that a link stands for."""
    if member.islnk():
        return _inside(member.linkname, name)
    if member.linkname.startswith("/"):
        raise ArchiveError(f"{name}: {member.name!r} in it is a link to {member.linkname!r}, outside of the archive")
    return _inside(posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname)), name)


def _resolve(links: list[tuple[str, str]], files: dict[str, Path], folder: Path) -> int:
    """Makes links to files, also over other links, the files; those to folders or to nothing are left out."""
    targets, made = dict(links), 0
    for link, target in links:
        for _ in range(len(links)):
            target = targets.get(target, target)
            if target in files:
                break
        if target in files and link not in files:
            (folder / link).parent.mkdir(parents=True, exist_ok=True)
            os.link(files[target], folder / link)
            made += 1
    return made


def _unzip(path: str, folder: Path, budget: Budget, name: str) -> int:
    """Unpacks a zip; returns the number of files."""
    stem = path[: -len(".zip")]
    if any(Path(stem + ending).exists() for ending in (".z01", ".Z01")):
        raise _split(name)
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        for member in archive.infolist():
            _inside(_zip_name(member), name)
        for member in members:
            if 0 < member.volume < 0xFFFF:
                raise _split(name)
            if member.flag_bits & 0x41:
                raise ArchiveError(f"{name}: encrypted ({member.filename!r}): {_BY_HAND}")
            if member.compress_type in _METHODS or member.compress_type > 14:
                method = _METHODS.get(member.compress_type, f"number {member.compress_type}")
                raise ArchiveError(f"{name}: compressed by {method}, which Python lacks: {_BY_HAND}")
        budget.take((member.file_size for member in members), name)
        for member in members:
            with archive.open(member) as stream:
                _write(stream, folder / _inside(_zip_name(member), name), member.file_size, name)
    return len(members)


def _split(name: str) -> ArchiveError:
    return ArchiveError(f"{name}: part of a split archive. Join all parts (zip -s 0 {name} --out whole.zip, or 7z x)")


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's path. Some programs on Windows write it with backslashes."""
    return member.filename.replace("\\", "/") if member.filename.isascii() else member.filename


def _inside(member: str, name: str) -> str:
    """The path of a member below the folder it is unpacked to."""
    parts = [part for part in member.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveError(f"{name}: {member!r} in it would land outside of the folder. Do not trust this archive")
    if len(parts) > _MAX_FOLDERS:
        raise ArchiveError(f"{name}: {len(parts)} folders in each other ({member[:40]!r}…). Do not trust this archive")
    return "/".join(parts)


def _write(stream: IO[bytes], target: Path, size: int, name: str) -> Path:
    """Copies a member of `size` bytes."""
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            while block := stream.read(BLOCK):
                written += len(block)
                if written > size:
                    raise _damaged(name, ValueError(f"{target.name!r} is longer than it says"))
                file.write(block)
    except OSError as error:
        if error.errno in (None, errno.ENOSPC, errno.EDQUOT):
            raise
        raise ArchiveError(f"{name}: {target.name!r} in it cannot be written: {error.strerror}") from error
    if written != size:
        raise _damaged(name, ValueError(f"{target.name!r}: {written} of {size} bytes"))
    return target
