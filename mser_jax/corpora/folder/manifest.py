"""The manifest of a speech folder: what every line says of a recording, read and checked."""

from __future__ import annotations

import dataclasses
import json
import math
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from mser_jax import storage
from mser_jax.corpora import languages, record
from mser_jax.corpora.folder import files, lines
from mser_jax.corpora.raw import SPLITS

MANIFEST = "manifest.jsonl"
REQUIRED = ("path", "language", "emotion")

EXPECTED = f"""A speech folder holds a {MANIFEST} with one JSON object a line, such as
  {{"path": "anna/001.wav", "language": "de", "emotion": "Wut", "speaker": "anna", "transcript": "Komm her!"}}
path: a recording, relative to the folder; language: BCP-47; emotion: your own label ("" where unknown).
Optional: corpus, speaker, gender, age, transcript, parallel_id, split (train | validation | test), valence,
arousal, dominance, votes, domain, license. Other fields are ignored.
A labels.toml beside it maps labels of your own to emotions: [labels] and lines such as "fed up" = "angry"."""

# What tables of others write into empty cells. Some of these are words as well, so speech and labels keep those.
_EMPTY = frozenset(("", "nan", "NaN", "-nan", "-NaN", "<NA>", "#N/A", "#NA", "NaT"))
_EMPTY_TOO = frozenset(("NA", "N/A", "n/a", "None", "NULL", "null"))
_NOBODY = frozenset(("unknown", "unk", "?", "-", "--"))  # of speakers; any case
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_LONGEST = {"transcript": 100_000, "votes": 100_000}  # characters
_LONGEST_OTHERS = 1_000
_SHOWN = 80


@dataclasses.dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest.

    fields: the keyword arguments of RawUtterance, without `audio`, and without `corpus` where the line does not say it.
    """

    line: int
    file: files.File
    fields: dict[str, Any]

    @property
    def path(self) -> epath.Path:
        """Where the recording lies."""
        return epath.Path(self.file.path)


def read_manifest(folder: epath.PathLike, outside: str = "") -> list[ManifestRow]:
    """Rows of DIR/manifest.jsonl, checked; blank lines are passed over.

    outside: a folder elsewhere whose recordings may be named too ("" = none).

    Raises:
      FileNotFoundError: no such folder, or no manifest in it.
      ValueError: a line that is no JSON object, lacks a required field, has a language that is not BCP-47, a value of
        the wrong type, a path that leads out of the folder or one that came before; with file, line and what was
        expected.
    """
    finder = files.Folder(folder, outside)
    manifest = finder.path / MANIFEST
    if not manifest.exists():
        there = finder.path.exists()
        missing = f"no folder {finder.path}" if not there else f"no {MANIFEST} in {finder.path}"
        if there and not finder.path.is_dir():
            missing = f"{finder.path} is a file, expected the folder that holds it"
        raise FileNotFoundError(f"speech_folder: {missing}. {EXPECTED}")
    # epath calls all that is no folder a file; reading a pipe never ends.
    if not (storage.is_remote(manifest) or Path(manifest).is_file()):
        raise ValueError(f"{manifest} is not a file. {EXPECTED}")
    rows: list[ManifestRow] = []
    seen: dict[str, int] = {}
    led_out: list[tuple[int, files.OutsideError]] = []
    for number, given in lines.objects(manifest):
        try:
            row = _row(number, given, finder)
            first = seen.setdefault(row.file.id, number)
            if first != number:
                raise ValueError(f"path {row.file.id[:_SHOWN]!r} was already listed in line {first}")
        except files.OutsideError as error:
            led_out.append((number, error))
            continue
        except ValueError as error:
            raise ValueError(f"{manifest}, line {number}: {error}") from error
        rows.append(row)
    if led_out:
        raise ValueError(_led_out(finder, led_out))
    if not rows:
        raise ValueError(f"{manifest} is empty. {EXPECTED}")
    return rows


def _led_out(finder: files.Folder, found: Sequence[tuple[int, files.OutsideError]]) -> str:
    number, first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    local = sorted({error.place for _, error in found if error.place.startswith("/")})
    place = posixpath.commonpath(local) if local else first.place
    return (
        f"{finder.path / MANIFEST}, line {number}{more}: {first}. Where you trust the manifest, allow the folder "
        f"that it leads to: speech_folder:{finder.given}?outside={record.storable(place)}"
    )


def _row(number: int, given: dict[str, Any], finder: files.Folder) -> ManifestRow:
    for name in REQUIRED:
        if _is_missing(name, given.get(name)) or (name != "emotion" and given[name] == ""):
            hint = ', write "" where it is unknown' if name == "emotion" else ""
            there = f"; the line has {_short(', '.join(given))}" if name not in given else ""
            raise ValueError(f"required field {name!r} is missing{hint}{there}")
    if not isinstance(given["path"], str):
        raise ValueError(f"path: expected text, got {_short(given['path'])}")
    there = (name for name in given if name in _OPTIONAL and not _is_missing(name, given[name]))
    fields = {name: value for name in there if (value := _value(name, given[name])) != ""}
    fields |= {"language": languages.check(_text("language", given["language"]))}
    fields |= {"emotion_native": _text("emotion", given["emotion"])}
    if fields.get("split", "") not in SPLITS:
        raise ValueError(f"split {fields['split'][:_SHOWN]!r}: expected train, validation or test")
    fields.setdefault("speaker", "")
    file = finder.find(given["path"])
    return ManifestRow(number, file, {"id": file.id} | fields)


def default_corpus(folder: epath.Path) -> str:
    """Return what the corpus of a folder is called where its manifest does not say: the folder's name."""
    return _CONTROL.sub(" ", unicodedata.normalize("NFC", record.storable(folder.name))).strip() or "speech_folder"


_DECIDED_HERE = {"id", "audio", "sampling_rate", "duration_s", "language", "emotion", "emotion_native"}
# Fields of the record that a manifest may state under the same name; `emotion` there is the native label.
_OPTIONAL = {f.name: f.type for f in dataclasses.fields(record.Utterance) if f.name not in _DECIDED_HERE}


def _is_missing(name: str, value: Any) -> bool:
    """Whether a cell is empty: null, NaN, or what programs write for those."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if not isinstance(value, str) or name == "path":
        return False
    text = value.strip()
    if name == "language":
        return text in (_EMPTY | _EMPTY_TOO) - {"nan"}  # that one has a message of its own
    if name in ("emotion", "transcript"):
        return text in _EMPTY and text != ""
    return text in _EMPTY or text in _EMPTY_TOO or (name == "speaker" and text.casefold() in _NOBODY)


def _value(name: str, value: Any) -> str | float:
    if _OPTIONAL[name] == "float":
        return _number(name, value)
    if name == "votes":
        return _votes(value)
    text = _text(name, value)
    # A column with an empty cell is one of floats in many programs, so speaker 7 becomes "7.0" in some lines.
    return re.sub(r"(?<=^)(-?\d+)\.0+$", r"\1", text) if name in ("speaker", "age") else text


def _number(name: str, value: Any) -> float:
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+(\.\d*)?([eE][-+]?\d+)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: expected a number, got {_short(value)}")
    if not abs(value) < 1e30:  # float32's range; also of integers that no float holds
        raise ValueError(f"{name}: expected a finite number, got {_short(value)}")
    return float(value)


def _votes(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = _short(value)
    if not isinstance(value, dict):
        raise ValueError(f"votes: expected an object label -> votes, got {_short(value)}")
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in value.values()):
        raise ValueError(f"votes: expected numbers, got {_short(value)}")
    return _checked("votes", json.dumps(value, ensure_ascii=False, sort_keys=True))


def _text(name: str, value: Any) -> str:
    """Text in Unicode's composed form; control characters are blanks, whole numbers have no decimals."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
        raise ValueError(f"{name}: expected text, got {_short(value)}")
    text = str(value)
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", _CONTROL.sub(" ", text))
    return _checked(name, text.strip())


def _checked(name: str, text: str) -> str:
    if len(text) > (longest := _LONGEST.get(name, _LONGEST_OTHERS)):
        raise ValueError(f"{name}: {len(text)} characters, expected at most {longest}: {_short(text)}")
    if not text.isascii() and re.search(r"[\ud800-\udfff]", text):
        raise ValueError(
            f"{name} holds half of a surrogate pair, so its text was cut within a character: {_short(text)}"
        )
    return text


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**_SHOWN:
        return "a very large integer"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
