"""What may be wrong with a recording."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a recording is left out."""

    MISSING = "missing"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NO_AUDIO = "no_audio"
    NOT_FINITE = "not_finite"
    SILENT = "silent"
    OPPOSED_CHANNELS = "opposed_channels"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    SAMPLING_RATE = "sampling_rate"


class BadAudio(Exception):
    """A recording that cannot be used. `reason` is for counting, `detail` for reading."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
