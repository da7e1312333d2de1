"""Corpora that go by the names of their folders, told apart where two folders of one name are in one mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from absl import logging


class Placed(Protocol):
    """What is asked of a corpus here; see corpora.registry.PreparedCorpus."""

    spec: str
    folder: str
    place: str
    own_corpus: str


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


def are_one(corpus: str, other: str) -> bool:
    """Tell whether two names may be of one corpus: the same, or one is the other's end ("speech" of "a/speech")."""
    return f"/{corpus}".endswith(f"/{other}") or f"/{other}".endswith(f"/{corpus}")
