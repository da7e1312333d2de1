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
    """A recording that cannot be used. `reason` is for counting, `detail` for reading: one line, printable."""

    def __init__(self, reason: Reason, detail: str):
        # Decoders quote what they read, which may be anything, also what steers a terminal.
        detail = "".join(letter if letter.isprintable() else "\ufffd" for letter in detail)[:300]
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
