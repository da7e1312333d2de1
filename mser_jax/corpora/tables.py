"""Tables and texts that come with recordings, also where a spreadsheet has saved them again.

Errors name the file, the line and the column. A damaged line concerns its own recordings and no others.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

T = TypeVar("T")

_DELIMITERS = "\t,;|"
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx or .ods, .xls
_SNIFFED = 1 << 16  # bytes of the beginning by which the encoding is told
csv.field_size_limit(1 << 20)  # characters of the longest cell


class TableError(ValueError):
    """A table, or a line of it, that cannot be used."""


class Row(dict[str, str]):
    """One line of a table: column -> cell. `where` is its file and line, for messages."""

    def __init__(self, cells: Mapping[str, str], where: str, columns: Sequence[str]):
        super().__init__(cells)
        self.where = where
        self._columns = columns

    def __missing__(self, column: str) -> str:
        what = "no cell in" if column in self._columns else "no"
        raise TableError(f"{self.where}: {what} column {column!r}; the columns are {list(self._columns)}")

    def filled(self, column: str) -> str:
        """Return the text in a cell; "7.0" is the number 7. TableError: there is none."""
        if text := self[column].strip():
            return re.sub(r"^(\d+)\.0+$", r"\1", text)
        raise TableError(f"{self.where}, column {column!r}: empty")

    def number(self, column: str, low: float = -math.inf, high: float = math.inf) -> float:
        """Parse the number in a cell; a comma is a decimal point. Without limits, NaN where the cell is empty.

        Raises:
          TableError: no number, or not between `low` and `high`.
        """
        text = self[column].strip()
        if text.lower() in ("", "nan") and math.isinf(low):
            return math.nan
        with contextlib.suppress(ValueError):
            number = float(text.replace(",", ".") if re.fullmatch(r"[+-]?\d+,\d+", text) else text)
            if low <= number <= high:
                return number
        limits = "" if math.isinf(low) else f" from {low:g} to {high:g}"
        raise TableError(f"{self.where}, column {column!r}: expected a number{limits}, got {text!r}")

    def code(self, column: str, meanings: Mapping[str, T]) -> T:
        """Look up what the code in a cell means.

        Raises:
          TableError: `meanings` has no such code.
        """
        text = self[column].strip()
        if text in meanings:
            return meanings[text]
        raise TableError(f"{self.where}, column {column!r}: expected one of {list(meanings)}, got {text!r}")


def rows(path: epath.Path, delimiter: str = ",", columns: Sequence[str] = ()) -> Iterator[Row]:
    """Read the lines of a table, one by one; the first names the columns. Lines without any cell are passed over.

    It is UTF-8 or UTF-16, with or without a byte order mark, and divided by `delimiter`, or by another of tab, comma,
    semicolon and bar where the first line is. Where tabs are usual, there are no quotes between them.

    Args:
      columns: those that it must have.

    Raises:
      TableError: a workbook, another encoding, no such columns, one twice, a line with too many cells, or a quote that
        is not closed.
    """
    with _lines(path) as stream:
        yield from _rows(stream, path, delimiter, columns)


def cells(path: epath.Path) -> Iterator[tuple[str, list[str]]]:
    """Read (file and line, cells) of a table between commas whose lines differ in length, the first line too.

    Raises:
      TableError: as `rows`.
    """
    with _lines(path) as stream:
        for found in csv.reader(stream):
            if any(found):
                yield f"{path}, line {stream.number}", found


@contextlib.contextmanager
def _lines(path: epath.Path) -> Iterator[_Lines]:
    with path.open("rb") as binary:
        head = binary.read(_SNIFFED)
        binary.seek(0)
        stream = _Lines(io.TextIOWrapper(binary, _encoding(head, path), newline=""), path)
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise TableError(f"{path}, line {_undecodable(path)}: not UTF-8. Save it as CSV in UTF-8") from error
        except csv.Error as error:
            raise TableError(f"{path}, line {stream.number}: {error}") from error


def _rows(stream: _Lines, path: epath.Path, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    first = next(stream, "")
    if re.match(r"sep=.\s*$", first, re.IGNORECASE):  # Excel's own
        first = next(stream, "")
    usual, delimiter = delimiter, _delimiter(first, delimiter, columns)
    quoting: Any = csv.QUOTE_NONE if delimiter == usual == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader([first], delimiter=delimiter, quoting=quoting)
    names = [name.strip() for name in next(reader, [])]
    while names and not names[-1]:
        names.pop()
    twice = sorted({name for name in names if names.count(name) > 1})
    missing = [name for name in columns if name not in names]
    if twice or missing or not any(names):
        what = f"column {twice[0]!r} is there twice" if twice else f"no column {', '.join(map(repr, missing))}"
        raise TableError(f"{path}: {what}; its first line is {first.strip()[:200]!r}, expected {list(columns)} in it")
    last = stream.number
    for cells in csv.reader(stream, delimiter=delimiter, quoting=quoting):
        begin, last = last + 1, stream.number
        where = f"{path}, line {begin}"
        if last > begin and stream.quotes % 2:
            raise TableError(f"{where}: a quote is opened that is not closed, so the lines after it are lost")
        stream.quotes = 0
        if any(cell.strip() for cell in cells[len(names) :]):
            raise TableError(f"{where}: {len(cells)} cells, but the first line names {len(names)} columns")
        if any(cell.strip() for cell in cells):
            yield Row(dict(zip(names, cells, strict=False)), where, names)


class _Lines(Iterator[str]):
    """The lines of a stream, with the number of the last one and the quotes since they were last set to 0."""

    def __init__(self, stream: io.TextIOWrapper, path: epath.Path):
        self._stream = stream
        self._path = path
        self.number = self.quotes = 0

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        self.quotes += line.count('"')
        if "\0" in line:
            raise TableError(f"{self._path}, line {self.number}: NUL characters in it, so it is damaged or no text")
        return line


def _delimiter(first: str, usual: str, columns: Sequence[str]) -> str:
    """What divides the first line: `usual`, unless only another gives the columns."""

    def found(delimiter: str) -> int:
        names = [name.strip().strip('"') for name in first.split(delimiter)]
        return sum(name in names for name in columns) if columns else len(names)

    best = max(_DELIMITERS, key=lambda delimiter: (found(delimiter), delimiter == usual))
    return best if found(best) > found(usual) else usual


def _encoding(head: bytes, path: epath.Path) -> str:
    if head.startswith(_WORKBOOKS):
        raise TableError(f"{path}: a workbook of a spreadsheet and no text. Save it as CSV in UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    pairs = head[: len(head) // 2 * 2]
    if pairs and pairs.count(0) > len(pairs) // 4:  # no mark, but every other byte is zero
        return "utf-16-le" if pairs[1::2].count(0) > pairs[::2].count(0) else "utf-16-be"
    return "utf-8-sig"


def _undecodable(path: epath.Path) -> int:
    """Number of the first line that is not UTF-8 (the stream is ahead of its lines), 0 = none."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return 0


def text(path: epath.Path, *encodings: str) -> str:
    """A text file that does not say how it is encoded: UTF-16 where it begins with that byte order mark, else the first
    of UTF-8, `encodings` and Latin-1 in which it is valid.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    for encoding in ("utf-8-sig", *encodings):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode("latin-1")


def json_of(path: epath.Path, kind: type[T]) -> T:
    """Read the content of a JSON file: a list or a dict, as `kind` says.

    Raises:
      TableError: other content, or no JSON; names the file.
    """
    try:
        found = json.loads(text(path))
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: no JSON ({error})") from error
    if not isinstance(found, kind):
        raise TableError(f"{path}: expected a JSON {kind.__name__}, got {type(found).__name__}")
    return found
