"""What the pretrained parts of a network saw before: config → models of the registry (corpora/seen_by.toml)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from absl import logging
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax.corpora import seen_by
from mser_jax.pretrained import files
from mser_jax.stages import towers

NOTHING = "none"  # what a config may say of weights that saw no labels of emotion


def models(config: ConfigDict, stage1: Mapping[str, str] | None = None) -> dict[str, str]:
    """{section: the registry's name of its model} of the towers that start from pretrained weights.

    The section's `seen_by` is believed; else the name of `init` and its config.json are looked up. Towers of text are
    seen_by.TEXT_ONLY unless their names are those of a model that hears; seen_by.UNKNOWN is warned of.

    Args:
        config: of a run.
        stage1: this of the run whose speech encoder it starts from, whatever its own `init`.

    Raises:
        ConfigError: a `seen_by` that is no model of the registry.
    """
    speech = "speech_encoder"
    found = {speech: stage1[speech]} if stage1 and speech in stage1 else {}
    for name, init in towers.initialised_from(config).items():
        if name == speech and stage1 is not None:
            continue
        said = config[name].get("seen_by", "")
        if said and said != NOTHING and said not in _names():
            raise config_lib.ConfigError(
                f"--config.{name}.seen_by={said!r}: expected one of {', '.join(_names())}, or {NOTHING!r}"
            )
        found[name] = said or _look_up(init) or (seen_by.UNKNOWN if name == speech else seen_by.TEXT_ONLY)
        if found[name] == seen_by.UNKNOWN:
            logging.warning(
                "%s: %s is not in the registry of who has seen what (mser_jax/corpora/seen_by.toml), so nothing says "
                "that a corpus is new to it. If you know, set --config.%s.seen_by to a model of the registry, or to "
                "%r where it saw no labels of emotion", name, init, name, NOTHING,
            )  # fmt: skip
    return found


def with_labels(found: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """What `models` saw with labels of emotion, as rows.why_not_zero_shot takes it."""
    out: dict[str, Mapping[str, Any]] = {}
    for name in found.values():
        if model := _by_name(name):
            out |= model.with_labels()
    return out


def describe(found: Mapping[str, str]) -> dict[str, Any]:
    """For results.json: {section: {"model", "with_labels": facts, "without_labels": facts}} of `models`."""
    return {
        section: model.to_dict() if (model := _by_name(name)) else {"model": name} for section, name in found.items()
    }


def _names() -> tuple[str, ...]:
    return tuple(model.name for model in seen_by.models())


def _by_name(name: str) -> seen_by.Model | None:
    return next((model for model in seen_by.models() if model.name == name), None)


def _look_up(init: str) -> str:
    """The registry's name of a directory or hub id, '' = unknown."""
    model = seen_by.find([_last(init)])
    if model is None:
        own = _config_of(init)
        model = seen_by.find([str(own.get("model_type", ""))])
        base = seen_by.find([_last(str(own.get("_name_or_path", "")))])
        # A classifier's base tells what it saw, not what else the classifier was taught.
        classifies = any("ForSequenceClassification" in name for name in own.get("architectures") or ())
        if model is None and base is not None and (base.with_labels() or not classifies):
            model = base
    return model.name if model else ""


def _last(name: str) -> str:
    """ "owner/model@revision", "/a/b/model/" and the hub cache's ".../models--owner--model/snapshots/…" -> "model"."""
    parts = [part for part in name.split("/") if part]
    cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
    return (cached or parts or [""])[-1].partition("@")[0]


def _config_of(init: str) -> Mapping[str, Any]:
    """config.json of a directory or of a hub id in the cache; empty where that is not here (a checkpoint is scored)."""
    path: str | Path | None = Path(init).expanduser() / files.CONFIG
    try:
        if not path.exists():
            repository, _, revision = init.partition("@")
            path = huggingface_hub.try_to_load_from_cache(repository, files.CONFIG, revision=revision or None)
        return json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str | Path) else {}
    except (OSError, ValueError):  # also what is neither a directory nor a hub id
        return {}
