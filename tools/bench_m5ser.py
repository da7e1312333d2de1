"""Audio-seconds a second a core of generating speech, filters on, beside the bare engine on the same lines.

Usage: python tools/bench_m5ser.py [--config=configs/m5ser.py[:six]] [--utterances=600] [--repeats=3]
           [--set=section.key=value …]
Prints JSON. `generator` makes the plan's chunks as a worker does (speech, checks, 16 kHz, filters, pitch, FLAC, record
file, index rows); `engine` only speaks the same lines. Both run in this process, alternating, after one chunk that
loads what loads once (`start_seconds`); figures are medians over the repeats of seconds of audio per second of CPU
time, of all threads. `parts` is the share of the CPU seconds by what they were spent on. `hours_1000` is what 1,000
hours of such audio take at that rate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from etils import epath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mser_jax import config as config_lib
from mser_jax.m5ser import chunks, generate, pipeline
from mser_jax.m5ser.plan import Plan


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds, of all threads, that `work` takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def measure(plan: Plan, tools: pipeline.Tools, folder: epath.Path, repeats: int) -> dict[str, Any]:
    """Generator and bare engine over the same lines, another chunk of the plan in every repeat, alternating."""
    (folder / chunks.ROWS).mkdir(parents=True)
    start = cpu_seconds(lambda: tools.make(folder, 0, plan))
    rates: dict[str, list[float]] = {"generator": [], "engine": []}
    parts, audio, size, passed, lines = {}, 0.0, 0, 0, 0
    for number in range(1, repeats + 1):
        whole = cpu_seconds(lambda number=number: tools.make(folder, number, plan))
        rows = chunks.read_rows(folder, number)
        seconds = sum(rows.table["duration_s"].to_pylist())
        bare = cpu_seconds(lambda number=number: speak(plan, number, tools))
        rates["generator"].append(seconds / whole)
        rates["engine"].append(seconds / bare)
        for part, spent in rows.facts["cpu_seconds"].items():
            parts[part] = parts.get(part, 0.0) + spent
        audio, size = audio + seconds, size + rows.facts["shard_bytes"]
        passed += rows.table["reason"].to_pylist().count("")
        lines += len(rows.table)
    generator = statistics.median(rates["generator"])
    return {
        "audio_seconds_per_cpu_second": {name: round(statistics.median(found), 1) for name, found in rates.items()},
        "spread": {name: [round(min(found), 1), round(max(found), 1)] for name, found in rates.items()},
        "utterances": lines, "mean_seconds": round(audio / lines, 3), "passed": round(passed / lines, 4),
        "start_seconds": round(start, 2), "parts": {k: round(v / sum(parts.values()), 3) for k, v in parts.items()},
        "hours_1000": {"cpu_hours": round(1000 / generator, 2), "gigabytes": round(size / audio * 3.6e6 / 1e9, 1)},
    }  # fmt: skip


def speak(plan: Plan, number: int, tools: pipeline.Tools) -> None:
    """The floor: no checks, filters or files."""
    for line in plan.chunk(number):
        tools.engines[line.engine].speak(
            line.text.text, language=line.language, voice=line.voice, emotion=line.emotion, intensity=line.intensity,
            seed=line.seed,
        )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/m5ser.py:six")
    parser.add_argument("--utterances", type=int, default=600, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of the config")
    args = parser.parse_args(argv)
    config = config_lib.load(args.config)
    for pair in args.set:
        key, _, value = pair.partition("=")
        config_lib.check_key(config, key)
        config.update_from_flattened_dict({key: yaml.safe_load(value)})  # False is no text
    tools = pipeline.tools(generate.worker_settings(config))
    plan = generate.make_plan(config, tools.engines)
    plan = dataclasses.replace(plan, chunk_utterances=args.utterances // len(plan.emotions) * len(plan.emotions))
    plan = plan.with_utterances((args.repeats + 1) * plan.chunk_utterances + plan.round_utterances)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(plan, tools, epath.Path(folder), args.repeats)
    filters = [name for name, section in config.filters.items() if section.enabled]
    print(json.dumps({"config": args.config, "filters": filters, **found}, indent=1))


if __name__ == "__main__":
    main()
