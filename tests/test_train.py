"""The loop's laws, on a toy stage: exact resume, one compile, skipped steps, stop requests, order of operations."""

import dataclasses
import json
import logging
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_stage import ToyStage, toy_config

from mser_jax import config as config_lib
from mser_jax import stages, state, storage, train
from mser_jax.checkpoint import CheckpointMismatch, Checkpoints
from mser_jax.data.unreadable import TooManyUnreadableError
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import preemption


@pytest.fixture
def run(monkeypatch):
    """run(workdir, stage, **config sections) -> stage; the loop on the toy stage."""

    def go(workdir, stage=None, **sections):
        stage = stage or ToyStage()
        monkeypatch.setattr(stages, "make", lambda config, metadata=None: stage)
        train.run(toy_config(**sections), str(workdir))
        return stage

    return go


def final_params(workdir, step=12):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        abstract = train.build(toy_config(), mesh).abstract
        return jax.tree.map(np.asarray, Checkpoints(workdir / "checkpoints").restore_params(abstract.params, step))


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_learns_logs_and_writes_event_files(run, tmp_path):
    run(tmp_path, train={"budget": "60 steps"}, optim={"learning_rate": 3e-3})
    rows = [row for row in metrics_of(tmp_path) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(3, 61, 3))
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["throughput/examples_per_second"] > 0
    ratio = rows[-1]["throughput/audio_hours_per_hour"] / rows[-1]["throughput/examples_per_second"]
    assert ratio == pytest.approx(2.0), "every toy utterance counts two seconds"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = {event.step: event.value for event in events.Scalars("train/loss")}
    assert written == pytest.approx({row["step"]: row["train/loss"] for row in rows}, rel=1e-6)


def test_resume_after_a_stop_is_bit_for_bit_the_uninterrupted_run(run, tmp_path):
    run(tmp_path / "whole")

    def stop_at_five(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(preemption.Preempted) as stopped:
        run(tmp_path / "cut", ToyStage(on_batch=stop_at_five))
    assert stopped.value.code == preemption.EXIT_CODE == 75
    assert Checkpoints(tmp_path / "cut" / "checkpoints").latest == 6, "the step that was under way is finished"
    run(tmp_path / "cut")
    whole, cut = final_params(tmp_path / "whole"), final_params(tmp_path / "cut")
    for path in whole:
        np.testing.assert_array_equal(whole[path], cut[path], err_msg=path)


def test_resuming_with_another_config_says_what_changed(run, tmp_path, caplog):
    run(tmp_path, train={"budget": "4 steps"})
    run(tmp_path, optim={"learning_rate": 0.5})
    warned = [record.getMessage() for record in caplog.records if "another config" in record.getMessage()]
    assert [text.partition("config.")[2] for text in warned] == [
        "optim.learning_rate: 0.001 → 0.5",
        "train.budget: '4 steps' → '12 steps'",
    ]


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run"])
def test_a_place_that_cannot_be_written_to_is_told_first(run, tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(config_lib.ConfigError, match=r"--workdir=.*: nothing can be written to .*: .+") as error:
        run(tmp_path / place)
    assert "\n" not in str(error.value)


def test_a_relative_workdir_trains_and_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("runs/x", train={"budget": "4 steps"})
    monkeypatch.chdir(tmp_path / "runs")
    run("../runs/x", train={"budget": "8 steps"})
    assert Checkpoints("x/checkpoints").latest == 8
    assert sorted(path.name for path in (tmp_path / "runs" / "x" / "checkpoints").iterdir()) == ["4", "8"]


def test_ctrl_c_saves_too_and_handlers_are_put_back(run, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(preemption.Preempted):
        run(tmp_path, ToyStage(on_batch=lambda step: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None))
    assert Checkpoints(tmp_path / "checkpoints").latest == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_one_non_finite_step_changes_nothing_and_is_counted(run, tmp_path):
    run(tmp_path, ToyStage(poison=[11]))
    run(tmp_path / "eleven", train={"budget": "12 steps"}, checkpointing={"every": "11 steps", "keep_latest": 3})
    poisoned, before = final_params(tmp_path), final_params(tmp_path / "eleven", 11)
    for path in before:
        np.testing.assert_array_equal(poisoned[path], before[path], err_msg=path)
    last = [row for row in metrics_of(tmp_path) if "train/loss" in row][-1]
    assert last["train/skipped"] == 1
    assert np.isfinite(last["train/loss"]), "the mean leaves the skipped step out"


def test_one_overflowed_step_does_not_hide_the_others_mean(run, tmp_path):
    class Overflowing(ToyStage):
        def loss(self, model, batch, rng):
            loss, weight, metrics = super().loss(model, batch, rng)
            return loss + jnp.where(batch["step"].max() == 10, jnp.inf, 0), weight, metrics

    run(tmp_path, Overflowing())
    last = [row for row in metrics_of(tmp_path) if "train/loss" in row][-1]
    assert last["train/skipped"] == 1 and 0 < last["train/loss"] < 10 and last["train/grad_norm"] > 0


def test_compiling_is_told_before_and_no_part_of_the_time_left(run, tmp_path, monkeypatch, caplog):
    call, told = train.Compilations.call, []

    def slow(self, what, function, *args, batch):
        def compiled(*args):
            if not told:
                told.append([record.message for record in caplog.records])
                time.sleep(1.5)
            return function(*args)

        return call(self, what, compiled, *args, batch=batch)

    monkeypatch.setattr(train.Compilations, "call", slow)
    with caplog.at_level(logging.INFO, "absl"):
        run(tmp_path)
    assert told[0][-1].startswith("Compiling the training step (x [16, 128])")
    assert caplog.text.count("Compiling ") == caplog.text.count("Compiled ") == 1
    first = next(row for row in metrics_of(tmp_path) if "train/loss" in row)
    assert first["throughput/eta_seconds"] < 9 / 3 * 1.5


def test_the_config_lies_in_the_workdir_from_the_start(run, tmp_path):
    there = []
    run(tmp_path, ToyStage(on_batch=lambda step: there.append((tmp_path / "config.json").exists())))
    assert there == [True] * 12
    before = (tmp_path / "config.json").read_text()
    assert json.loads(before) == json.loads(config_lib.to_json(toy_config()))
    run(tmp_path)
    assert not list(tmp_path.glob("config.*.json"))
    run(tmp_path, train={"budget": "13 steps"})
    assert json.loads((tmp_path / "config.json").read_text())["train"]["budget"] == "13 steps"
    assert (tmp_path / f"config.{config_lib.config_hash(toy_config())}.json").read_text() == before


def test_a_damaged_config_and_damaged_metrics_do_not_stop_a_run(run, tmp_path):
    run(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xe2\x28\0")
    good = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(b'5\n[]\n{"step": null}\n\xff\xfe\n' + good)
    run(tmp_path, train={"budget": "13 steps"})
    assert json.loads((tmp_path / "config.json").read_text())["train"]["budget"] == "13 steps"
    assert [path.read_bytes() for path in tmp_path.glob("config.*.json")] == [b"\xe2\x28\0"]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(good)


def test_ten_non_finite_steps_stop_with_the_utterances_and_keep_the_state(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"10 steps in a row.*utterance-1[01]-3"):
        run(tmp_path, ToyStage(poison=range(1, 99)), train={"budget": "40 steps"})
    assert Checkpoints(tmp_path / "checkpoints").latest >= 8


def test_a_batch_without_examples_changes_nothing_and_is_counted(run, tmp_path):
    stage = run(tmp_path, ToyStage(empty=[10, 11]))
    run(tmp_path / "ten", train={"budget": "12 steps"}, checkpointing={"every": "10 steps", "keep_latest": 3})
    empty, before = final_params(tmp_path), final_params(tmp_path / "ten", 10)
    for path in before:
        np.testing.assert_array_equal(empty[path], before[path], err_msg=f"{path} decayed")
    last = [row for row in metrics_of(tmp_path) if "train/loss" in row][-1]
    assert last["train/skipped"] == 2 and last["train/examples"] > 0
    assert [event for event in stage.events if event[0] == "check"] == [("check", 10), ("check", 11)]


def test_a_run_of_empty_batches_ends_it(run, tmp_path):
    with pytest.raises(TooManyUnreadableError, match=r"last 10 batches could be decoded.*utterance-1[34]-0"):
        run(tmp_path, ToyStage(empty=range(4, 99)), train={"budget": "40 steps"})
    assert not (tmp_path / "finished.json").exists()


def test_storage_that_fails_ends_the_run_with_its_state_saved(run, tmp_path):
    with pytest.raises(storage.StorageError, match="u-7"):
        run(tmp_path / "cut", ToyStage(unreachable=[6]))
    assert Checkpoints(tmp_path / "cut" / "checkpoints").steps[-1] == 6
    assert not (tmp_path / "cut" / "finished.json").exists()
    run(tmp_path / "cut")
    run(tmp_path / "whole")
    whole, cut = final_params(tmp_path / "whole"), final_params(tmp_path / "cut")
    for path in whole:
        np.testing.assert_array_equal(whole[path], cut[path], err_msg=path)


def test_the_step_compiles_once(run, tmp_path):
    compiled = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration" and "train_step" in details.get("fun_name", ""):
            compiled.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path, mesh={"data": 2, "fsdp": 4})
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == ["jit(train_step)"]


def test_evaluation_comes_before_saving_and_drawing(run, tmp_path, monkeypatch):
    events = []
    stage = ToyStage(on_batch=lambda step: events.append(("batch", step)))
    stage.events = events
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, s, m: events.append(("save", int(s.step))) or save(self, s, m)
    )
    run(tmp_path, stage, train={"budget": "6 steps"}, evaluate={"every": "4 steps"})
    around = [event for event in events if event[1] == 4]
    assert around == [("evaluate", 4), ("save", 4), ("batch", 4)]
    assert events[-2:] == [("save", 6), ("evaluate", 6)]


def test_frozen_leaves_have_no_moments_and_do_not_move(run, tmp_path, monkeypatch):
    built = []
    real = train.build
    monkeypatch.setattr(train, "build", lambda *args: built.append(real(*args)) or built[-1])
    groups = (("^hidden/", 0.0), (".*", 1.0))
    run(tmp_path, optim={"groups": groups}, train={"budget": "4 steps"})
    paths = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(built[0].abstract.optimizer)]
    assert paths and not any("hidden" in path for path in paths)
    params = final_params(tmp_path, 4)
    with jax.set_mesh(mesh_lib.make_mesh()):
        fresh = jax.device_get(state.create(built[0].init, built[0].abstract).params)
    np.testing.assert_array_equal(params["hidden/kernel"], fresh["hidden/kernel"])
    assert not np.array_equal(params["head/kernel"], fresh["head/kernel"])


FROZEN = (("^hidden/", 0.0), (".*", 1.0))


def adapters_only(run, workdir, stage=None, **sections):
    """A run whose checkpoints lack the frozen layer."""
    options = {"optim": {"groups": FROZEN}, "checkpointing": {"content": "trainable"}}
    return run(workdir, stage, **options, **sections)


def test_adapters_only_checkpoints_resume_bit_for_bit(run, tmp_path):
    adapters_only(run, tmp_path / "whole")
    checkpoints = Checkpoints(tmp_path / "whole" / "checkpoints")
    assert set(checkpoints.shapes()) == {"head/kernel", "head/bias"}
    with pytest.raises(preemption.Preempted):
        adapters_only(
            run,
            tmp_path / "cut",
            ToyStage(on_batch=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None),
        )
    adapters_only(run, tmp_path / "cut")
    whole, cut = (head_of(tmp_path / name) for name in ("whole", "cut"))
    for path in whole:
        np.testing.assert_array_equal(whole[path], cut[path], err_msg=path)


def head_of(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for path, x in checkpoints.shapes().items()}
    return jax.tree.map(np.asarray, checkpoints.restore_params(shapes))


def test_adapters_meet_no_other_base(run, tmp_path):
    """Another seed draws another frozen layer."""
    adapters_only(run, tmp_path, train={"budget": "4 steps"})
    with pytest.raises(CheckpointMismatch, match=r"other frozen parameters.*2 leaves, the first: hidden/bias"):
        sections = {"optim": {"groups": FROZEN}, "checkpointing": {"content": "trainable"}}
        monkeypatched = toy_config(**sections)
        monkeypatched.seed = 1
        train.run(monkeypatched, str(tmp_path))


@pytest.mark.parametrize("mode", ["explicit", "auto"])
def test_fsdp_trains_as_data_parallelism_does(run, tmp_path, mode):
    run(tmp_path / "data", mesh={"data": 8, "fsdp": 1})
    run(tmp_path / "fsdp", mesh={"data": 2, "fsdp": 4, "mode": mode})
    by_data, by_fsdp = final_params(tmp_path / "data"), final_params(tmp_path / "fsdp")
    for path in by_data:
        np.testing.assert_allclose(by_data[path], by_fsdp[path], atol=1e-5, err_msg=path)


def test_restores_from_eight_devices_onto_four_and_one(run, tmp_path):
    run(tmp_path, mesh={"data": 2, "fsdp": 4})
    for count in (4, 1):
        mesh = mesh_lib.make_mesh(data=1, fsdp=count, devices=jax.devices()[:count])
        with jax.set_mesh(mesh):
            program = train.build(toy_config(), mesh)
            restored = Checkpoints(tmp_path / "checkpoints").restore(program.abstract)
        kernel = restored.trainable["hidden/kernel"]
        assert len(kernel.sharding.device_set) == count
        assert np.prod(kernel.sharding.shard_shape(kernel.shape)) == kernel.size // count
        np.testing.assert_array_equal(kernel, final_params(tmp_path)["hidden/kernel"])
        assert int(restored.step) == 12


def test_a_mismatch_lists_every_leaf(run, tmp_path, monkeypatch):
    run(tmp_path, train={"budget": "4 steps"})
    import toy_stage

    monkeypatch.setattr(toy_stage, "CLASSES", 5)
    with pytest.raises(CheckpointMismatch) as error:
        run(tmp_path)
    text = str(error.value)
    assert "head/kernel: model has (128, 5) float32, checkpoint has (128, 4) float32" in text
    assert "head/bias" in text and "optimizer/1/mu/head/kernel" in text
    assert "hidden" not in text


def with_nan_in_the_parameters_after(monkeypatch, step):
    """As an update that overflows does it: loss and gradient are finite, what they make of the parameters is not."""
    real = train.build

    def build(*args, **kwargs):
        program = real(*args, **kwargs)

        def train_step(train_state, batch):
            new, metrics = program.train_step(train_state, batch)
            if int(new.step) == step:
                broken = new.trainable["head/bias"].at[1].set(np.inf)
                new = dataclasses.replace(new, trainable={**new.trainable, "head/bias": broken})
            return new, metrics

        return dataclasses.replace(program, train_step=train_step)

    monkeypatch.setattr(train, "build", build)


@pytest.mark.parametrize(
    ("step", "sections", "match"),
    [
        (8, {}, r"Step 8 is not saved: 1 leaves are not finite any more \(.*head/bias\).*good checkpoint is of step 4"),
        (12, {}, r"Step 12 is not saved.*step 8"),
        (5, {"train": {"max_skipped": 2}}, r"not finite 2 steps in a row.*Step 8 is not saved.*step 4"),
    ],
)
def test_parameters_that_are_not_finite_are_never_saved(run, tmp_path, monkeypatch, step, sections, match):
    with_nan_in_the_parameters_after(monkeypatch, step)
    with pytest.raises(FloatingPointError, match=match) as error:
        run(tmp_path, **sections)
    assert "parameters are those before" not in str(error.value) and "\n" not in str(error.value)
    kept = Checkpoints(tmp_path / "checkpoints")
    assert max(kept.steps) == 4 * ((step - 1) // 4)
    assert not (tmp_path / train.FINISHED).exists()
    params = final_params(tmp_path, max(kept.steps))
    assert all(np.isfinite(value).all() for value in params.values())


def test_what_was_skipped_is_told_truly(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"those before, and saved as step 6\.$"):
        run(tmp_path, ToyStage(poison=range(2, 99)), train={"max_skipped": 3})
    assert Checkpoints(tmp_path / "checkpoints").latest == 6


def test_a_last_evaluation_that_fails_is_a_failed_run_and_is_all_that_is_repeated(run, tmp_path):
    drawn = []
    with pytest.raises(train.EvaluationError, match=r"All 12 steps.*toy: RuntimeError: the evaluator is broken.*alone"):
        run(tmp_path, ToyStage(broken_evaluator=True), evaluate={"every": "4 steps"})
    assert not (tmp_path / train.FINISHED).exists()
    before = final_params(tmp_path)
    stage = run(tmp_path, ToyStage(on_batch=drawn.append), evaluate={"every": "4 steps"})
    assert not drawn and stage.events == [("evaluate", 12)]
    assert json.loads((tmp_path / train.FINISHED).read_text())["step"] == 12
    for path, value in final_params(tmp_path).items():
        np.testing.assert_array_equal(value, before[path])
