"""Files on Google Cloud Storage: how this program talks to `gs://`, and what its refusals mean.

All paths are `etils.epath.Path`, which reads and writes `gs://` through gcsfs; Orbax writes arrays through tensorstore;
array_record reads through Google's C++ client. Each retries 408, 429 and 5xx by itself, with growing pauses. Importing
this module sets what gcsfs does about silence and about listings; import it before the first `gs://` path is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

import aiohttp
import fsspec
from absl import logging
from etils import epath

T = TypeVar("T")
# Seconds before the second, third, … attempt to read: a server that restarts, or a network that comes back.
PAUSES = (1.0, 4.0, 15.0)
# Set where one thread gave up, until a read succeeds: the others wait no longer.
_GIVEN_UP = threading.Event()
# Their errors are of no common kind.
_LIBRARIES = frozenset({"aiohttp", "fsspec", "gcsfs", "google", "requests", "s3fs", "tensorstore", "urllib3"})
# Seconds without a byte until a request is given up and sent again; a long transfer that moves may take its time.
SILENCE_SECONDS = 60
# How tensorstore, array_record and gcsfs speak of a request, and what Google asks for it.
_VERBS = {"writing": "create", "reading": "get", "deleting": "delete", "listing": "list"}
_SPOKEN = re.compile(rf"({'|'.join(_VERBS)}) gs://([^/\s]+)/([^\s:;,]*)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL = re.compile(r"(upload/storage/v1/)?\bb/([^/?\s]+)(/o\b)?/?([^?\s]*)(?:\?\S*?\bname=([^&\s]+))?")


def _set_up() -> None:
    settings = fsspec.config.conf.setdefault("gcs", {})
    # gcsfs keeps listings for good, also of folders that another process or tensorstore writes to.
    settings.setdefault("use_listings_cache", False)
    settings.setdefault("requests_timeout", aiohttp.ClientTimeout(sock_connect=30, sock_read=SILENCE_SECONDS))


_set_up()


class StorageError(OSError):
    """Storage that did not answer, attempt after attempt; the message says what was asked of it."""


def is_trouble(error: BaseException) -> bool:
    """Tell trouble with storage (or its library) from a mistake of the program, and from errors of its own.

    array_record raises RuntimeError for all that goes wrong with a file, gcsfs and aiohttp kinds of their own.
    """
    library = type(error).__module__.partition(".")[0]
    bare = isinstance(error, (EOFError, RuntimeError)) and not isinstance(error, (NotImplementedError, RecursionError))
    return isinstance(error, OSError) or library in _LIBRARIES or (bare and library != "mser_jax")


def retried(read: Callable[[], T], what: str) -> T:
    """Read, again after each of PAUSES where the storage fails; the value of `read`.

    Raises:
        StorageError: the last attempt failed too, or it was refused; names `what`. Errors that are not the storage's,
            and a full disk, come as they are.
    """
    for attempt, pause in enumerate((*PAUSES, None), 1):
        try:
            value = read()
            if _GIVEN_UP.is_set():
                _GIVEN_UP.clear()
            return value
        except Exception as error:
            if not is_trouble(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            told = explain(error) or f"{type(error).__name__}: {str(error)[:300]}"
            if isinstance(error, (PermissionError, FileNotFoundError)):
                raise StorageError(f"{what} cannot be read: {told}") from error
            if "Corrupted Riegeli" in told:
                raise StorageError(
                    f"{what} cannot be read, its file is damaged: {told}. Delete the folder that it lies in (of a "
                    "corpus, of kept features, or of copies from gs://): it is made again"
                ) from error
            if pause is None or _GIVEN_UP.is_set():
                _GIVEN_UP.set()
                raise StorageError(f"{what} cannot be read, {attempt} attempts: {told}") from error
            logging.warning("%s: attempt %d failed, the next in %g s: %s", what, attempt, pause, told)
        _GIVEN_UP.wait(pause)
    raise AssertionError("unreachable")


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` lies on Google Cloud Storage."""
    return os.fspath(path).startswith(("gs://", "gcs://"))


def absolute(path: epath.PathLike) -> epath.Path:
    """Make a path that a person gave absolute: relative to the working directory, `~` is a home, `..` goes up.

    Links stay as they are named, except before a `..`, which goes up from where they point. URLs such as gs://… are
    absolute already.

    Raises:
        ValueError: the path is empty, or a URL of a storage that there is not.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("an empty path")
    if scheme := _SCHEME.match(text):
        try:
            return epath.Path("gs" + text.removeprefix("gcs") if text.startswith("gcs://") else text)
        except (KeyError, ImportError) as error:
            raise ValueError(f"{text!r}: expected a folder or gs://…, there is no storage {scheme[0]}") from error
    given = pathlib.Path(text)
    with contextlib.suppress(RuntimeError):  # "~a.wav" is a file where nobody is called that
        given = given.expanduser()
    given = given.absolute()
    if ".." in given.parts:
        after = given.parts[::-1].index("..")
        above, below = given.parts[: len(given.parts) - after], given.parts[len(given.parts) - after :]
        given = pathlib.Path(*above).resolve().joinpath(*below)
    return epath.Path(given)


def file_system(path: epath.PathLike) -> fsspec.AbstractFileSystem:
    """The file system that epath uses for the `gs://` path."""
    del path
    return fsspec.filesystem("gcs", finalize_on_close=True)


def create(path: epath.Path, text: str) -> bool:
    """Writes a file that is not there yet; False where it is.

    Of several processes that try, each with a `text` of its own, one gets True.
    """
    if is_remote(path):
        try:
            # The request carries ifGenerationMatch=0: Google refuses it when there is such an object.
            file_system(path).pipe_file(os.fspath(path), text.encode(), mode="create")
        except FileExistsError:
            # Refused may be the second sending of a request whose first was done and not answered.
            return path.read_text() == text
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(os.fspath(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return True


def replace(path: epath.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, over one that is there."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)  # an object appears when it is complete
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    part.write_bytes(data)
    part.replace(path)


def check(folder: epath.PathLike) -> None:
    """Writes, reads, lists and deletes a small object below `folder`: all that a run does there.

    A local folder is made where it is missing.

    Raises:
        PermissionError: one of them was refused; the message names the permission and how to grant it, or what of a
            local folder is wrong (a file lies there, no room, read-only, …).
    """
    path = absolute(folder) / f".check-{uuid.uuid4().hex[:8]}"
    if not is_remote(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("mser_jax")
            path.unlink()
        except OSError as error:
            raise PermissionError(f"nothing can be written to {path.parent}: {error.strerror or error}") from error
        return
    attempts = {
        "storage.objects.create": lambda: path.write_text("mser_jax"),
        "storage.objects.get": path.read_text,
        "storage.objects.list": lambda: list(path.parent.iterdir()),
        "storage.objects.delete": path.unlink,
    }
    for permission, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            raise PermissionError(explain(error, permission) or f"{folder}: {permission}: {error}") from error


def explain(error: BaseException, permission: str = "") -> str:
    """What a refusal by Google Cloud Storage (403) means and what to do about it; '' for any other error.

    Args:
        error: as it was caught; those that it came from are read too.
        permission: what was asked for, where the caller knows; else what Google says, or what the request looks like.
    """
    for text in map(str, _chain(error)):
        if text.startswith("Google Cloud Storage refuses"):
            return text
        if not re.search(r"Forbidden: |PERMISSION_DENIED|gs://.*\b403\b|\b403\b.*gs://", text):
            continue
        spoken, url = _SPOKEN.search(text), _URL.search(text)
        if spoken:
            bucket, path, guess = spoken[2], spoken[3], f"storage.objects.{_VERBS[spoken[1]]}"
        elif url:
            bucket, path, guess = url[2], urllib.parse.unquote(url[5] or url[4]), f"storage.{_wanted(url)}"
        else:
            continue
        told = re.search(r"(\S+@\S+)?.{0,40}\b(storage\.(?:objects|buckets)\.\w+)", text)
        who = (told and told[1]) or "ACCOUNT"
        permission = permission or (told[2] if told else guess)
        role = "legacyBucketReader" if permission.startswith("storage.buckets") else "objectUser"
        return (
            f"Google Cloud Storage refuses gs://{bucket}/{path} (403): {who if told and told[1] else 'this account'} "
            f"lacks the permission {permission} on bucket {bucket}. Grant it: gcloud storage buckets "
            f"add-iam-policy-binding gs://{bucket} --member=serviceAccount:{who} --role=roles/storage.{role}. On a TPU "
            "VM or on GKE it is the service account of the machine or pod, whose access scopes must include "
            "cloud-platform"
        )
    return ""


def _wanted(url: re.Match[str]) -> str:
    upload, _, objects, path, _ = url.groups()
    return "objects.create" if upload else "objects.get" if path else "objects.list" if objects else "buckets.get"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
