"""Filters of finished audio: each measured, each switchable by its section of `config.filters`.

duration, silence, clipping, loudness, duplicates   on by default: 0.2 ms for a second of audio, all together
intelligibility                                     what a Whisper model understands of it: wants a `model`
emotion                                             what a checkpoint of ours hears in it: wants a `checkpoint`

Every filter is a class whose fields are its thresholds. Those of the first five let real recordings pass: of 3606 acted
utterances of eight corpora in six languages duration, silence and duplicates reject none, clipping eight (of CREMA-D,
flat at full scale), loudness two (of RAVDESS, at −55 LUFS); of M5SER-mini's 4608 none of them any.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from mser_jax.config import ConfigError
from mser_jax.m5ser.filters.agreement import EmotionAgreement
from mser_jax.m5ser.filters.base import Candidate, Filter, Verdict
from mser_jax.m5ser.filters.duplicates import Duplicates
from mser_jax.m5ser.filters.intelligibility import Intelligibility
from mser_jax.m5ser.filters.signal import Clipping, Duration, Loudness, Silence

__all__ = ["DEFAULTS", "FILTERS", "Candidate", "Filter", "Verdict", "build_filters"]

# In the order in which they are applied; each judges what passed those before, so the dear ones come last.
FILTERS = {
    made.name: made for made in (Duration, Silence, Clipping, Loudness, Duplicates, Intelligibility, EmotionAgreement)
}
_NEED_A_MODEL = {"intelligibility": "model", "emotion": "checkpoint"}

# config.filters, as configs/m5ser.py has it.
DEFAULTS: dict[str, dict[str, Any]] = {
    name: {"enabled": name not in _NEED_A_MODEL, **{field.name: field.default for field in dataclasses.fields(made)}}
    for name, made in FILTERS.items()
}


def build_filters(section: Mapping[str, Mapping[str, Any]]) -> list[Filter]:
    """The filters that a config's section enables, in the order they are applied.

    Args:
      section: name -> `enabled`, and its thresholds where they are not those of DEFAULTS.

    Raises:
      ConfigError: no such filter or threshold (the nearest one is named), or one lacks the model it needs.
    """
    for name in section:
        _check("filter", name, FILTERS)
        for key in section[name]:
            _check(f"filters.{name}: option", key, DEFAULTS[name])
    made = []
    for name, filter_class in FILTERS.items():
        options = dict(section.get(name, {}))
        if options.pop("enabled", False):
            model = _NEED_A_MODEL.get(name)
            if model and not options.get(model):
                raise ConfigError(f"filters.{name} is enabled but has no {model}; {filter_class.HOW}")
            made.append(filter_class(**options))
    return made


def _check(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no {kind} {name!r}.{hint} There are {', '.join(known)}")
