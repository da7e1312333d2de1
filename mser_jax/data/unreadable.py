"""What cannot be read, and what follows: the one policy of training, evaluation and kept features.

- Storage that fails (storage.is_trouble) is asked again, then raises StorageError. That ends the run: no record is lost
  to it.
- A recording that cannot be decoded (audio_check.BadAudio) is skipped and counted, with its reason.
- More than `data.max_unreadable` of a table's records raise TooManyUnreadableError. One record never does.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

from mser_jax.corpora.audio_check import Reason

DEFAULT_SHARE = 0.01  # data.max_unreadable of runs that are older than the key
# What stands in `reason` of a batch; 0: nothing is wrong.
CODES = ("", *Reason)
_SHOWN = 5


class TooManyUnreadableError(Exception):
    """More records of a table cannot be decoded than `data.max_unreadable` allows; the message names some."""


def by_reason(reasons: Iterable[str]) -> str:
    """'truncated 3, empty 1', the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in collections.Counter(map(str, reasons)).most_common())


def check(found: Mapping[int, str], ids: Sequence[str], share: float, what: str) -> None:
    """Refuse a table of which too much cannot be decoded.

    Args:
        found: {row: why} of those that cannot, each once however often it was tried; '' where that is not known here.
        ids: of all records of the table.
        share: `data.max_unreadable`, in [0, 1].
        what: names the table.

    Raises:
        TooManyUnreadableError: more than one record, and more than `share` of all.
    """
    if len(found) <= max(1, share * len(ids)):
        return
    raise TooManyUnreadableError(
        f"{describe(found, ids, what)}; at most {share:.2%} may be (data.max_unreadable={share:g}). Listen to them, "
        "then build the corpus again without them or from sound copies; or raise data.max_unreadable"
    )


def describe(found: Mapping[int, str], ids: Sequence[str], what: str) -> str:
    """'7 of 576 records of WHAT cannot be decoded (truncated 5, empty 2): ID, ID, …'."""
    names = [str(ids[row]) for row in sorted(found)[:_SHOWN]]
    more = ", …" if len(found) > len(names) else ""
    known = by_reason(filter(None, found.values()))
    return (
        f"{len(found)} of {len(ids)} records of {what} cannot be decoded{f' ({known})' if known else ''}: "
        f"{', '.join(names)}{more}"
    )
