"""What is trained: the only package that knows there are two stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax.stages import alignment, finetuning
from mser_jax.stages.base import Stage

STAGES = {"alignment": alignment.Alignment, "finetuning": finetuning.Finetuning}


def make(config: ConfigDict, metadata: Mapping[str, Any] | None = None) -> Stage:
    """The stage that `config.stage` names; `metadata` is that of a checkpoint which is scored without its data."""
    config_lib.choice(config, "stage", list(STAGES))
    return STAGES[config.stage](config, metadata)
