"""Audio-seconds a second a core of the training input pipeline, beside the floor: soundfile alone on the same bytes.

Usage: python tools/bench_data.py [--config=configs/stage1.py[:variant]] [--corpora=m5ser_mini] [--steps=20]
           [--repeats=5] [--workers=1,2]
Prints JSON. `pipeline` and `floor` treat the same records in one thread, alternating; their figures are
medians over the repeats of recorded seconds (before any crop) per second of CPU time of the whole process, so
whatever a library does in threads of its own counts. `workers` is wall-clock throughput with that many
processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mser_jax import config as config_lib
from mser_jax.data import mixture, pipeline, sources
from mser_jax.stages import alignment, speech_data, towers


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds, of all threads, that `work` takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def decode_alone(recordings: list[bytes]) -> None:
    """The floor: no reading, cropping, labels or captions."""
    for data in recordings:
        soundfile.read(io.BytesIO(data), dtype="int16")


def throughput(table: sources.MixtureTable, options: pipeline.TrainOptions, steps: int) -> float:
    """Recorded seconds per wall-clock second, once the first batch of every worker is there."""
    with pipeline.train_batches(table, options, seed=0) as batches:
        for _ in range(options.read.num_workers * (options.read.prefetch + 1)):
            next(batches)
        begin = time.perf_counter()
        found = [next(batches)["record"] for _ in range(steps)]
        seconds = time.perf_counter() - begin
    return float(table["duration_s"][np.concatenate(found)].sum()) / seconds


def measure(table: sources.MixtureTable, options: pipeline.TrainOptions, steps: int, repeats: int) -> dict[str, float]:
    """Pipeline and floor over the same records, alternating."""
    inline = dataclasses.replace(options, read=pipeline.ReadOptions(num_threads=0, prefetch=0))
    plan = mixture.training_plan(table, options.mixture, batch_size=options.batch_size, seed=0)
    rows = np.concatenate([plan[step].rows for step in range(steps)])
    records = sources.RecordSource(table)
    recordings = [records.audio(row) for row in rows]
    audio_seconds = float(table["duration_s"][rows].sum())
    times: dict[str, list[float]] = {"pipeline": [], "floor": []}
    with pipeline.train_batches(table, inline, seed=0) as warm_up:
        next(warm_up)
    for _ in range(repeats):
        with pipeline.train_batches(table, inline, seed=0) as batches:
            times["pipeline"].append(cpu_seconds(lambda it=batches: list(itertools.islice(it, steps))))
        times["floor"].append(cpu_seconds(lambda: decode_alone(recordings)))
    ratios = [floor / ours for ours, floor in zip(times["pipeline"], times["floor"], strict=True)]
    return {
        "records": len(rows),
        "mean_seconds": audio_seconds / len(rows),
        **{name: audio_seconds / statistics.median(found) for name, found in times.items()},
        "pipeline_us_per_record": 1e6 * statistics.median(times["pipeline"]) / len(rows),
        "floor_us_per_record": 1e6 * statistics.median(times["floor"]) / len(rows),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Parses flags, measures, prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/stage1.py")
    parser.add_argument("--corpora", default="", help="corpus specs; default: those of the config")
    parser.add_argument("--data_dir", default="", help="where prepared corpora lie; default: TFDS's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", default="1,2", help="numbers of worker processes to try, '' for none")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's
    config = config_lib.load(args.config)
    config.data.corpora = args.corpora or config.data.corpora
    config.data.data_dir = args.data_dir or config.data.data_dir
    text = alignment.captions(config)
    options = speech_data.train_options(config, text)
    table = speech_data.SpeechData(config, towers.make(config)["speech_encoder"], text).table
    plain = dataclasses.replace(options, augmentation=type(options.augmentation)())
    out = {
        "corpora": config.data.corpora,
        "batch_size": options.batch_size,
        "audio_seconds_per_second_per_core": {
            "as_configured": measure(table, options, args.steps, args.repeats),
            "without_augmentation": measure(table, plain, args.steps, args.repeats),
        },
        "workers": {},
    }
    for workers in (int(item) for item in args.workers.split(",") if item):
        read = pipeline.ReadOptions(num_workers=workers)
        out["workers"][workers] = throughput(table, dataclasses.replace(options, read=read), 2 * args.steps)
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
