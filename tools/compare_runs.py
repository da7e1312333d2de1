"""Is one run better than another? The difference of their UA on the same utterances, with its interval.

Usage: python tools/compare_runs.py RUN_A RUN_B [--adapt=none|speaker|none,speaker…]

RUN is the workdir of a training run (its newest evaluation counts), or any folder with a results.json that
`python -m mser_jax.main --config=configs/evaluate.py` wrote. Utterances are paired by their ids; speakers are drawn
once for both runs and for all languages that they speak (mser_jax/evaluation/comparison.py). A difference is RUN_B
less RUN_A. Where either run was evaluated in several ways, name the folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from mser_jax import storage
from mser_jax.evaluation import comparison, predictions
from mser_jax.evaluation.rows import ADAPTATIONS


def evaluations(run: epath.Path) -> dict[str, epath.Path]:
    """{what it is called: folder with predictions} of a run, or of one evaluation ("")."""
    if (run / predictions.FILE).exists():
        return {"": run}
    found = {}
    for evaluator in sorted(path for path in (run / "evaluations").glob("*") if path.is_dir()):
        steps = sorted(evaluator.glob("step_*"))
        for path in (steps[-1], *sorted(steps[-1].glob("*/"))) if steps else ():
            if (path / predictions.FILE).exists():
                found[evaluator.name if path == steps[-1] else path.name] = path
    return found


def folders(run_a: str, run_b: str) -> tuple[epath.Path, epath.Path]:
    """The evaluations of two runs that are compared.

    Raises:
        ValueError: a run has none, or it is not clear which is meant.
    """
    sides = []
    for run in (run_a, run_b):
        path = storage.absolute(run)
        found = evaluations(path)
        if not found:
            there = "it has no evaluation with" if path.exists() else "there is no such folder; expected one with"
            raise ValueError(f"{run}: {there} {predictions.FILE}; evaluate it with configs/evaluate.py")
        sides.append(found)
    left, right = sides
    if len(left) == len(right) == 1:
        return next(iter(left.values())), next(iter(right.values()))
    shared = left.keys() & right.keys()
    if len(shared) != 1:
        names = " and ".join(", ".join(str(path) for path in side.values()) for side in sides)
        raise ValueError(f"which evaluations are meant? Name two of these folders: {names}")
    (name,) = shared
    return left[name], right[name]


def line(row: dict) -> tuple[str, ...]:
    """Cells of a row of `comparison.compare`."""
    name = f"{row['corpus']}/{row['language']}" if row["corpus"] or row["language"] else "mean of languages"
    span = "–" if row["ci95"] is None else "[{:+.3f}, {:+.3f}]".format(*row["ci95"])
    p = "–" if row["p"] is None else f"{row['p']:.4f}"
    ua = (f"{value:.3f}" for value in row["ua"])
    return (name, str(row["n"]), str(row["speakers"]), *ua, f"{row['difference']:+.3f}", span, p)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit code is 0, or 2 where the runs cannot be compared."""
    parser = argparse.ArgumentParser(
        "tools/compare_runs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs=2, metavar="RUN")
    parser.add_argument(
        "--adapt", default="none", help=f"one of {', '.join(ADAPTATIONS)}; 'none,speaker': of either run"
    )
    parser.add_argument("--resamples", type=int, default=10_000, help="joint draws of speakers")
    options = parser.parse_args(argv)
    adapt = tuple(options.adapt.split(",")) * (1 if "," in options.adapt else 2)
    try:
        if len(adapt) != 2 or set(adapt) - set(ADAPTATIONS):
            raise ValueError(f"--adapt={options.adapt}: expected one of {', '.join(ADAPTATIONS)}, or two")
        if options.resamples < 100:
            raise ValueError(f"--resamples={options.resamples}: expected 100 or more")
        chosen = folders(*options.runs)
        found = comparison.compare(*map(predictions.read, chosen), adapt, resamples=options.resamples)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"A {chosen[0]}, adapt={adapt[0]}\nB {chosen[1]}, adapt={adapt[1]}\n")
    cells = [("UA", "n", "speakers", "A", "B", "B − A", "95 % interval", "p"), *map(line, found)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
