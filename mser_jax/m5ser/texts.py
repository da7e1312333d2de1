"""The sentences to speak: the same in every language, with neutral or with emotional words."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mser_jax.m5ser.prosody import TARGETS

SENTENCES = Path(__file__).with_name("sentences.tsv")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One sentence.

    id: the same in every language (the record's parallel_id).
    content: emotion of the words alone; "neutral" for a matter of fact.
    texts: language tag -> the sentence in that language's ordinary orthography.
    """

    id: str
    content: str
    texts: Mapping[str, str]


def load_sentences(path: Path = SENTENCES) -> tuple[Sentence, ...]:
    """Reads a tab-separated table with the columns id, content, and one column a language.

    Raises:
      ValueError: missing columns, an empty cell, a repeated id, an id with a hyphen (record ids are split at
        hyphens), or an unknown content emotion; the message names the line.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or rows[0][:2] != ["id", "content"] or len(rows[0]) < 3:
        raise ValueError(f"{path}: the first line must be 'id', 'content' and language tags, got {rows[:1]}")
    languages, sentences, seen = rows[0][2:], [], set()
    for number, row in enumerate(rows[1:], start=2):
        where = f"{path}, line {number}"
        if len(row) != len(languages) + 2 or not all(cell.strip() for cell in row):
            raise ValueError(f"{where}: expected {len(languages) + 2} non-empty cells, got {row}")
        key, content, *texts = row
        if key in seen or "-" in key:
            raise ValueError(f"{where}: sentence id {key!r} is repeated or has a hyphen")
        if content not in TARGETS:
            raise ValueError(f"{where}: content {content!r} is none of {', '.join(TARGETS)}")
        seen.add(key)
        sentences.append(Sentence(key, content, dict(zip(languages, texts, strict=True))))
    return tuple(sentences)
