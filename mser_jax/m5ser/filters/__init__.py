"""Filters of finished audio: each measured, each switchable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mser_jax.m5ser.filters.base import Candidate, Filter, Verdict

__all__ = ["Candidate", "Filter", "Verdict", "build_filters"]


def build_filters(section: Mapping[str, Mapping[str, Any]]) -> list[Filter]:
    """The filters that a config's section enables, in the order they are applied.

    Raises:
      ValueError: no such filter.
    """
    if section:
        raise ValueError(f"no filter {next(iter(section))!r}")
    return []
