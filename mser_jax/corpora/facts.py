"""What is known of a public corpus."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a corpus before it is on this machine.

    languages: BCP-47. utterances, hours, speakers: as published, 0 = unknown. emotions: its own labels. obtain: where
    it is to be had and under what conditions. folder: what --source should hold.
    """

    title: str
    languages: tuple[str, ...]
    utterances: int = 0
    hours: float = 0.0
    speakers: int = 0
    emotions: tuple[str, ...]
    license: str
    obtain: str
    citation: str
    folder: str
