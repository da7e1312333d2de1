"""Speakers that calibrate: who neither trains nor is scored tells how sure a model may be of people it never met.

Validation speakers of the training corpora do where there are some that are not scored. Else a few training speakers
are held back, the same ones for every run on the same corpora: at most one in twenty, and of a corpus at most one in
eight of its speakers of a language.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict

import numpy as np

from mser_jax.data.sources import MixtureTable

# Fewer speakers are all needed.
LEAST_SPEAKERS = 20
_OF_ALL, _OF_A_CELL = 20, 8


def select(table: MixtureTable, keep: np.ndarray, why: str = "") -> MixtureTable:
    """The rows of `table` where bool `keep` [n]; `why` is noted as a filter."""
    columns = {name: values[keep] for name, values in table.columns.items()}
    removed = ((why, int((~keep).sum())),) if why else ()
    return dataclasses.replace(table, columns=columns, removed=(*table.removed, *removed))


def unseen(candidates: MixtureTable, training: MixtureTable, scored: MixtureTable) -> MixtureTable:
    """The candidates that calibrate: known speakers who do not train, nothing that is scored.

    A speaker who is scored in a language does not calibrate with that language.
    """
    trains = set(training["speaker"].tolist())
    records, people = set(_keys(scored)), set(_pairs(scored))
    keep = [
        bool(speaker) and speaker not in trains and record not in records and person not in people
        for speaker, record, person in zip(
            candidates["speaker"].tolist(), _keys(candidates), _pairs(candidates), strict=True
        )
    ]
    return select(candidates, np.array(keep, bool))


def choose(training: MixtureTable, utterances: int) -> tuple[str, ...]:
    """The speakers of the training mix that are held back, sorted; () where there are too few.

    Args:
      training: all that might train.
      utterances: so many are enough.
    """
    counts: dict[str, int] = defaultdict(int)
    cells: dict[tuple[str, str], set[str]] = defaultdict(set)
    for corpus, language, speaker in zip(*(training[n] for n in ("corpus", "primary", "speaker")), strict=True):
        if speaker:
            counts[speaker] += 1
            cells[corpus, language].add(speaker)
    if len(counts) < LEAST_SPEAKERS:
        return ()
    room = {cell: len(speakers) // _OF_A_CELL for cell, speakers in cells.items()}
    chosen: list[str] = []
    # In turns, so that no corpus calibrates alone.
    waiting = {cell: sorted(speakers, key=_number) for cell, speakers in sorted(cells.items())}
    while any(waiting.values()):
        for cell in waiting:
            while waiting[cell]:
                speaker = waiting[cell].pop(0)
                mine = [other for other, speakers in cells.items() if speaker in speakers]
                if speaker in chosen or not all(room[other] for other in mine):
                    continue
                chosen.append(speaker)
                for other in mine:
                    room[other] -= 1
                if len(chosen) >= len(counts) // _OF_ALL or sum(counts[name] for name in chosen) >= utterances:
                    return tuple(sorted(chosen))
                break
    return tuple(sorted(chosen))


def _number(speaker: str) -> bytes:
    return hashlib.sha256(speaker.encode()).digest()


def _keys(table: MixtureTable) -> list[tuple[str, int]]:
    """What tells a record from any other, also of another table."""
    folders = [source.folder or source.spec for source in table.sources]
    return [(folders[number], int(row)) for number, row in zip(table["source"], table["position"], strict=True)]


def _pairs(table: MixtureTable) -> list[tuple[str, str]]:
    return list(zip(table["primary"].tolist(), table["speaker"].tolist(), strict=True))
