"""What a corpus build did: counts, hours, merges, what was left out and why. Written as report.json."""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from typing import Any

from mser_jax.corpora import audio_check, record
from mser_jax.corpora.repeats import Repeats

_AXES = ("corpus", "language", "emotion")  # of the keys of `seconds` and `utterances`


@dataclasses.dataclass
class BuildReport:
    """Counters of one build, filled item by item."""

    corpus: str
    started: float  # time.time()
    built: int = 0
    bytes: int = 0  # serialized records
    tolerated: frozenset[str] = frozenset()  # reasons that do not make an item count as unusable
    unusable: int = 0
    skipped_items: list[dict[str, str]] = dataclasses.field(default_factory=list)
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # on purpose
    corrections: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    folds: list[dict[str, int | str]] = dataclasses.field(default_factory=list)  # of folds.summary
    emobox: dict[str, int] = dataclasses.field(default_factory=dict)  # of emobox_lists.Lists.counts
    published: int = 0  # utterances of the whole corpus, 0 = not known
    partial: str = ""  # how it falls short of the whole, of completeness.Whole.lacking
    source: dict[str, Any] = dataclasses.field(default_factory=dict)  # of source.fingerprint
    repeats: Repeats = dataclasses.field(default_factory=Repeats)
    not_understood: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # gender, age
    merges: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unlabelled: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    resampled: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    downmixed: int = 0
    seconds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    utterances: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    speakers: set[str] = dataclasses.field(default_factory=set)

    @property
    def skipped(self) -> int:
        """Number of items left out."""
        return len(self.skipped_items)

    def leave_out(self, name: str, reason: str, detail: str, *, on_purpose: bool = False) -> None:
        """Counts an item that is left out; lists it where nobody meant that."""
        if on_purpose:
            self.left_out[reason] += 1
        else:
            item = {"path": name, "reason": reason, "detail": detail}
            self.skipped_items.append({key: record.storable(text) for key, text in item.items()})
            self.unusable += reason not in self.tolerated

    def add(
        self, utterance: record.Utterance, merge: str | None, info: audio_check.AudioInfo, correction: str = ""
    ) -> None:
        """Counts an item that was written."""
        self.built += 1
        if correction:
            self.corrections[record.storable(correction)] += 1
        key = (utterance.corpus, utterance.language, utterance.emotion)
        self.utterances[key] += 1
        self.seconds[key] += utterance.duration_s
        self.speakers.add(utterance.speaker)
        self.repeats.add(utterance)
        if merge:
            self.merges[merge] += 1
        if not utterance.emotion:
            self.unlabelled[utterance.emotion_native] += 1
        if info.sampling_rate != audio_check.SAMPLING_RATE:
            self.resampled[str(info.sampling_rate)] += 1
        self.downmixed += info.channels > 1

    def explain_skipped(self, limit: float) -> str:
        """The message for a build that stops as too much is unusable."""
        total = self.built + self.unusable
        lines = [f"corpus {self.corpus}: {self.unusable} of {total} items are unusable, allowed {limit:.0%}:"]
        for reason, items in self._by_reason().items():
            lines.append(f"  {reason}: {len(items)}")
            lines += [f"    {item['path']} ({item['detail']})" for item in items[:3]]
            lines += ["    …"] * (len(items) > 3)
        lines.append(
            "Nothing was kept. Check that the source is complete and its paths right; repair these files or"
            " take them out of the source (speech folder: their manifest lines), then build again."
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The content of report.json. hours: by language, by emotion ("" = unlabelled) and by corpus."""
        return {
            "corpus": self.corpus,
            "built": self.built,
            "published": self.published,
            "partial": self.partial,
            "source": self.source,
            "skipped": self.skipped,
            "skipped_by_reason": {reason: len(items) for reason, items in self._by_reason().items()},
            "skipped_items": self.skipped_items,
            "left_out_on_purpose": _sorted(self.left_out),
            "corrections": _sorted(self.corrections),
            "folds": self.folds,
            "emobox": self.emobox,
            "speakers": len(self.speakers - {""}),
            "repeats": self.repeats.counts,
            "repeats_examples": self.repeats.examples,
            "not_understood": _sorted(self.not_understood),
            "merges": _sorted(self.merges),
            "unlabelled": _sorted(self.unlabelled),
            "resampled_from_hz": _sorted(self.resampled),
            "downmixed": self.downmixed,
            "hours_total": round(sum(self.seconds.values()) / 3600, 4),
            "hours": {
                name: self._sum(self.seconds, axis, 3600) for axis, name in enumerate(("corpus", "language", "emotion"))
            },
            "utterances": {
                name: self._sum(self.utterances, axis, 1) for axis, name in enumerate(("corpus", "language", "emotion"))
            },
            "by_language_and_emotion": self._crossed(),
            "megabytes": round(self.bytes / 2**20, 2),
            "build_seconds": round(time.time() - self.started, 2),
        }

    def to_json(self) -> str:
        """`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def _by_reason(self) -> dict[str, list[dict[str, str]]]:
        groups: dict[str, list[dict[str, str]]] = collections.defaultdict(list)
        for item in self.skipped_items:
            groups[item["reason"]].append(item)
        return dict(sorted(groups.items(), key=lambda pair: -len(pair[1])))

    def _sum(self, counter: collections.Counter, axis: int, unit: float = 1) -> dict[str, float]:
        total: collections.Counter = collections.Counter()
        for key, value in counter.items():
            total[key[axis]] += value
        return {name: round(value / unit, 4) if unit != 1 else value for name, value in sorted(total.items())}

    def _crossed(self) -> dict[str, dict[str, int]]:
        crossed: dict[str, dict[str, int]] = collections.defaultdict(dict)
        for (_, language, emotion), count in sorted(self.utterances.items()):
            crossed[language][emotion] = crossed[language].get(emotion, 0) + count
        return dict(crossed)


def _sorted(counter: collections.Counter) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda pair: (-pair[1], pair[0])))
