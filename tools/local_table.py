"""The table of launch/local.sh: both stages on the languages that they never heard, as README shows it.

Usage: python tools/local_table.py WORKDIR

WORKDIR/evaluation/{stage1,stage2} hold the results.json of both; what is not there has no row.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from etils import epath

from mser_jax import storage
from mser_jax.evaluation import report
from mser_jax.evaluation.rows import PROTOCOLS

# {row: folder of its results.json below WORKDIR/evaluation}
RESULTS = {
    "stage 1, similarity to prompts": "stage1",
    "stage 2, label likelihood": "stage2",
    "stage 2, generation, read by `exact`": "stage2/generation_exact",
}


def read(workdir: epath.Path) -> dict[str, dict[str, Any]]:
    """Read {row: results.json} of what was scored below `workdir`."""
    folders = {name: workdir / "evaluation" / folder for name, folder in RESULTS.items()}
    return {name: report.read(folder) for name, folder in folders.items() if (folder / report.FILE).exists()}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the figures by language, of the strictest protocol that has rows, and below them voice against words."""
    macros = next(iter(found.values()))["macro"]
    protocol = next(name for name in (*PROTOCOLS, "all") if macros.get(name, {}).get("rows"))
    rows = {
        name: [row for row in one["rows"] if row["adapt"] == "none" and protocol in (row["protocol"], "all")]
        for name, one in found.items()
    }
    first = next(iter(rows.values()))
    languages = sorted({row["language"] for row in first})
    counts = sorted({row["n"] for row in first})
    title = f"{protocol.replace('_', ' ')}, n = {' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} each"
    lines = [
        (f"{title}, {max(row['speakers'] for row in first)} voices", *languages, "UA  [95 % interval]", "macro-F1")
    ]
    for name, one in found.items():
        macro, by_language = one["macro"][protocol], {row["language"]: row["ua"] for row in rows[name]}
        span = ", ".join(map(_figure, macro["ua_ci95"])) if macro["ua_ci95"] else "–"
        uas = [_figure(by_language.get(language)) for language in languages]
        lines.append((name, *uas, f"{_figure(macro['ua'])}  [{span}]", _figure(macro["macro_f1"])))
    clashes = {
        name.partition(",")[0]: one["incongruence"]["conflicting_words"]["all"]
        for name, one in reversed(found.items())
        if "conflicting_words" in one.get("incongruence", {})
    }
    out = _aligned(lines)
    if clashes:
        n = next(iter(clashes.values()))["n"]
        head = (f"conflicting words, n = {n}", "answers that follow the voice", "the words")
        cells = [(name, _figure(one["by_voice"]), _figure(one["by_words"])) for name, one in sorted(clashes.items())]
        out += ["", *_aligned([head, *cells])]
    return "\n".join(out)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".removeprefix("0")


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Lines of columns, the first to the left and the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  " + "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]


def main() -> None:
    """Print the table, and what to try next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=storage.absolute)
    workdir = parser.parse_args().workdir
    try:
        found = read(workdir)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if not found:
        raise SystemExit(f"error: no {report.FILE} below {workdir / 'evaluation'}: run launch/local.sh {workdir}")
    print(f"\n{table(found)}\n")
    newest = "stage2" if (workdir / "stage2").exists() else "stage1"
    print(f"Try it: .venv/bin/python -m mser_jax.predict --checkpoint={workdir / newest} RECORDING.wav")


if __name__ == "__main__":
    main()
