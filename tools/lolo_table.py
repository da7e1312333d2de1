"""The leave-one-language-out table of folders of runs (launch/lolo.sh) beside reference rows.

Usage: python tools/lolo_table.py RUNS [RUNS …]

RUNS/LANGUAGE/seed_N are workdirs of training runs of either stage. A figure is the mean over the seeds (and over a
language's corpora); ± is the standard deviation of the seeds' means over languages. Where runs were probed
(--config.evaluate.probes=True), how well the language and the speaker are told from the embedding stands below.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics

from etils import epath

from mser_jax import storage
from mser_jax.evaluation import report
from mser_jax.evaluation.rows import ADAPTATIONS

# What a row is called: the folder of its evaluator below `evaluations/…/step_N`.
EVALUATIONS = {
    "": ("zero_shot", "."),
    "label likelihood, ": ("label_likelihood", "."),
    "generation, ": ("generation", "generation_levenshtein"),
    "probe of its encoder, ": ("encoder_probe", "encoder_probe"),
}
# {evaluation and adaptation: {language: {seed: UA}}}
Figures = dict[str, dict[str, dict[str, float]]]


def newest(run: epath.Path, evaluator: str) -> epath.Path | None:
    """The folder of a run's last evaluation, or None when there is none yet."""
    folders = sorted((run / "evaluations" / evaluator).glob("step_*"))
    return folders[-1] if folders else None


def figures_of(runs: epath.Path) -> Figures:
    """UA of every run below `runs`; rows that are not zero-shot are refused."""
    out: Figures = {}
    for run in sorted(runs.glob("*/seed_*")):
        found = {name: folder / inside for name, (evaluator, inside) in EVALUATIONS.items()
                 if (folder := newest(run, evaluator)) and (folder / inside / report.FILE).exists()}  # fmt: skip
        if not found:
            print(f"{run}: no results yet")
        for name, folder in found.items():
            for adapt, ua in scores_of(folder, run.parent.name).items():
                out.setdefault(f"{name}adapt={adapt}", {}).setdefault(run.parent.name, {})[run.name] = ua
    return out


def scores_of(results: epath.Path, language: str) -> dict[str, float]:
    """{adaptation: UA on `language`}, the mean over its corpora. Ends the program where it is not zero-shot."""
    rows = [row for row in report.read(results)["rows"] if row["language"] == language]
    seen = [f"{row['corpus']} ({row.get('why_not')})" for row in rows if not row["zero_shot"]]
    if seen:
        raise SystemExit(f"{results}: not zero-shot: {', '.join(seen)}")
    scores = {adapt: [row["ua"] for row in rows if row["adapt"] == adapt] for adapt in ADAPTATIONS}
    return {adapt: statistics.mean(uas) for adapt, uas in scores.items() if uas}


def rows_of(runs: epath.Path) -> dict[str, dict[str, float]]:
    """{row name: {language: UA}}, a row an evaluation and adaptation."""
    out = {}
    for kind, languages in figures_of(runs).items():
        by_seed = collections.defaultdict(list)
        for seeds in languages.values():
            for seed, ua in seeds.items():
                by_seed[seed].append(ua)
        means = [statistics.mean(values) for values in by_seed.values() if len(values) == len(languages)]
        spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
        name = f"{runs.name}, {len(by_seed)} seed{'s' * (len(by_seed) > 1)}{spread}, {kind}"
        out[name] = {language: statistics.mean(seeds.values()) for language, seeds in languages.items()}
    return out


def probes_of(runs: epath.Path) -> str:
    """One line: the mean over runs of each probe, beside chance; '' where nothing was probed."""
    found = collections.defaultdict(list)
    for run in sorted(runs.glob("*/seed_*")):
        folder = newest(run, "probes")
        path = folder and folder / "probes.json"
        results = json.loads(path.read_text()) if path and path.exists() else {}
        for name in ("language", "speaker"):
            if name in results:
                found[name].append((results[name]["balanced_accuracy"], results[name]["chance"]))
    parts = []
    for name, pairs in found.items():
        told, chance = (statistics.mean(column) for column in zip(*pairs, strict=True))
        parts.append(f"{name} {told:.3f} (chance {chance:.3f})")
    return f"{runs.name}, told by a linear probe: {', '.join(parts)}" if parts else ""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=storage.absolute)
    folders = parser.parse_args().runs
    if lacking := [str(folder) for folder in folders if not any(folder.glob("*/seed_*"))]:
        parser.error(f"{', '.join(lacking)}: no runs there; expected folders LANGUAGE/seed_N")
    try:
        print(report.reference_table({name: ua for runs in folders for name, ua in rows_of(runs).items()}))
        print("\n".join(filter(None, map(probes_of, folders))))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
