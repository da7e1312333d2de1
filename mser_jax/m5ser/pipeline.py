"""The chunks of a plan by Apache Beam: here in several processes, or unchanged on Dataflow, Flink or Spark.

Why not TFDS's own Beam writer: it shuffles all records to their shards at the end, so a run that is killed has nothing
to go on from. Here an element of the pipeline is the number of a chunk, and a worker that is given one leaves a record
file that is complete (chunks.py); what is there already is not asked for again. TFDS reads the folder all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from etils import epath
from tqdm import tqdm

from mser_jax.config import ConfigError, blame
from mser_jax.m5ser import chunks, filters, plan
from mser_jax.m5ser.engine import Engine
from mser_jax.m5ser.engines import build_engine

INSTALL = "generating speech needs Apache Beam and more: pip install mser_jax[m5ser]"
_HERE = "DirectRunner"
_POLL_SECONDS = 2.0
_READERS = 32  # chunks looked at at once: on gs:// each is a request


@dataclasses.dataclass(frozen=True)
class Tools:
    """What makes chunks, the same in every worker. `print` identifies all of it but the plan."""

    engines: Mapping[str, Engine]
    filters: Sequence[filters.Filter]
    keep_balanced: bool
    print: str

    def make(self, folder: epath.Path, number: int, cut: plan.Plan) -> None:
        """See chunks.make."""
        chunks.make(
            folder, number, cut, self._stamp(cut), engines=self.engines, filters=self.filters,
            keep_balanced=self.keep_balanced,
        )  # fmt: skip

    def is_complete(self, folder: epath.Path, number: int, cut: plan.Plan, *, retry: bool) -> bool:
        """See chunks.is_complete."""
        return chunks.is_complete(folder, number, cut, self._stamp(cut), retry=retry)

    def _stamp(self, cut: plan.Plan) -> str:
        return f"{cut.fingerprint}-{self.print}"


@functools.lru_cache(maxsize=1)
def tools(settings: str) -> Tools:
    """Engines and filters of the settings (JSON of engines -> options, filters, keep_balanced); or ConfigError."""
    told = json.loads(settings)
    with blame("engines"):
        engines = {name: build_engine(name, options) for name, options in told["engines"].items()}
    with blame("filters"):
        filter_list = filters.build_filters(told["filters"])
    return Tools(
        engines=engines,
        filters=filter_list,
        keep_balanced=told["keep_balanced"],
        print=hashlib.sha256(settings.encode()).hexdigest()[:8],
    )


@functools.lru_cache(maxsize=1)
def _plan(folder: str, version: str) -> plan.Plan:
    del version  # a process may meet the plan again, cut elsewhere
    return plan.load(epath.Path(folder))


def make_chunk(number: int, folder: str, version: str, settings: str) -> int:
    """What a Beam worker does with an element; returns it."""
    tools(settings).make(epath.Path(folder), number, _plan(folder, version))
    return number


def missing(folder: epath.Path, cut: plan.Plan, made_by: Tools, *, retry: bool) -> list[int]:
    """Numbers of the chunks that are not there. retry: nor those on parts of which an engine failed."""
    with futures.ThreadPoolExecutor(_READERS) as pool:
        there = pool.map(lambda k: made_by.is_complete(folder, k, cut, retry=retry), range(cut.num_chunks))
        return [number for number, is_there in enumerate(there) if not is_there]


def speak(folder: epath.Path, cut: plan.Plan, settings: str, wanted: Sequence[int], beam_args: Sequence[str]) -> None:
    """Makes the wanted chunks; progress with an estimate on stderr."""
    if not wanted:
        return
    import apache_beam as beam

    options = beam.options.pipeline_options.PipelineOptions(with_defaults(beam_args))
    # Workers load the plan from the folder: it may be too large to travel with the pipeline.
    with _progress(folder, cut, wanted), beam.Pipeline(_local_runner(options), options) as pipeline:
        _ = (
            pipeline
            | "chunks" >> beam.Create(list(wanted))
            | "spread" >> beam.Reshuffle()  # else one worker gets them all
            | "speak" >> beam.Map(make_chunk, os.fspath(folder), f"{cut.fingerprint}/{cut.rounds}", settings)
        )


def check_args(beam_args: Sequence[str]) -> None:
    """Raises ConfigError for what is no option of Beam (which itself would pass over it), or where there is no Beam."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    logging.disable(logging.WARNING)  # while it complains of Google packages that only Dataflow needs
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    finally:
        logging.disable(logging.NOTSET)
    parser = argparse.ArgumentParser(
        allow_abbrev=False, add_help=False, exit_on_error=False, conflict_handler="resolve"
    )
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    known = [name for action in parser._actions for name in action.option_strings]
    for argument in beam_args:
        name = argument.partition("=")[0]
        if name.startswith("-") and name not in known:
            near = difflib.get_close_matches(name, [*known, "--config", "--workdir"], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{argument}: no flag of this program and no pipeline option of Beam.{hint}")


def with_defaults(beam_args: Sequence[str]) -> list[str]:
    """Beam's arguments, and how it runs here where they do not say: a process a core, as espeak-ng has one thread."""
    defaults = {
        "--runner": _HERE,
        "--direct_num_workers": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
        "--direct_running_mode": "multi_processing",
        "--default_sdk_harness_log_level": "ERROR",
    }
    given = {argument.partition("=")[0] for argument in beam_args}
    return [*beam_args, *(f"{name}={value}" for name, value in defaults.items() if name not in given)]


def _local_runner(options: Any) -> Any:
    """DirectRunner as it falls back to, else None: by that name it first tries to download a runner written in Go."""
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability import portable_runner
    from apache_beam.runners.portability.fn_api_runner import fn_runner

    values = options.get_all_options(drop_default=True)
    if values["runner"] != _HERE:
        return None
    encoded = portable_runner.JobServiceHandle.encode_pipeline_options(values)
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


@contextlib.contextmanager
def _progress(folder: epath.Path, cut: plan.Plan, wanted: Sequence[int]) -> Iterator[None]:
    """A bar of utterances, by the chunks that appear in the folder, wherever their workers are."""
    done = threading.Event()
    waiting = set(wanted)
    before = {number: _written(folder, number) for number in wanted}
    bar = tqdm(
        total=len(cut), initial=len(cut) - sum(len(cut.chunk_range(number)) for number in wanted), unit="utt",
        desc="speaking", mininterval=0.5 if sys.stderr.isatty() else 10.0, smoothing=0.05,
    )  # fmt: skip

    def look() -> None:
        for number in sorted(waiting):
            if _written(folder, number) != before[number]:
                waiting.discard(number)
                bar.update(len(cut.chunk_range(number)))

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            with contextlib.suppress(Exception):  # of many libraries; progress must not end a run
                look()

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with contextlib.suppress(Exception):  # of many libraries; progress must not end a run
                look()


def _written(folder: epath.Path, number: int) -> float:
    try:
        return chunks.rows_path(folder, number).stat().mtime
    except FileNotFoundError:
        return 0.0
