"""The leave-one-language-out table of a folder of runs (launch/lolo.sh) beside reference rows.

Usage: python tools/lolo_table.py RUNS [RUNS …]    RUNS/LANGUAGE/evaluations/zero_shot/step_*/results.json
"""

from __future__ import annotations

import argparse
import statistics

from etils import epath

from mser_jax.evaluation import report


def newest(run: epath.Path) -> dict | None:
    """The results of a run's last evaluation, or None when there is none yet."""
    folders = sorted((run / "evaluations" / "zero_shot").glob("step_*"))
    return report.read(folders[-1]) if folders else None


def rows_of(runs: epath.Path) -> dict[str, dict[str, float]]:
    """{row name: {language: UA}}; a language's corpora are averaged, rows that are not zero-shot refused."""
    out: dict[str, dict[str, float]] = {}
    for run in sorted(path for path in runs.iterdir() if path.is_dir()):
        results = newest(run)
        if results is None:
            print(f"{run}: no results yet")
            continue
        for adapt in sorted({row["adapt"] for row in results["rows"]}, key=["none", "corpus", "speaker"].index):
            rows = [row for row in results["rows"] if row["adapt"] == adapt and row["language"] == run.name]
            seen = [row["corpus"] for row in rows if not row["zero_shot"]]
            if seen:
                raise SystemExit(f"{run}: {seen} are not zero-shot: {rows[0].get('why_not')}")
            name = f"{runs.name}, step {results['step']}" + ("" if adapt == "none" else f", adapt={adapt}")
            out.setdefault(name, {})[run.name] = statistics.mean(row["ua"] for row in rows)
    return out


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=epath.Path)
    ours = {name: ua for runs in parser.parse_args().runs for name, ua in rows_of(runs).items()}
    print(report.reference_table(ours))


if __name__ == "__main__":
    main()
