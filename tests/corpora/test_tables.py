"""Tables as spreadsheets save them again: read where nothing is lost, else told with file, line and column."""

import csv
import io
import math
import random

import pytest
from etils import epath

from mser_jax.corpora import tables

ROWS = [
    ["file", "emotion", "valence", "words"],
    ["a.wav", "joy", "4.25", "Grüße, „Welt“"],
    ["b.wav", "anger", "", 'he said "no";\nand left'],
    ["c.wav", "sadness", "1", "終わり"],
]
COLUMNS = ("file", "emotion", "valence")


def written(rows=ROWS, delimiter=",", end="\r\n", before="", after=""):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator=end).writerows(rows)
    return before + buffer.getvalue() + after


def read(tmp_path, content, delimiter=","):
    (tmp_path / "table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(tables.rows(epath.Path(tmp_path / "table.csv"), delimiter, COLUMNS))


@pytest.mark.parametrize(
    "content",
    [
        written(),
        written(end="\n"),
        written(before="\ufeff"),
        written(delimiter=";"),
        written(before="\ufeff", delimiter="\t").encode("utf-16-le"),
        written(delimiter="|", before="sep=|\r\n"),
        written(after=",,,\r\n,,,,,,\r\n\r\n"),
        written([[*row, "", ""] for row in ROWS]),
        written([[f" {cell} " if n == 0 else cell for cell in row] for n, row in enumerate(ROWS)]),
        written(before="\ufeff").encode("utf-16-le"),
        written().encode("utf-16-be"),
        written().encode("utf-16-le"),
        written([[row[3], row[1], row[0], row[2]] for row in ROWS]),
    ],
)
def test_what_holds_the_same_is_read_the_same(tmp_path, content):
    rows = read(tmp_path, content)
    found = [[row[name].replace("\r\n", "\n") for name in ROWS[0]] for row in rows]
    assert found == ROWS[1:]
    numbers = [row.number("valence") for row in rows]
    assert numbers[::2] == [4.25, 1.0] and math.isnan(numbers[1])
    for empty in (lambda: rows[1].filled("valence"), lambda: rows[1].number("valence", 1, 7)):
        with pytest.raises(tables.TableError, match=r"line [34], column 'valence': "):
            empty()


def test_between_tabs_there_are_no_quotes(tmp_path):
    content = 'file\temotion\tvalence\twords\na.wav\tjoy\t3,5\tsay "hi\nb.wav\tjoy\t\t\n'
    first, second = read(tmp_path, content, "\t")
    assert first["words"] == 'say "hi' and first.number("valence") == 3.5 and second["file"] == "b.wav"
    assert [row["words"] for row in read(tmp_path, content.replace("\t", ";").replace('"', ""), "\t")] == ["say hi", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            written([["file", "Emotion", "valence"]] + [row[:3] for row in ROWS[1:]]),
            r"no column 'emotion'.*first line is",
        ),
        (written([["file", "emotion", "valence", "file"], *ROWS[1:]]), "column 'file' is there twice"),
        ("", "no column 'file', 'emotion'"),
        (b"PK\x03\x04" + bytes(99), "a workbook"),
        (b"\xd0\xcf\x11\xe0" + bytes(99), "a workbook"),
        (written([ROWS[0], ["a.wav", "joy", "1", "Grüße"]]).encode("latin-1"), "line 2: not UTF-8"),
        (written([ROWS[0], ROWS[1], [*ROWS[1], "one too many"]]), "line 3: 5 cells, but the first line names 4"),
        (written(end="\n", after='d.wav,joy,1,"open\ne.wav,joy,2,x\n'), "line 6: a quote is opened that is not closed"),
        (written(end="\n", after="d.wav,jo\0y,1,x\n"), "line 6: NUL"),
        (written(end="\n", after=f"d.wav,joy,1,{'x' * 2_000_000}\n"), "line 6: field larger"),
    ],
)
def test_what_is_lost_is_told_with_file_and_line(tmp_path, content, message):
    with pytest.raises(tables.TableError, match=message) as caught:
        read(tmp_path, content)
    assert "table.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cell", ["Apr 02", "04.02.2024", "4.2.1", "8", "0", "1,234,5", "x", "-3", "1e9", "inf"])
def test_a_cell_that_is_no_number_of_its_scale(tmp_path, cell):
    (row,) = read(tmp_path, written([ROWS[0], ["a.wav", "joy", cell, ""]]))
    with pytest.raises(tables.TableError, match=rf"table.csv, line 2, column 'valence': .*from 1 to 7, got {cell!r}"):
        row.number("valence", 1, 7)


def test_codes_and_cells_that_are_not_there(tmp_path):
    first, short = read(tmp_path, written([*ROWS[:2], ["b.wav"]]))
    assert first.code("emotion", {"joy": "happy"}) == "happy"
    with pytest.raises(tables.TableError, match=r"line 2, column 'emotion': expected one of \['A'\], got 'joy'"):
        first.code("emotion", {"A": 1})
    with pytest.raises(tables.TableError, match="line 3: no cell in column 'emotion'"):
        _ = short["emotion"]
    with pytest.raises(tables.TableError, match="line 2: no column 'age'"):
        _ = first["age"]


def test_a_number_that_became_a_float_is_the_same_name(tmp_path):
    rows = read(tmp_path, written([ROWS[0], ["7.0", "joy", "", ""], ["7.05", "joy", "", ""], ["a.0", "joy", "", ""]]))
    assert [row.filled("file") for row in rows] == ["7", "7.05", "a.0"]


def test_json_of_another_kind(tmp_path):
    path = epath.Path(tmp_path / "a.json")
    for text, message in (("{", "no JSON"), ("[1]", "expected a JSON dict, got list"), ("[" * 100_000, "no JSON")):
        path.write_text(text)
        with pytest.raises(tables.TableError, match=message):
            tables.json_of(path, dict)
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert tables.json_of(path, dict) == {"a": 1}


@pytest.mark.slow
def test_mutated_tables_give_rows_or_a_table_error(tmp_path):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    draw = random.Random(seed)
    for _ in range(3000):
        data = bytearray(written(delimiter=draw.choice(",;\t"), end=draw.choice(["\n", "\r\n"])).encode())
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(data))
            data[at : at + draw.randint(0, 5)] = draw.choice(
                [b"", b'"', b"\n", b";", b",", b"\xff", b"\0", b"\t", b"7"]
            )
        try:
            for row in read(tmp_path, bytes(data)):
                _ = row["file"], row.number("valence")
        except tables.TableError as error:
            assert "table.csv" in str(error) and "\n" not in str(error)
