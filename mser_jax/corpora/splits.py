"""Who is trained on and who is tested on, as pure functions of the index columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

NAMES = ("train", "validation", "test")


def speaker_split(speaker: str, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), salt: str = "") -> str:
    """Split of a speaker by hash alone: no speaker is in two, and adding others moves nobody.

    The fractions (train, validation, test; sum 1) therefore hold for many speakers only. `salt` draws another
    split. Utterances without a known speaker ("") go to train, where they cannot leak into a test.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {fractions}: expected three shares >= 0 of sum 1")
    if not speaker:
        return "train"
    digest = hashlib.sha256(f"{salt}\0{speaker}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return NAMES[int(np.searchsorted(np.cumsum(fractions[:2]), position, side="right"))]


def split_by_speaker(
    speakers: Sequence[str], fractions: tuple[float, float, float] = (0.8, 0.1, 0.1), salt: str = ""
) -> np.ndarray:
    """`speaker_split` of each row: str [rows]."""
    unique = {speaker: speaker_split(speaker, fractions, salt) for speaker in set(speakers)}
    return np.array([unique[speaker] for speaker in speakers], dtype="<U10")


def leave_one_language_out(languages: Sequence[str], language: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on (every other language) and to test on: two int64 arrays.

    A held-out "pt" also holds out "pt-BR": regional variants are the same language to a listener.

    Raises:
      ValueError: no row of that language, or of no other.
    """
    column = np.asarray(languages, dtype=object)
    out = np.array([name == language or name.startswith(f"{language}-") for name in column], dtype=bool)
    if not out.any() or out.all():
        raise ValueError(f"leave out {language!r}: they hold {sorted(set(column))}; need it and another")
    return np.flatnonzero(~out), np.flatnonzero(out)
