"""The leave-one-language-out table of folders of runs (launch/lolo.sh) beside reference rows.

Usage: python tools/lolo_table.py RUNS [RUNS …]

RUNS/LANGUAGE/seed_N are workdirs of training runs. A figure is the mean over the seeds (and over a language's corpora);
± is the standard deviation of the seeds' means over languages. Where runs were probed (--config.evaluate.probes=True),
how well the language and the speaker are told from the embedding stands below.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics

from etils import epath

from mser_jax.evaluation import report

ADAPTATIONS = ("none", "corpus", "speaker")
# {adaptation: {language: {seed: UA}}}
Figures = dict[str, dict[str, dict[str, float]]]


def newest(run: epath.Path, evaluator: str) -> epath.Path | None:
    """The folder of a run's last evaluation, or None when there is none yet."""
    folders = sorted((run / "evaluations" / evaluator).glob("step_*"))
    return folders[-1] if folders else None


def figures_of(runs: epath.Path) -> Figures:
    """UA of every run below `runs`; rows that are not zero-shot are refused."""
    out: Figures = {}
    for run in sorted(runs.glob("*/seed_*")):
        folder = newest(run, "zero_shot")
        if folder is None:
            print(f"{run}: no results yet")
            continue
        language, rows = run.parent.name, report.read(folder)["rows"]
        seen = [row["corpus"] for row in rows if row["language"] == language and not row["zero_shot"]]
        if seen:
            raise SystemExit(f"{run}: {seen} are not zero-shot: {rows[0].get('why_not')}")
        for adapt in ADAPTATIONS:
            scores = [row["ua"] for row in rows if (row["adapt"], row["language"]) == (adapt, language)]
            if scores:
                seeds = out.setdefault(adapt, {}).setdefault(language, {})
                seeds[run.name] = statistics.mean(scores)
    return out


def rows_of(runs: epath.Path) -> dict[str, dict[str, float]]:
    """{row name: {language: UA}}, a row an adaptation."""
    out = {}
    for adapt, languages in figures_of(runs).items():
        by_seed = collections.defaultdict(list)
        for seeds in languages.values():
            for seed, ua in seeds.items():
                by_seed[seed].append(ua)
        means = [statistics.mean(values) for values in by_seed.values() if len(values) == len(languages)]
        spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
        name = f"{runs.name}, {len(by_seed)} seed{'s' * (len(by_seed) > 1)}{spread}, adapt={adapt}"
        out[name] = {language: statistics.mean(seeds.values()) for language, seeds in languages.items()}
    return out


def probes_of(runs: epath.Path) -> str:
    """One line: the mean over runs of each probe, beside chance; '' where nothing was probed."""
    found = collections.defaultdict(list)
    for run in sorted(runs.glob("*/seed_*")):
        folder = newest(run, "probes")
        results = json.loads((folder / "probes.json").read_text()) if folder else {}
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
    parser.add_argument("runs", nargs="+", type=epath.Path)
    folders = parser.parse_args().runs
    print(report.reference_table({name: ua for runs in folders for name, ua in rows_of(runs).items()}))
    print("\n".join(filter(None, map(probes_of, folders))))


if __name__ == "__main__":
    main()
