"""A page of headings, text, tables, pictures and players, as one HTML file with everything in it and as Markdown."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence

FOLDER = "card"  # of the pictures and clips that Markdown refers to

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { line-height: 1.2; margin-bottom: .3rem; }
h2 { margin-top: 2.5rem; border-bottom: 2px solid #ddd; padding-bottom: .2rem; }
h3 { margin-bottom: .3rem; }
p { max-width: 52rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
th { background: #f4f4f4; font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.total td { font-weight: 600; border-top: 2px solid #bbb; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #555; max-width: 52rem; }
.said { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
.clips { display: flex; flex-wrap: wrap; gap: .8rem; max-width: 54rem; }
.clips div { border: 1px solid #e4e4e4; border-radius: .4rem; padding: .4rem .6rem; font-size: .9rem; }
.clips b { display: block; }
.clips audio { display: block; width: 15rem; height: 2.2rem; margin-top: .2rem; }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text; what looks like a number is set right. has_total: the last row sums up the others."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    has_total: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG; `name` is that of its file."""

    name: str
    png: bytes
    caption: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """An MP3 and what is written above its player; `name` is that of its file."""

    name: str
    label: str
    mp3: bytes


@dataclasses.dataclass(frozen=True)
class Players:
    """Clips of the same words."""

    said: str
    clips: Sequence[Clip]


Block = Heading | Paragraph | Table | Picture | Players


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One file that needs no other; pictures and clips are data URIs."""
    body = "\n".join(map(_html, blocks))
    name = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(title: str, blocks: Sequence[Block]) -> tuple[str, dict[str, bytes]]:
    """(text, files): the text refers to the files, name -> content, in FOLDER."""
    files: dict[str, bytes] = {}
    for block in blocks:
        if isinstance(block, Picture):
            files[block.name] = block.png
        elif isinstance(block, Players):
            files |= {clip.name: clip.mp3 for clip in block.clips}
    return f"# {title}\n\n" + "\n\n".join(map(_markdown, blocks)) + "\n", files


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        image = f'<img alt="{html.escape(block.caption, quote=True)}" src="{_uri("image/png", block.png)}">'
        return f"<figure>{image}<figcaption>{html.escape(block.caption)}</figcaption></figure>"
    if isinstance(block, Players):
        clips = "".join(
            f'<div><b>{html.escape(clip.label)}</b><audio controls preload="none" src="{_uri("audio/mpeg", clip.mp3)}">'
            "</audio></div>"
            for clip in block.clips
        )
        return f'<p class="said">{html.escape(block.said)}</p><div class="clips">{clips}</div>'
    return _html_table(block)


def _html_table(table: Table) -> str:
    is_number = [_is_numeric([row[column] for row in table.rows]) for column in range(len(table.header))]

    def row(cells: Sequence[str], tag: str, mark: str = "") -> str:
        set_as = (' class="number"' if number else "" for number in is_number)
        inner = "".join(f"<{tag}{how}>{html.escape(c)}</{tag}>" for c, how in zip(cells, set_as, strict=True))
        return f"<tr{mark}>{inner}</tr>"

    last = len(table.rows) - 1
    rows = (row(c, "td", ' class="total"' * (table.has_total and i == last)) for i, c in enumerate(table.rows))
    return f'<div class="wide"><table>{row(table.header, "th")}{"".join(rows)}</table></div>'


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Picture):
        return f"![{block.caption}]({FOLDER}/{block.name})\n\n*{block.caption}*"
    if isinstance(block, Players):
        return f"{block.said}: " + " · ".join(f"[{clip.label}]({FOLDER}/{clip.name})" for clip in block.clips)
    numeric = [_is_numeric([row[column] for row in block.rows]) for column in range(len(block.header))]
    lines = [block.header, ["---:" if number else "---" for number in numeric], *block.rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _is_numeric(cells: Sequence[str]) -> bool:
    return all(not cell or cell[0] in "0123456789.−+–" for cell in cells)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
