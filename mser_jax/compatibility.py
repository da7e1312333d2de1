"""Compare a checkpoint with this program and this model, and name the differences."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mser_jax import config as config_lib

# Counts what readers must know of. 0: without it and without checksums. 1: files have checksums.
FORMAT_VERSION = 1
PACKAGES = ("mser_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain")
# Keys of a config that decide which leaves there are, their shapes, and what is frozen.
_DECIDES = re.compile(
    r"(stage|seed|init_from)$|(model|speech_encoder|text_encoder|llm|lora|loss)\.|optim\.groups|checkpointing\.content"
    r"|data\.(corpora|data_dir|split|emotions|include_languages|exclude_languages)$"
)
_RUNTIME = re.compile(r"\.(remat|dropout|seen_by)$")
_SHOWN_LEAVES = 6


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message says which and why."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint is sound and yet not one of this model or program; the message says how they differ."""


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a checkpoint means."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def refuse_newer(folder: Any, metadata: Mapping[str, Any]) -> None:
    """Raise CheckpointMismatch for a format that came after this program's."""
    version, writer = metadata.get("format_version", 0), metadata.get("versions", {}).get("mser_jax", "unknown")
    if version > FORMAT_VERSION:
        raise CheckpointMismatch(
            f"{folder} was written by mser_jax {writer} in format {version}; this is {versions()['mser_jax']}, "
            f"which reads formats up to {FORMAT_VERSION}. Install a newer one"
        )


def difference(expected: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """One line for every leaf that is missing, left over, or has another shape or dtype; [] when all fit.

    Both map a path to something with `shape` and `dtype`. A missing leaf names the nearest left-over one.
    """
    left_over = sorted(saved.keys() - expected.keys())
    lines = []
    for path in sorted(expected.keys() - saved.keys()):
        near = difflib.get_close_matches(path, left_over, n=1)
        lines.append(
            f"missing in the checkpoint: {path} {tuple(expected[path].shape)}"
            + (f" (nearest left over: {near[0]})" if near else "")
        )
    lines += [f"left over in the checkpoint: {path} {tuple(saved[path].shape)}" for path in left_over]
    for path in sorted(expected.keys() & saved.keys()):
        want, got = expected[path], saved[path]
        if tuple(want.shape) != tuple(got.shape) or want.dtype != got.dtype:
            lines.append(
                f"{path}: model has {tuple(want.shape)} {want.dtype}, checkpoint has {tuple(got.shape)} {got.dtype}"
            )
    return lines


def shown(lines: Sequence[str]) -> str:
    """Indent the first of the lines about leaves: they are many where one number of the config differs."""
    more = [f"and {len(lines) - _SHOWN_LEAVES} more"] if len(lines) > _SHOWN_LEAVES else []
    return "".join(f"\n  {line}" for line in [*lines[:_SHOWN_LEAVES], *more])


def deciding_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List 'key: old → new' for what decides the leaves and differs between two checkpoints' metadata.

    Args:
        before: with `config`, and `architecture` and `num_classes` where the stage has them.
        after: likewise.
    """
    configs = (config_lib.from_dict(told.get("config", {})) for told in (before, after))
    changed = [line for line in config_lib.changes(*configs)
               if _DECIDES.match(line) and not _RUNTIME.search(line.partition(":")[0])]  # fmt: skip
    # The directories that a config names may hold another model by now.
    towers = (config_lib.from_dict(told.get("architecture", {})) for told in (before, after))
    known = [line.partition(":")[0].replace(".sizes.", ".") for line in changed]
    changed += [f"architecture.{line}" for line in config_lib.changes(*towers) if line.partition(":")[0] not in known]
    # Speakers and languages of the training data: an adversary has a class for each.
    classes = (config_lib.from_dict(told.get("num_classes", {})) for told in (before, after))
    return changed + [f"number of classes, {line}" for line in config_lib.changes(*classes)]


def explained(mismatch: CheckpointMismatch, before: Mapping[str, Any], after: Mapping[str, Any]) -> CheckpointMismatch:
    """Return the mismatch with the config keys that it comes from."""
    if lines := deciding_changes(before, after):
        why = (
            f"What decides the leaves of a checkpoint changed since this one was written: {'; '.join(lines)}. Set that "
            "back, or begin in another --workdir"
        )
    else:
        old, new = before.get("versions", {}).get("mser_jax", "unknown"), versions()["mser_jax"]
        why = f"Neither config nor data decide otherwise on the leaves: the code does (mser_jax {old} then, {new} now)"
    return CheckpointMismatch(f"{why}. {mismatch}")
