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
    _first: dict[bytes, dict[str, str]] = dataclasses.field(default_factory=dict)

    def add(self, utterance: record.Utterance) -> None:
        """Look at an utterance as it is stored."""
        key = hashlib.blake2b(utterance.audio, digest_size=16).digest()
        facts = {name: getattr(utterance, name) for name in ("id", *_FIELDS)}
        first = self._first.setdefault(key, facts)
        if first is facts:
            return
        self._count("recordings that came before")
        other = [name for name in _FIELDS if first[name] and facts[name] and first[name] != facts[name]]
        for name in other:
            self._count(f"with another {_FIELDS[name]}")
        if other and len(self.examples) < MOST_NAMED:
            said = ", ".join(f"{_FIELDS[name]} {facts[name]!r} against {first[name]!r}" for name in other)
            self.examples.append(f"{facts['id']} = {first['id']}: {said}")
        if "split" in other:
            self.shared.append((facts["id"], facts["split"], first["id"], first["split"]))

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
