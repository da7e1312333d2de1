"""The same recording more than once in a corpus: under other labels, of other speakers, in other splits."""

from __future__ import annotations

import dataclasses
import hashlib

from mser_jax.corpora import record

MOST_NAMED = 20
_FIELDS = {"emotion_native": "label", "speaker": "speaker", "split": "split"}


@dataclasses.dataclass
class Repeats:
    """Counts of one build. Recordings are the same where their samples are, whatever file format they came in.

    counts: "recordings that came before", "with another label", "with another speaker", "with another split" → number.
    examples: the first MOST_NAMED with another label, speaker or split, in words.
    shared: (id, split, id, split) of each that is in two splits.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: list[str] = dataclasses.field(default_factory=list)
    shared: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
    _first: dict[bytes, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def add(self, utterance: record.Utterance) -> None:
        """Look at an utterance as it is stored."""
        key = hashlib.blake2b(utterance.audio, digest_size=16).digest()
        facts = tuple(getattr(utterance, name) for name in ("id", *_FIELDS))
        first = self._first.setdefault(key, facts)
        if first is facts:
            return
        self._count("recordings that came before")
        pairs = zip(_FIELDS.values(), facts[1:], first[1:], strict=True)
        other = {what: (now, then) for what, now, then in pairs if now and then and now != then}
        for what in other:
            self._count(f"with another {what}")
        if other and len(self.examples) < MOST_NAMED:
            said = ", ".join(f"{what} {now!r} against {then!r}" for what, (now, then) in other.items())
            self.examples.append(f"{facts[0]} = {first[0]}: {said}")
        if "split" in other:
            now, then = other["split"]
            self.shared.append((facts[0], now, first[0], then))

    def refuse_shared(self, corpus: str) -> None:
        """Raise ValueError where a recording is in two splits."""
        if self.shared:
            one, its, other, others = self.shared[0]
            more = f", and {len(self.shared) - 1} more such pairs" if len(self.shared) > 1 else ""
            raise ValueError(
                f"corpus {corpus}: {one!r} ({its}) is the same recording as {other!r} ({others}){more}. A model would "
                "be tested on what it was trained on: take one of the two out, or put both into one split"
            )

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
