"""THE loop: build → restore → [evaluate → save → next batch → step → log].

The order is law. Evaluation and saving see the state before the batch is drawn, so a checkpoint of step n resumes with
batch n; step n is dispatched before the metrics of step n − 1 are read, so the device never waits for the host.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import lease, optim, resuming, stages, state, step, storage
from mser_jax.checkpoint import CONTENTS, Checkpoints
from mser_jax.data.unreadable import TooManyUnreadableError
from mser_jax.evaluation import calibration
from mser_jax.parallel import distributed, preemption, sharding
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.run import check_places
from mser_jax.stages.base import Batch, Evaluator, Stage
from mser_jax.telemetry.compiling import Compilations
from mser_jax.telemetry.metrics import MetricWriter
from mser_jax.telemetry.throughput import Throughput, duration
from mser_jax.telemetry.watchdog import Watchdog

# The config of the run, from its start; of a run that went on with another config the one before is config.HASH.json.
CONFIG = "config.json"
# Written when the budget is spent and the last evaluation done: {"step", "config_hash"}.
FINISHED = "finished.json"


class EvaluationError(RuntimeError):
    """The last evaluation of a run failed; its training is done and saved."""


@dataclasses.dataclass(frozen=True)
class Program:
    """All that one config determines before any array exists."""

    stage: Stage
    definition: state.ModelDefinition
    total_steps: int
    init: Any
    abstract: state.TrainState
    train_step: Any


def build(config: ConfigDict, mesh: Mesh, stage: Stage | None = None) -> Program:
    """Stage (made here unless given), model, optimiser and jitted step for `config` on `mesh`; allocates nothing."""
    config_lib.check(config)
    batch_size, parts = config.train.batch_size, sharding.batch_parts(mesh)
    for key in ("accumulate", "encoder_microbatches"):
        if key not in config.train:
            continue
        if batch_size % (parts * config.train[key]):
            raise config_lib.ConfigError(
                f"--config.train.batch_size={batch_size}: data × fsdp = {parts} must divide it"
                + (f", times train.{key} = {config.train[key]}" if config.train[key] > 1 else "")
            )
    config_lib.choice(config, "checkpointing.content", CONTENTS)
    stage = stage or stages.make(config)
    with config_lib.blame("{speech_encoder,text_encoder,llm,model}"):
        definition = state.define(stage.build)
    size = stage.data_size()
    total = config_lib.steps(config.train.budget, batch_size, size)
    if total < 1:
        raise config_lib.ConfigError(f"--config.train.budget={config.train.budget!r}: expected at least one step")
    warmup = config_lib.steps(config.optim.warmup, batch_size, size)
    with config_lib.blame("optim"):
        multipliers = optim.group_of(list(definition.abstract), config.optim.groups)
    config_lib.choice(config, "optim.schedule", optim.SCHEDULES)
    schedule = optim.make_schedule(config.optim.schedule, config.optim.learning_rate, warmup, total)
    tx = optim.make_optimizer(
        multipliers,
        schedule,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
        clip_norm=config.optim.clip_norm,
    )
    init = state.initializer(definition, tx, multipliers, config.seed)
    abstract = state.abstract_state(init, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    with config_lib.blame("mesh"):
        sharding.check_sharded(abstract.params, shardings, config.mesh.replicated_limit)
    accumulate = config.train.accumulate
    train_step = step.make_train_step(definition, stage.loss, tx, accumulate)
    train_step = jax.jit(train_step, **step.jit_signature(abstract))
    return Program(stage, definition, total, init, abstract, train_step)


def run(config: ConfigDict, workdir: str) -> None:
    """Trains until the budget is spent; starts from the newest checkpoint below `workdir` when there is one.

    Raises:
        ConfigError: the config cannot run; the message says what to change.
        LeaseError: another program has the workdir, or took it over.
        Preempted: a signal asked to stop; the state is saved (exit code 75).
        FloatingPointError: the loss was not finite `train.max_skipped` times in a row, or a parameter is not.
        TooManyUnreadableError: more recordings than `data.max_unreadable` cannot be decoded.
        StorageError: the data cannot be read.
        EvaluationError: the last evaluation failed; there is no FINISHED.
    """
    config = config_lib.with_absolute_paths(config)
    if not workdir:
        raise config_lib.ConfigError("--workdir=DIR is missing: where checkpoints, metrics and results are kept")
    config_lib.check_output("workdir", workdir)
    with config_lib.blame("mesh"):
        mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, mode=config.mesh.mode)
    watchdog = Watchdog(
        config.telemetry.stall_seconds, exit_code=preemption.EXIT_CODE if config.telemetry.stall_exit else None
    )
    folder = storage.absolute(workdir)
    check_places(folder)
    with (
        jax.set_mesh(mesh), preemption.StopRequest() as stop,
        lease.held(folder, stop=lambda: stop.requested) as held, watchdog,
    ):  # fmt: skip
        program = build(config, mesh)
        _same_data(config, program)
        logging.info("Config %s, run %s", config_lib.config_hash(config), workdir)
        logging.info("Mesh %s on %s\n%s", dict(mesh.shape), mesh.devices.flat[0].device_kind, program.stage.describe())
        _log_sizes(program)
        Loop(config, folder, mesh, program, stop, watchdog, held).run()


def _same_data(config: ConfigDict, program: Program) -> None:
    """Raises ConfigError where a host has other data on its disk: each would train on its own and nobody would see."""
    facts = {name: str(value) for name, value in dataclasses.asdict(program.stage.data_size()).items()}
    for spec, told in program.stage.metadata().get("fingerprints", {}).items():
        facts[f"content of {spec}"] = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]
    timeout = config.distributed.initialization_timeout
    distributed.refuse_differences(facts, timeout, topic=f"data/{config_lib.config_hash(config)}")


def _log_sizes(program: Program) -> None:
    count = {
        name: sum(int(np.prod(leaf.shape)) for leaf in group.values())
        for name, group in (("trainable", program.abstract.trainable), ("frozen", program.abstract.frozen))
    }
    logging.info(
        "%.2f M parameters train, %.2f M are frozen; %d steps", count["trainable"] / 1e6, count["frozen"] / 1e6,
        program.total_steps,
    )  # fmt: skip


class Loop:
    """The running state of one training run; `run` is the loop itself."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        mesh: Mesh,
        program: Program,
        stop: preemption.StopRequest,
        watchdog: Watchdog,
        held: lease.Lease,
    ) -> None:
        self.config, self.workdir, self.mesh, self.program, self.stop = config, workdir, mesh, program, stop
        self._watchdog, self._lease = watchdog, held
        self.stage = program.stage
        size, batch_size = self.stage.data_size(), config.train.batch_size
        self._save_every = config_lib.steps(config.checkpointing.every, batch_size, size)
        self._evaluate_every = config_lib.steps(config.evaluate.every, batch_size, size)
        self._checkpoints = Checkpoints(
            workdir / "checkpoints",
            keep_latest=config.checkpointing.keep_latest,
            keep_every=config_lib.steps(config.checkpointing.keep_every, batch_size, size),
            content=config.checkpointing.content,
            clean=True,
        )
        self._evaluators: list[Evaluator] = list(self.stage.evaluators(mesh))
        self._compilations = Compilations()
        self._metadata = {"config": config.to_dict(), **self.stage.metadata()}
        self._skipped_in_a_row = 0
        self._window: dict[str, list[float]] = {}

    def run(self) -> None:
        """Runs to the end of the budget, or until a stop is requested."""
        total, train_step = self.program.total_steps, self.program.train_step
        train_state = resuming.start(self._checkpoints, self.program, self.config, self._metadata)
        self._write_config()
        start = int(train_state.step)
        if jax.process_index() == 0:
            # Later steps will have other parameters than those that a temperature was fitted to before.
            calibration.forget_after(self.workdir, start)
        self._writer = MetricWriter(self.workdir, start)
        self.stage.prepare(train_state.params, self.mesh, self._stop_preparing)
        if start < total:
            self._make_up(start, train_state)
        self._batches = self.stage.batches(start, self.mesh)
        kind, count = self.mesh.devices.flat[0].device_kind, self.mesh.devices.size
        self._throughput = Throughput(total, kind, count)
        pending: tuple[int, dict[str, jax.Array], Batch] | None = None
        try:
            for number in range(start, total):
                if number > start:
                    if pending and self._is_due(number):
                        self._lease.check()
                        # No checkpoint is newer than its metrics.
                        self._log(*pending)
                        pending = None
                    self._between_steps(number, train_state)
                batch = next(self._batches)
                self._watchdog.beat(f"dispatching step {number + 1}")
                (train_state, metrics), seconds = self._compilations.call(
                    "the training step", train_step, train_state, batch, batch=batch
                )
                self._throughput.pause(seconds)
                if self._lease.lost:
                    self.stop.request()
                elif pending:
                    self._log(*pending)
                pending = (number, metrics, batch)
                if self.stop.after(number):
                    break
            self._lease.check()
            if pending:
                self._log(*pending)
        except (FloatingPointError, storage.StorageError, TooManyUnreadableError) as error:
            raise self._rescued(error, train_state) from error.__cause__
        finally:
            self._batches.close()
            # Whatever happened: a save that is under way is finished.
            self._checkpoints.wait()
        self._finish(train_state, total)

    def _stop_preparing(self) -> bool:
        self._watchdog.beat("preparing")
        return self.stop.requested or self._lease.lost

    def _write_config(self) -> None:
        if jax.process_index() != 0:
            return
        path, text = self.workdir / CONFIG, (config_lib.to_json(self.config) + "\n").encode()
        before = path.read_bytes() if path.exists() else text
        if before != text:
            of_before = hashlib.sha256(before.rstrip()).hexdigest()[:12]
            storage.replace(self.workdir / f"config.{of_before}.json", before)
        storage.replace(path, text)

    def _make_up(self, number: int, train_state: state.TrainState) -> None:
        """Evaluates at the step that the run goes on from, where that was due and a stop came first."""
        if not number or not self._evaluate_every or number % self._evaluate_every:
            return
        timeout = self.config.distributed.initialization_timeout
        done = distributed.said_by_first(" ".join(self._writer.names(number)), timeout)
        due = [one for one in self._evaluators if not re.search(rf"(^| ){re.escape(one.name)}/", done)]
        self._evaluate(number, train_state, due)

    def _is_due(self, number: int) -> bool:
        return bool(self._save_every) and number % self._save_every == 0

    def _between_steps(self, number: int, train_state: state.TrainState) -> None:
        begin = time.monotonic()
        if self._evaluate_every and number % self._evaluate_every == 0:
            self._lease.check()
            self._evaluate(number, train_state)
        if self._is_due(number):
            self._writer.flush()
            self._watchdog.beat(f"saving step {number}")
            if told := self._save(train_state):
                raise FloatingPointError(told)
        self._throughput.pause(time.monotonic() - begin)

    def _save(self, train_state: state.TrainState) -> str:
        """Save the state, unless something in it is not finite: the message then says what, else it is ''."""
        self._lease.check()
        bad = state.not_finite(train_state)
        if not bad:
            self._checkpoints.save(train_state, self._metadata)
            return ""
        self._checkpoints.wait()
        named = ", ".join([*bad[:3], *["…"] * (len(bad) > 3)])
        return (
            f"Step {int(train_state.step)} is not saved: {len(bad)} leaves are not finite any more ({named}). The "
            f"newest good checkpoint is of step {self._checkpoints.latest}; lower optim.learning_rate or "
            "optim.weight_decay, or look at the weights that the run started from"
        )

    def _rescued(self, error: Exception, train_state: state.TrainState) -> Exception:
        """Save what an error leaves. Returns the error to raise, which says what became of the parameters."""
        # What one of several processes could not read, the others know nothing of, and a save is everybody's.
        if isinstance(error, storage.StorageError) and jax.process_count() > 1:
            return error
        self._writer.flush()
        # Skipped steps left the parameters as they were: where those are numbers they are worth keeping.
        told = self._save(train_state)
        self._checkpoints.close()
        if not isinstance(error, FloatingPointError) or told == str(error):
            return error
        told = told or f"The parameters are those before, and saved as step {int(train_state.step)}"
        return FloatingPointError(f"{error} {told}.")

    def _finish(self, train_state: state.TrainState, total: int) -> None:
        number = int(train_state.step)
        self._writer.flush()
        told = self._save(train_state)
        self._checkpoints.close()
        if told:
            raise FloatingPointError(told)
        if number < total:
            logging.warning("Stopped at step %d of %d; saved. The same command goes on from here.", number, total)
            self._writer.close()
            raise preemption.Preempted(number)
        failed = self._evaluate(number, train_state)
        self._lease.check()
        self._writer.close()
        if failed:
            raise EvaluationError(
                f"All {total} steps are done and saved, but the last evaluation failed: {'; '.join(failed)}. "
                "The run does not count as finished; the same command repeats the evaluation alone"
            )
        if jax.process_index() == 0:
            done = {"step": number, "config_hash": config_lib.config_hash(self.config)}
            storage.replace(self.workdir / FINISHED, json.dumps(done))

    def _evaluate(
        self, number: int, train_state: state.TrainState, evaluators: Sequence[Evaluator] | None = None
    ) -> list[str]:
        """Every evaluator's metrics; one that fails is logged and the others go on. Returns who failed, and why."""
        failed = []
        for evaluator in self._evaluators if evaluators is None else evaluators:
            begin = time.monotonic()
            self._watchdog.beat(f"evaluator {evaluator.name} at step {number}")
            folder = self.workdir / "evaluations" / evaluator.name / f"step_{number:08d}"
            try:
                values = dict(evaluator.run(train_state.params, number, self.workdir, folder))
            except Exception as error:
                is_told = isinstance(error, (FloatingPointError, OSError, TooManyUnreadableError))
                logging.error(
                    "Evaluator %s failed at step %d: %s", evaluator.name, number, error, exc_info=not is_told
                )  # fmt: skip
                failed.append(f"{evaluator.name}: {type(error).__name__}: {' '.join(str(error).split())}")
                continue
            self._writer.write(number, {f"{evaluator.name}/{name}": value for name, value in values.items()})
            shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            logging.info("step %d  %s: %s  (%s)", number, evaluator.name, shown, duration(time.monotonic() - begin))
        return failed

    def _log(self, number: int, metrics: dict[str, jax.Array], batch: Batch) -> None:
        """Counts step `number`, watches for non-finite losses, and writes means every `telemetry.log_every` steps."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        flops = self.stage.flops({name: jax.typeof(array) for name, array in batch.items()})
        self._throughput.add(values["examples"], values["audio_seconds"], flops)
        self._watch(number, values, batch)
        for name, value in values.items():
            self._window.setdefault(name, []).append(value)
        done = number + 1
        if done % self.config.telemetry.log_every and done != self.program.total_steps:
            return
        # A skipped step counts as skipped; its NaN, or infinity, must not hide the others' mean.
        means = {name: float(np.mean(finite)) if (finite := [x for x in values if np.isfinite(x)]) else float("nan")
                 for name, values in self._window.items()}  # fmt: skip
        means["skipped"] = float(np.sum(self._window["skipped"]))
        rates = self._throughput.report(done)
        self._window = {}
        self._writer.write(done, {**{f"train/{name}": value for name, value in means.items()}, **rates})
        logging.info(
            "step %d/%d  loss %.4f  %.1f utterances/s  %.0f audio-hours/hour  %s left%s",
            done, self.program.total_steps, means["loss"], rates["throughput/examples_per_second"],
            rates["throughput/audio_hours_per_hour"], duration(rates["throughput/eta_seconds"]),
            f"  skipped {means['skipped']:.0f}" if means["skipped"] else "",
        )  # fmt: skip

    def _watch(self, number: int, values: dict[str, float], batch: Batch) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if values["skipped"] else 0
        if values["skipped"]:
            told = "loss {loss}, gradient norm {grad_norm}" if values["examples"] else "no utterance could be decoded"
            logging.warning("Step %d skipped: %s", number, told.format(**values))
        if values.get("unreadable"):
            self._batches.check(batch)
        if self._skipped_in_a_row >= self.config.train.max_skipped and not values["examples"]:
            raise TooManyUnreadableError(
                f"No utterance of the last {self._skipped_in_a_row} batches could be decoded, up to step {number}. The "
                f"parameters are those before. In the last batch: {', '.join(self.stage.names(batch)[:5])}"
            )
        if self._skipped_in_a_row >= self.config.train.max_skipped:
            raise FloatingPointError(
                f"The loss or its gradient was not finite {self._skipped_in_a_row} steps in a row, up to {number}. "
                f"Utterances of the last batch: {', '.join(self.stage.names(batch))}. "
                "Look at them, or lower optim.learning_rate; train.max_skipped sets the patience."
            )
