"""Which corpus and which recording it is: folders of one name are told apart, recordings in two corpora are told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from absl import logging

# Measured when a corpus was built. Together they are of one recording: their float32 agree in all bits by chance once
# in 10¹² pairs.
_MEASURES = ("duration_s", "pitch_hz", "loudness_db")
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_MOST_NAMED = 3


class Named(Protocol):
    """A corpus and what gave it its name; see corpora.registry.PreparedCorpus."""

    spec: str
    folder: str
    own_corpus: str


class Placed(Named, Protocol):
    """And where it is."""

    place: str


def refuse_twice(corpora: Sequence[Placed]) -> None:
    """Raise ValueError where two specs name one folder, or folders of the same content."""
    seen: dict[str, str] = {}
    for corpus in corpora:
        for same in (corpus.place, corpus.folder) if corpus.place else ():
            if seen.setdefault(same, corpus.spec) != corpus.spec:
                raise ValueError(
                    f"corpora: {seen[same]!r} and {corpus.spec!r} hold the same recordings and labels; give one, "
                    f"with a weight, as {seen[same]}@2"
                )


def separate(corpora: Sequence[Placed], columns: Sequence[dict[str, np.ndarray]]) -> None:
    """Rename, in place, the corpus and the speakers of folders that share their name with another corpus.

    /a/speech and /b/speech become "a/speech" and "b/speech", so that the 01 of one is not the 01 of the other. Names
    that a manifest states stay: who states one name in two folders means one corpus.

    columns: of each corpus, "corpus" and "speaker", object arrays of str [n].
    """
    names = [set(part["corpus"].tolist()) for part in columns]
    for number, corpus in enumerate(corpora):
        old = corpus.own_corpus
        others = [other for other, found in enumerate(names) if other != number and old and old in found]
        if not others:
            continue
        rivals = [corpora[other].place for other in others if corpora[other].own_corpus == old]
        new = _shortest(corpus.place, rivals)
        logging.warning(
            "%s: another corpus is called %r as well, so this one is %r here. A field \"corpus\" in the manifest gives "
            "it a name of its own", corpus.spec, old, new,
        )  # fmt: skip
        part = columns[number]
        mine = part["corpus"] == old
        prefix = f"{old}:"
        speakers = {s: f"{new}:{s.removeprefix(prefix)}" if s else s for s in set(part["speaker"][mine].tolist())}
        part["speaker"] = np.array(
            [speakers[s] if is_mine else s for s, is_mine in zip(part["speaker"].tolist(), mine, strict=True)], object
        )
        part["corpus"] = np.where(mine, new, part["corpus"]).astype(object)


def _shortest(place: str, rivals: Sequence[str]) -> str:
    """The end of a path, of two parts or more, with which none of the rivals ends."""
    parts = place.split("/")
    ends = ("/".join(parts[-depth:]) for depth in range(2, len(parts) + 1))
    return next((end for end in ends if not any(f"/{rival}".endswith(f"/{end}") for rival in rivals)), place)


def marks(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compute uint64 [n], equal for one recording; 0 where it cannot be told (no pitch)."""
    measured = np.stack([columns[name] for name in _MEASURES], axis=1).astype(np.float32)
    known = np.isfinite(measured).all(axis=1)
    bits = measured.view(np.uint32).astype(np.uint64)
    mixed = np.zeros(len(measured), np.uint64)
    for column in range(len(_MEASURES)):
        mixed = (mixed ^ bits[:, column]) * _ODD[column]
        mixed ^= mixed >> np.uint64(29)
    return np.where(known, mixed | np.uint64(1), np.uint64(0))


def check_mix(columns: Mapping[str, np.ndarray], specs: Sequence[str], own: Sequence[bool]) -> None:
    """Tell of recordings that several sources of a mixture hold.

    columns: of the whole mixture. specs, own: of each source, what it was opened by and whether it is a folder of the
    user's.

    Raises:
      ValueError: two folders of the user's own have one recording in different splits.
    """
    mark, source, split = marks(columns), columns["source"], columns["split"]
    order = np.lexsort((source, mark))
    before, after = order[:-1], order[1:]
    same = (mark[before] == mark[after]) & (mark[before] != 0) & (source[before] != source[after])
    before, after = before[same], after[same]
    for one, other in sorted(set(zip(source[before].tolist(), source[after].tolist(), strict=True))):
        of_both = (source[before] == one) & (source[after] == other)
        first, second = before[of_both], after[of_both]
        apart = (split[first] != split[second]) & (split[first] != "") & (split[second] != "")
        both = f"{specs[one]} and {specs[other]}"
        if own[one] and own[other] and apart.any():
            at, to = first[apart][0], second[apart][0]
            raise ValueError(
                f"{both} hold {apart.sum()} recordings in two splits, such as {columns['id'][at]!r} ({split[at]}) and "
                f"{columns['id'][to]!r} ({split[to]}). A model would be tested on what it was trained on: take them "
                "out of one manifest, or put both into one split"
            )
        logging.warning(
            "%s hold the same %d recordings, %d of them in different splits, such as %s",
            both, len(first), apart.sum(), ", ".join(columns["id"][first[:_MOST_NAMED]].tolist()),
        )  # fmt: skip


def warn_of_trained(scored: Mapping[str, np.ndarray], trained: Mapping[str, np.ndarray]) -> int:
    """Count, and tell of, recordings that are scored as one corpus and trained on as another.

    What is scored and trained on as the same corpus is told by its row, which is not zero-shot.
    """
    corpora = dict(zip(marks(trained).tolist(), trained["corpus"].tolist(), strict=True))
    rows = zip(marks(scored).tolist(), scored["id"].tolist(), scored["corpus"].tolist(), strict=True)
    found = [(name, corpora[mark], own) for mark, name, own in rows if mark and corpora.get(mark, own) != own]
    if found:
        some = "; ".join(f"{name} of {own} is in {other}" for name, other, own in found[:_MOST_NAMED])
        logging.warning(
            "%d of the %d scored recordings are trained on as well, as another corpus; their scores are not zero-shot: "
            "%s",
            len(found), len(scored["id"]), some,
        )  # fmt: skip
    return len(found)


def warn_of_namesakes(scored: Sequence[Named], trained: Sequence[Named]) -> None:
    """Tell of scored folders that are others than those trained on and called the same: they count as seen."""
    for corpus in scored:
        for other in trained:
            if corpus.own_corpus and corpus.own_corpus == other.own_corpus and corpus.folder != other.folder:
                logging.warning(
                    "%s counts as trained on: %s is called %r as well. A field \"corpus\" in a manifest tells "
                    "them apart", corpus.spec, other.spec, corpus.own_corpus,
                )  # fmt: skip
