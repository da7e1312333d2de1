"""Who has seen it: which pretrained models heard which corpora and languages, with labels of emotion or without.

The facts, each with its source, are in seen_by.toml. A result on a corpus or language that a pretrained part of the
network saw with labels of emotion is not zero-shot (evaluation/rows.py).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

UNKNOWN = "not in the registry"
TEXT_ONLY = "text only"


@dataclasses.dataclass(frozen=True)
class Statement:
    """One thing that is known of a model's training.

    labels: with labels of emotion. corpora: names as in corpora/public or `others`. languages: BCP-47, "und" = some,
    but nobody says which, "mul" = very many. source: where it is said.
    """

    labels: bool
    corpora: tuple[str, ...]
    languages: tuple[str, ...]
    source: str
    note: str


@dataclasses.dataclass(frozen=True)
class Model:
    """A pretrained model, or a family of them."""

    name: str
    matches: tuple[re.Pattern[str], ...]
    saw: tuple[Statement, ...]

    def with_labels(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What it saw with labels of emotion, as rows.why_not_zero_shot takes it, under its name and the source."""
        return {
            f"{self.name} ({saw.source})": {"corpora": saw.corpora, "languages": saw.languages}
            for saw in self.saw
            if saw.labels
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON: its name and what it saw, the labelled and the rest apart."""
        found: dict[str, Any] = {"model": self.name, "with_labels": [], "without_labels": []}
        for saw in self.saw:
            fact: dict[str, Any] = {"corpora": [*saw.corpora], "languages": [*saw.languages]}
            fact |= {"source": saw.source, "note": saw.note}
            found["with_labels" if saw.labels else "without_labels"].append(fact)
        return found


@functools.cache
def models() -> tuple[Model, ...]:
    """Every model of the registry, in its order."""
    content = _content()
    return tuple(
        Model(
            entry["name"],
            tuple(re.compile(pattern, re.I) for pattern in entry["matches"]),
            tuple(_statement(saw, content["sets"]) for saw in entry["saw"]),
        )
        for entry in content["model"]
    )


def others() -> Mapping[str, str]:
    """Corpora that models saw and that we have no builder for: {name: what it is}."""
    return _content()["others"]


def sets() -> Mapping[str, list[str]]:
    """Names of several corpora together: {"emobox": …}."""
    return _content()["sets"]


def find(names: Iterable[str]) -> Model | None:
    """The model that goes by one of these names of a directory, a hub id without its owner, or a model_type."""
    wanted = tuple(names)
    return next((model for model in models() if any(m.search(name) for m in model.matches for name in wanted)), None)


def by_corpus(corpus: str, languages: Iterable[str] = ()) -> list[tuple[Model, Statement, str]]:
    """Who saw a corpus or one of its languages (primary subtags): (model, what, "corpus" | "language").

    What was heard without labels counts for the corpus alone: half of all models heard English.
    """
    found = []
    for model in models():
        for saw in model.saw:
            if corpus in saw.corpora:
                found.append((model, saw, "corpus"))
            elif saw.labels and {tag.split("-")[0] for tag in languages} & {*saw.languages}:
                found.append((model, saw, "language"))
    return found


def are_one(corpus: str, other: str) -> bool:
    """Tell whether two names may be of one corpus: the same, or one is the other's end ("speech" of "a/speech")."""
    return f"/{corpus}".endswith(f"/{other}") or f"/{other}".endswith(f"/{corpus}")


def _statement(saw: Mapping[str, Any], sets: Mapping[str, list[str]]) -> Statement:
    corpora: list[str] = []
    for name in saw.get("corpora", ()):
        corpora += sets[name[1:]] if name.startswith("@") else [name]
    return Statement(saw["labels"], tuple(corpora), tuple(saw["languages"]), saw["source"], saw.get("note", ""))


@functools.cache
def _content() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("seen_by.toml").read_text(encoding="utf-8"))
