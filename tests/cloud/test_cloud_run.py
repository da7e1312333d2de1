"""Runs on gs://: the toy stage for what the loop writes there, stage 1 from recordings to an answer."""

import csv
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import processes
import pytest
import soundfile
import sweeps
from etils import epath
from fake_gcs import BUCKET, Fault
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_stage import ToyStage, toy_config

from mser_jax import config as config_lib
from mser_jax import stages, storage, train
from mser_jax.checkpoint import CheckpointError
from mser_jax.telemetry import metrics

ACCOUNT = "run@project.iam.gserviceaccount.com"
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch):
    """run(workdir, stage): twelve steps of the toy stage, a line each, a checkpoint every four."""

    def go(workdir, stage=None):
        monkeypatch.setattr(stages, "make", lambda config, metadata=None: stage or ToyStage())
        config = toy_config(telemetry={"log_every": 1})
        train.run(config, str(workdir))
        return config

    return go


def lines(workdir):
    return [json.loads(line) for line in (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def dies_at(number):
    def on_batch(step):
        if step == number:
            raise RuntimeError("killed")

    return ToyStage(on_batch=on_batch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The lines of a run that nothing disturbed, on this disk."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "make", lambda config, metadata=None: ToyStage())
        train.run(toy_config(telemetry={"log_every": 1}), str(folder))
    return lines(folder)


@pytest.mark.parametrize("seconds", [0.0, 60.0], ids=["uploaded at once", "uploaded with checkpoints"])
def test_a_run_that_dies_and_goes_on_has_each_line_once(gcs, bucket, run, whole, tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(metrics, "UPLOAD_SECONDS", seconds)
    with pytest.raises(RuntimeError, match="killed"):
        run(bucket, dies_at(7))
    assert {4, 5} & {row["step"] for row in lines(bucket)}, "what is there when the machine is gone"
    config = run(bucket)
    rows = lines(bucket)
    assert [row["step"] for row in rows] == [*range(1, 13), 12], "a line a step, and the evaluation"
    assert [row.get("train/loss") for row in rows] == [row.get("train/loss") for row in whole]
    for path in (bucket / "tensorboard").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(list(tmp_path.glob("events*"))) == 2
    told = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [event.step for event in told] == list(range(1, 13)), "TensorBoard shows no step twice"
    done = json.loads((bucket / "finished.json").read_text())
    assert done == {"step": 12, "config_hash": config_lib.config_hash(config)}


def test_a_local_run_drops_lines_that_a_killed_one_wrote_ahead_of_its_checkpoint(run, tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, dies_at(7))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "trai')
    assert not (tmp_path / "finished.json").exists()
    run(tmp_path)
    assert [row["step"] for row in lines(tmp_path)] == [*range(1, 13), 12]


def test_a_bucket_that_cannot_be_written_is_told_before_anything_compiles(gcs, bucket, run):
    gcs.faults.append(Fault("POST", 403))
    with pytest.raises(config_lib.ConfigError, match=r"--workdir=gs://.*lacks the permission storage.objects.create"):
        run(bucket)


def test_a_permission_lost_on_the_way_is_named_and_earlier_checkpoints_stay(gcs, bucket, run):
    def lose(step):
        if step == 6:
            gcs.faults.append(Fault("POST .*checkpoints", 403))

    with pytest.raises(CheckpointError) as raised:
        run(bucket, ToyStage(on_batch=lose))
    assert "lacks the permission storage.objects.create" in storage.explain(raised.value)
    assert f"{bucket}/checkpoints/" in storage.explain(raised.value)
    gcs.faults.clear()
    run(bucket)
    assert [row["step"] for row in lines(bucket) if "train/loss" in row] == list(range(1, 13))


def test_metrics_that_cannot_be_uploaded_do_not_end_a_run(gcs, bucket, run, caplog):
    gcs.faults += [Fault("POST .*metrics.jsonl", 403, times=2), Fault("checkpoints", 503, times=2)]
    run(bucket)
    assert "Metrics were not uploaded" in caplog.text and "storage.objects.create" in caplog.text
    assert [row["step"] for row in lines(bucket)] == [*range(1, 13), 12], "the next upload had them all"


def test_two_processes_keep_one_run_on_gs_and_one_goes_on(gcs, bucket, tmp_path):
    launcher = processes.Launcher()  # after the server: its processes get the address from the environment
    try:
        for count, steps in ((2, 6), (1, 9)):
            config = toy_config(telemetry={"log_every": 1}, train={"budget": f"{steps} steps"})
            found = launcher.launch(tmp_path / str(count), [(config, bucket)], count=count, devices=2)
            assert [code for code, *_ in found] == [0] * count, found[0][2][-3000:]
    finally:
        launcher.close()
    assert [row["step"] for row in lines(bucket) if "train/loss" in row] == list(range(1, 10))
    assert json.loads((bucket / "finished.json").read_text())["step"] == 9


def recordings(folder, count=24):
    """A speech folder of half-second noises in two languages, three speakers each."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        path = f"{number}.wav"
        wav = io.BytesIO()
        soundfile.write(wav, 0.1 * rng.standard_normal(8_000), 16_000, format="WAV")
        (folder / path).write_bytes(wav.getvalue())
        labels = {"language": ("de", "en")[number % 2], "emotion": ("angry", "sad")[number // 2 % 2]}
        rows.append(json.dumps({"path": path, "speaker": f"s{number % 6}", **labels}))
    (folder / "manifest.jsonl").write_text("\n".join(rows))


def environ(gcs, cache):
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, that is
    return {**os.environ, **gcs.environ, "MSER_CACHE_DIR": str(cache), "XLA_FLAGS": fast}


def python(gcs, cache, module, *arguments, code=0):
    line = [sys.executable, "-m", f"mser_jax.{module}", *arguments]
    done = subprocess.run(line, env=environ(gcs, cache), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr[-4000:]
    return done


@pytest.mark.slow
def test_from_recordings_to_an_answer_with_everything_on_gs(gcs, bucket, cache, tmp_path):
    speech, run = bucket / "speech", bucket / "sweep" / "tiny"
    recordings(speech)
    sizes = {"num_layers": 1, "width": 16, "num_heads": 1, "mlp_width": 16}
    towers = ("speech_encoder.sizes", "text_encoder.sizes", "model.qformer")
    small = {f"{tower}.{key}": value for tower in towers for key, value in sizes.items()} | {
        "model.embed_dim": 8, "train.budget": "5 steps", "train.batch_size": 4, "telemetry.log_every": 1,
        "checkpointing.every": "2 steps", "data.corpora": f"speech_folder:{speech}", "data.data_dir": f"{bucket}/data",
        "data.exclude_languages": "", "data.length_classes": (0.5,), "evaluate.label_space": "angry,sad",
        "evaluate.bootstrap_samples": 9, "mesh.replicated_limit": 1.0, "loss.supcon": 0.0, "loss.parallel": 0.0,
        "loss.adversary_language": 0.0, "loss.adversary_speaker": 0.0,
    }  # fmt: skip
    line = ("--config=configs/stage1.py", f"--workdir={run}", *(f"--config.{k}={v}" for k, v in small.items()))
    refusal = f"{ACCOUNT} does not have storage.objects.create access"
    gcs.faults += [Fault("POST .*checkpoints", 503, times=1), Fault("alt=media", 503, times=1)]
    gcs.faults.append(Fault("POST .*checkpoints/4", 403, message=refusal))
    refused = python(gcs, cache, "main", *line, code=1)
    assert f"{ACCOUNT} lacks the permission storage.objects.create on bucket {BUCKET}" in refused.stderr
    assert [fault.times for fault in gcs.faults[:2]] == [0, 0], "every 503 was met, and sent again"

    # The permission is granted; another host goes on, by a sweep of one row, which then knows that it is done.
    gcs.faults.clear()
    (tmp_path / "one.py").write_text(
        f"def get_rows(arg): return [dict(name='tiny', config='configs/stage1.py', overrides={small!r})]"
    )
    command, there = f"--command={sys.executable} -m mser_jax.main", environ(gcs, cache / "another host")
    code, _, err = sweeps.run(tmp_path / "one.py", bucket / "sweep", command, timeout=400, env=there)
    assert code == 0 and "sweep: tiny: done" in err, err[-4000:]
    assert "Resuming at step 2 of 5" in err and "copying 1 record files" in err
    assert [row["step"] for row in lines(run) if "train/loss" in row] == [1, 2, 3, 4, 5]
    head, row = csv.reader((bucket / "sweep" / "sweep.csv").read_text().splitlines())
    assert row[head.index("status")] == "done" and 0 <= float(row[head.index("zero_shot/all/ua")]) <= 1

    checkpoint = f"--config.checkpoint={run}"
    python(gcs, cache, "main", "--config=configs/evaluate.py", checkpoint, f"--workdir={bucket / 'scores'}",
           "--config.evaluate.bootstrap_samples=9")  # fmt: skip
    results = json.loads((bucket / "scores" / "results.json").read_text())
    assert results["step"] == 5 and {row["language"] for row in results["rows"]} == {"de", "en"}
    assert (bucket / "scores" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "evaluations" / "zero_shot" / "step_00000005" / "results.json").exists()

    answer = json.loads(python(gcs, cache, "predict", f"--checkpoint={run}", str(speech / "3.wav")).stdout)
    assert answer["label"] in ("angry", "sad") and answer["file"] == str(speech / "3.wav")
