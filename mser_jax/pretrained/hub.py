"""Names of pretrained models → directories on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mser_jax.pretrained import files
from mser_jax.pretrained.keymap import PretrainedError

# Configs, safetensors and tokenizers; no pickles, no other frameworks' weights.
_WANTED = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja"]
_UNWANTED = ["*/*"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def resolve(name: str | Path) -> Path:
    """The directory of a model: `name` itself, or what the Hugging Face hub has under the id `name`.

    A hub id is "owner/model", or "owner/model@revision" (branch, tag, commit). What is in huggingface_hub's cache
    ($HF_HOME) is used without asking the network, so a cached model works offline and does not change by itself.

    Raises:
        PretrainedError: neither a directory, nor cached, nor to be had from the hub.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(str(name)):
        raise PretrainedError(
            f"{name}: no such directory, and no hub id (owner/model) either. Give a local directory in Hugging Face "
            "format (config.json, model.safetensors); copy remote ones (gs://…) to a local disk first."
        )
    repo, _, revision = str(name).partition("@")
    cached = _snapshot(repo, revision, local_files_only=True)
    if cached is not None:
        return cached
    try:
        fetched = _snapshot(repo, revision, local_files_only=False)
    except GatedRepoError as error:
        raise PretrainedError(
            f"{name} is gated: accept its terms on the hub, then `hf auth login`. ({error})"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PretrainedError(f"{name}: the hub has no such model, or not for you. ({error})") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise PretrainedError(
            f"{name}: no such directory, not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}), and the hub "
            f"cannot be reached ({type(error).__name__}: {str(error).splitlines()[0]}). On a machine with a network "
            f"run `hf download {repo}`, copy the directory that it prints here, and give that."
        ) from None
    if fetched is None:
        raise PretrainedError(f"{name}: the hub's copy has no config.json with {files.WEIGHTS} or {files.INDEX}")
    return fetched


def _snapshot(repo: str, revision: str, *, local_files_only: bool) -> Path | None:
    """The snapshot's directory; None where it is not (wholly) cached."""
    try:
        path = Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
                local_files_only=local_files_only,
            )
        )
    except LocalEntryNotFoundError:
        if local_files_only:
            return None
        raise
    # A snapshot exists as soon as one file of it was fetched, by a tokenizer for instance.
    try:
        files.weight_files(path)
    except PretrainedError:
        if not local_files_only:
            raise
        return None
    return path if (path / files.CONFIG).exists() else None
