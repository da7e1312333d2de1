"""Names of pretrained models → directories on this machine."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
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
    try:
        cached = _snapshot(repo, revision, local_files_only=True)
    except HFValidationError as error:
        raise PretrainedError(f"{name}: no such directory, and no hub id either: {error}") from None
    if cached is not None and _is_whole(cached):
        return cached
    try:
        fetched = _snapshot(repo, revision, local_files_only=False)
    except GatedRepoError as error:
        raise PretrainedError(
            f"{name} is gated: accept its terms on the hub, then `hf auth login`. ({error})"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise PretrainedError(f"{name}: the hub has no such model, or not for you. ({error})") from None
    except (HfHubHTTPError, OSError) as error:  # OSError: no connection
        raise PretrainedError(
            f"{name}: no such directory, not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}), and the hub "
            f"cannot be reached ({type(error).__name__}: {str(error).splitlines()[0]}). {_hint(repo)}"
        ) from None
    files.refuse_adapters(fetched)
    # Without a network, huggingface_hub returns what part it has.
    if not _is_whole(fetched):
        raise PretrainedError(
            f"{name}: no such directory, and its copy in the cache, {fetched}, lacks {files.CONFIG}, {files.WEIGHTS} "
            f"or some of its shards. Either the hub has no safetensors of it, or it cannot be reached. {_hint(repo)}"
        )
    return fetched


def _hint(repo: str) -> str:
    return (
        f"On a machine with a network run `hf download {repo}`, copy the directory that it prints here, and give that."
    )


def _is_whole(directory: Path) -> bool:
    """A snapshot is there as soon as one file of it was fetched, by a tokenizer for instance."""
    try:
        return bool(files.weight_files(directory)) and (directory / files.CONFIG).exists()
    except PretrainedError:
        return False


def _snapshot(repo: str, revision: str, *, local_files_only: bool) -> Path | None:
    """The snapshot's directory, whatever is in it; None where nothing is."""
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
            local_files_only=local_files_only,
        )
    except LocalEntryNotFoundError:
        if local_files_only:
            return None
        raise
    return Path(snapshot)
