"""From the bytes of a manifest, whoever saved it, to one JSON object a line; or the line and what is wrong with it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"\x1f\x8b": "a file compressed by gzip",
    b"BZh": "a file compressed by bzip2",
    b"\xfd7zXZ\x00": "a file compressed by xz",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"PAR1": "a Parquet file",
    b"version https://git-lfs": "a pointer of Git LFS; run git lfs pull",
    b"{\\rtf": "a document in RTF",
    b"<": "HTML or XML",
}
_BREAK = re.compile(r"\r\n|\r|\n")
_SHOWN = 80  # characters of a line in a message
_TO_LINES = "pandas.read_csv('FILE').to_json('manifest.jsonl', orient='records', lines=True) writes lines"


def objects(path: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every line that is not blank as (number from 1, JSON object).

    UTF-8, with its byte order mark or without, and UTF-16 and UTF-32 with theirs are read; lines end as on any system.

    Raises:
      OSError: the file cannot be read.
      ValueError: other bytes than text, or a line that is no JSON object or has a key twice; with file and line.
    """
    first = True
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(_BREAK.split(_decode(path.read_bytes(), path)), start=1):
        line = line.lstrip("\ufeff")  # of files that were joined
        if not line.strip():
            continue
        try:
            yield number, _object(line, first)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        first = False


def _decode(data: bytes, path: epath.Path) -> str:
    for start, what in _NOT_TEXT.items():
        if data.startswith(start):
            raise ValueError(f"{path}: expected one JSON object a line, got {what}")
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b"", "utf-8"))
    body = data[len(mark) :]
    head = body[:64]
    for order, zeros, text in (("LE", head[1::2], head[::2]), ("BE", head[::2], head[1::2])):
        if not mark and zeros.count(0) > len(zeros) // 2 and 0 not in text:
            raise ValueError(
                f"{path}, line 1: every other byte is 0, as in UTF-16 without its byte order mark. Save it as UTF-8: "
                f"iconv -f UTF-16{order} -t UTF-8"
            )
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        before = body[: error.start].decode(encoding)
        line, offset = len(_BREAK.findall(before)) + 1, len(mark) + error.start
        around = body[max(0, error.start - 20) : error.start + 20].decode("cp1252", errors="replace")
        as_written = f" In Windows-1252 it reads {around!r}; if that is right:" if encoding == "utf-8" else ""
        raise ValueError(
            f"{path}, line {line}: byte {body[error.start]:#04x} at offset {offset} is not {encoding.upper()}."
            f"{as_written} {'iconv -f WINDOWS-1252 -t UTF-8' if as_written else 'Save it as UTF-8'}"
        ) from error


def _object(line: str, first: bool) -> dict[str, Any]:
    if "\0" in line:
        raise ValueError(f"NUL at column {line.index(chr(0)) + 1}: the file is damaged, or not UTF-8")
    try:
        value = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        hint = _hint(line.strip(), first, error)
        raise ValueError(f"not JSON ({error.msg} at column {error.colno}): {line[:_SHOWN]!r}{hint}") from error
    except RecursionError as error:
        raise ValueError(f"nested too deep: {line[:_SHOWN]!r}") from error
    if not isinstance(value, dict):
        array = first and isinstance(value, list)
        hint = ". One JSON array; write each of its objects on a line: jq -c '.[]'" if array else ""
        raise ValueError(f"expected a JSON object, got {line[:_SHOWN]!r}{hint}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice[:_SHOWN]!r} comes twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _hint(line: str, first: bool, error: json.JSONDecodeError) -> str:
    """What was probably meant, and what to do."""
    if first and line.startswith("["):
        return ". One JSON array; write each of its objects on a line: jq -c '.[]'"
    if first and not line.startswith("{") and re.search(r"[,;\t]", line):
        return f". A table (CSV) under this name? {_TO_LINES}"
    if line in ("{", "[", "},", "}", "]"):
        return ". One object over several lines; write it on one: jq -c ."
    if line.endswith(","):
        return ". Objects stand on lines of their own without a comma after them"
    if re.search(r",\s*[}\]]", line):
        return ". JSON has no comma before a closing bracket"
    if re.match(r"\{\s*'", line):
        return ". JSON has double quotes: json.dumps writes them, str(dict) does not"
    if error.msg == "Extra data":
        return ". One object a line"
    return ". The line is cut off" if line.startswith("{") and not line.endswith("}") else ""
