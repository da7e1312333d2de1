"""What is in a corpus, as a few numbers that a checkpoint remembers: changed data are noticed when a run goes on.

A record counts by its id, its labels, who speaks it where and in which split, its words, and its audio by duration and
loudness. The order of records does not. Each of these aspects has a sum over all records, which tells any change, and
one for each of 256 groups of records, from which the number of changed ones is estimated (well up to some hundred).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mser_jax.data.sources import MixtureTable

# {aspect: (columns, what is said of records in which it changed)}
ASPECTS = {
    "labels": (("emotion", "emotion_native"), "have another label"),
    "people": (
        ("speaker", "language", "split", "gender", "age", "domain"),
        "have another speaker, language, split, gender, age or domain",
    ),
    "words": (("transcript", "parallel_id"), "have other words"),
}
_AUDIO = "have other audio"
_GROUPS = 256
Fingerprint = dict[str, int | str]


def of_table(table: MixtureTable) -> dict[str, Fingerprint]:
    """Compute {spec: fingerprint} of the corpora of an unfiltered table."""
    return {source.spec: _of_corpus(table.of_source(number)) for number, source in enumerate(table.sources)}


def _of_corpus(table: MixtureTable) -> Fingerprint:
    ids = _hashes(table["id"].tolist())
    group = (ids % np.uint64(_GROUPS)).astype(np.int64)
    aspects = {"ids": ids}
    for name, (columns, _) in ASPECTS.items():
        rows = zip(table["id"].tolist(), *(table[column].tolist() for column in columns), strict=True)
        aspects[name] = _hashes(["\0".join(row) for row in rows])
    # Decoders of two machines agree to better than this.
    audio = [np.nan_to_num(np.round(values), nan=-1e9, posinf=-1e9, neginf=-1e9).astype(np.int64).astype(np.uint64)
             for values in (table["duration_s"] * 1e3, table["loudness_db"] * 1e2)]  # fmt: skip
    aspects["audio"] = _mixed(_mixed(ids ^ audio[0]) ^ audio[1])
    return {"records": len(table), **{name: _sums(values, group) for name, values in aspects.items()}}


def _hashes(texts: Sequence[str]) -> np.ndarray:
    """uint64 [n]."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's last steps: uint64 [n], each bit of a value changes about half of the bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _sums(values: np.ndarray, group: np.ndarray) -> str:
    """Hex: 64 bits of the sum over all, then 16 of the sum over each group."""
    sums = np.zeros(_GROUPS, np.uint64)
    np.add.at(sums, group, values)
    return f"{int(values.sum(dtype=np.uint64)):016x}" + "".join(f"{int(x) & 0xFFFF:04x}" for x in sums)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """List each corpus in both whose content differs: how many records were added, removed or changed, about."""
    found = {spec: _change(before[spec], after[spec]) for spec in after if spec in before}
    return [f"{spec}: {line}" for spec, line in found.items() if line]


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    others = _differing(before, after, "ids")
    parts = []
    if before["ids"] != after["ids"]:
        more = after["records"] - before["records"]
        either = max(abs(more), _estimate(others.sum(), _GROUPS))
        either += (either - more) % 2
        parts = [f"{_about(number)} {text}" for number, text in (
            ((either + more) // 2, "added"), ((either - more) // 2, "removed")) if number]  # fmt: skip
    for name, text in ({name: text for name, (_, text) in ASPECTS.items()} | {"audio": _AUDIO}).items():
        # Groups of which records came or went tell nothing of those that stayed.
        changed = _differing(before, after, name) & ~others
        if number := _estimate(changed.sum(), int((~others).sum())):
            parts.append(f"{_about(number)} {text}")
    if not parts and all(before.get(name) == value for name, value in after.items()):
        return ""
    return f"{before['records']} records then, {after['records']} now: {', '.join(parts) or 'hardly one is the same'}"


def _differing(before: Mapping[str, Any], after: Mapping[str, Any], aspect: str) -> np.ndarray:
    """bool [_GROUPS]."""
    pairs = ((told[aspect][16 + 4 * i : 20 + 4 * i] for told in (before, after)) for i in range(_GROUPS))
    return np.array([one != other for one, other in pairs])


def _estimate(differing: int, groups: int) -> int:
    """Estimate how many records changed where `differing` groups did; each fell into one of _GROUPS by chance."""
    if not groups or not differing:
        return 0
    return round(-_GROUPS * math.log(1 - min(differing, groups - 0.5) / groups))


def _about(number: int) -> str:
    return f"about {number}" if number < 4 * _GROUPS else f"more than {4 * _GROUPS}"
