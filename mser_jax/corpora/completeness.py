"""Is it all there: what a build found, against what is published of the corpus."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from mser_jax.corpora.facts import Facts
from mser_jax.corpora.raw import RawUtterance

# Share of the published utterances below which a corpus is not whole. Real copies lack up to three in a hundred:
# recordings that nobody can read, mirrors that lost some.
WHOLE = 0.95
_NAMED = 12  # missing speakers that a message names


class PartialCorpusError(RuntimeError):
    """The source holds only a part of the corpus, and nobody said that a part will do."""


@dataclasses.dataclass
class Found:
    """Count the utterances of a source, in all and by speaker (as the corpus names them), language and label.

    absent: parts that are known to be missing, in words.
    """

    utterances: int = 0
    speakers: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    languages: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    absent: list[str] = dataclasses.field(default_factory=list)

    def add(self, *utterances: RawUtterance) -> None:
        """Count utterances."""
        for raw in utterances:
            self.utterances += 1
            self.speakers[raw.speaker] += 1
            self.languages[raw.language] += 1
            self.labels[raw.emotion_native] += 1


@dataclasses.dataclass(frozen=True)
class Whole:
    """What the whole of it has. utterances, people: 0 = not known; speakers: all of them by name, or none."""

    utterances: int = 0
    people: int = 0
    speakers: Sequence[str] = ()
    languages: Sequence[str] = ()
    labels: Sequence[str] = ()

    def lacking(self, found: Found) -> str:
        """Tell how `found` falls short of it, in words; "" where it does not.

        It does below WHOLE of the utterances, without a single one of a speaker, or with a part that is known to be
        missing.
        """
        silent = [name for name in self.speakers if not found.speakers[name]]
        if not (found.utterances < WHOLE * self.utterances or silent or found.absent):
            return ""
        parts = [f"{found.utterances} utterances"]
        if self.utterances:
            share = f"{100 * found.utterances / self.utterances:.3g} %"
            parts = [f"{found.utterances} of {self.utterances} utterances ({share})"]
        known = len(set(found.speakers) - {""})
        if silent:
            parts.append(f"none of the {_plural(len(silent), 'speaker')} {_some(silent)}")
        elif known < self.people:
            parts.append(f"{known} of {self.people} speakers")
        for what, names, seen in (("in", self.languages, found.languages), ("labelled", self.labels, found.labels)):
            if len(names) > 1 and (gone := [name for name in names if not seen[name]]):
                parts.append(f"none {what} {_some(gone)}")
        return ", ".join([*parts, *found.absent])


def explain(name: str, source: str, partial: str, unread: Sequence[str], facts: Facts) -> str:
    """Write the message for a source that holds a part of the corpus: `partial` of Whole.lacking.

    unread: archives in it that Python does not read.
    """
    what = "nothing" if partial.startswith("0 ") else "only a part"
    by_hand = f" Python does not read {', '.join(unread[:3])}: unpack it yourself." if unread else ""
    return (
        f"corpus {name!r}: {what} of it is in {source}: {partial}.{by_hand} Give all of it (from {facts.obtain};"
        f" expected: {facts.folder}), or add --allow_partial to build what is there, and mark it as a part"
    )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (f", … ({len(names)} in all)" if len(names) > _NAMED else "")


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
