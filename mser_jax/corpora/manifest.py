"""The manifest of a speech folder: one JSON object a line, read and checked."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

from etils import epath

from mser_jax.corpora import record
from mser_jax.corpora.raw import SPLITS

MANIFEST = "manifest.jsonl"
REQUIRED = ("path", "language", "emotion")
# BCP-47 with the lower-case language it recommends, so that "EN" and "en" never count as two languages.
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")

EXPECTED = f"""A speech folder holds a {MANIFEST} with one JSON object a line, such as
  {{"path": "anna/001.wav", "language": "de", "emotion": "Wut", "speaker": "anna", "transcript": "Komm her!"}}
path: a recording, relative to the folder; language: BCP-47; emotion: your own label ("" where unknown).
Optional: corpus, speaker, gender, age, transcript, parallel_id, split (train | validation | test), valence,
arousal, dominance, votes, domain, license. Other fields are ignored.
A labels.toml beside it maps labels of your own to emotions: [labels] and lines such as "fed up" = "angry"."""


@dataclasses.dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest. fields: the keyword arguments of RawUtterance, without `audio`."""

    path: epath.Path
    fields: dict[str, Any]


def read_manifest(folder: epath.Path) -> list[ManifestRow]:
    """Rows of DIR/manifest.jsonl, checked; blank lines are passed over.

    Raises:
      FileNotFoundError: no such folder, or no manifest in it.
      ValueError: a line that is no JSON object, lacks a required field, has a language that is not BCP-47, a
        value of the wrong type or a path that came before; with file, line and what was expected.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        missing = f"no {MANIFEST} in {folder}" if folder.exists() else f"no folder {folder}"
        raise FileNotFoundError(f"speech_folder: {missing}. {EXPECTED}")
    rows: list[ManifestRow] = []
    seen: dict[str, int] = {}
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(manifest.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line, folder)
        except ValueError as error:
            raise ValueError(f"{manifest}, line {number}: {error}") from error
        first = seen.setdefault(row.fields["id"], number)
        if first != number:
            raise ValueError(f"{manifest}, line {number}: path {row.fields['id']!r} was already listed in line {first}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{manifest} is empty. {EXPECTED}")
    return rows


def _parse(line: str, folder: epath.Path) -> ManifestRow:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}): {line[:80]!r}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {line[:80]!r}")
    for name in REQUIRED:
        if row.get(name) is None or (name != "emotion" and not row[name]):
            raise ValueError(f"required field {name!r} is missing. {EXPECTED}")
    language = str(row["language"])
    if not _LANGUAGE.fullmatch(language):
        raise ValueError(f"language {language!r} is not BCP-47: expected such as 'en', 'zh' or 'pt-BR'")
    given = {name: row[name] for name in _OPTIONAL if row.get(name) is not None}
    fields = {name: _value(name, value) for name, value in given.items()} | {
        "id": str(row["path"]),
        "language": language,
        "emotion_native": str(row["emotion"]),
    }
    fields.setdefault("corpus", folder.name)
    fields.setdefault("speaker", "")
    if fields.get("split", "") not in SPLITS:
        raise ValueError(f"split {fields['split']!r}: expected train, validation or test")
    return ManifestRow(path=folder / str(row["path"]), fields=fields)


_DECIDED_HERE = {"id", "audio", "sampling_rate", "duration_s", "language", "emotion", "emotion_native"}
# Fields of the record that a manifest may state under the same name; `emotion` there is the native label.
_OPTIONAL = {f.name: f.type for f in dataclasses.fields(record.Utterance) if f.name not in _DECIDED_HERE}


def _value(name: str, value: Any) -> str | float:
    if _OPTIONAL[name] == "float":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}: expected a number, got {value!r}")
        return float(value) if math.isfinite(value) else math.nan
    if name == "votes" and isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name}: expected text, got {value!r}")
    return str(value)
