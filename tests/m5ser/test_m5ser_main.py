"""The command line: our flags, Beam's, and typos of either."""

import pathlib
import subprocess
import sys

import pytest

from mser_jax import config as config_lib
from mser_jax.m5ser import __main__ as program
from mser_jax.m5ser import engines, pipeline

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-m", "mser_jax.m5ser", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_in_several_processes_and_said_in_the_end(tmp_path):
    done = run(
        "--config=configs/m5ser.py", f"--workdir={tmp_path / 'a'}", "--config.limit=24 utterances",
        "--config.chunk_utterances=12", "--config.languages=en", "--direct_num_workers=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "24 of 24 utterances passed" in done.stdout and "by emotion: angry" in done.stdout
    assert f"--config.data.corpora=m5ser:{tmp_path / 'a'}" in done.stdout
    assert "24/24" in done.stderr and (tmp_path / "a" / "index.parquet").exists()


def test_a_typo_is_one_line(tmp_path):
    done = run("--config=configs/m5ser.py", f"--workdir={tmp_path}", "--config.limits=3 hours")
    assert done.returncode != 0 and "Did you mean --config.limit?" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    done = run("--config=configs/stage1.py", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "is run by `python -m mser_jax.main`, not by mser_jax.m5ser" in done.stderr


def test_flags_are_shared_out():
    ours, beams = program.split_flags(
        ["m5ser", "--config.limit=3 hours", "--runner=FlinkRunner", "--flink_master", "host:8081", "--verbosity=1",
         "--config.seed", "3"]
    )  # fmt: skip
    assert ours == ["m5ser", "--config.limit=3 hours", "--verbosity=1", "--config.seed", "3"]
    assert beams == ["--runner=FlinkRunner", "--flink_master", "host:8081"]
    pipeline.check_args(beams)
    pipeline.check_args(["--runner=DataflowRunner", "--region=europe-west4", "--setup_file=./setup.py", "--streaming"])
    with pytest.raises(config_lib.ConfigError, match=r"no pipeline option of Beam\. Did you mean --runner\?"):
        pipeline.check_args(["--runer=DataflowRunner"])


def test_where_it_runs_is_left_to_beam_when_it_is_said():
    options = dict(pair.split("=") for pair in pipeline.with_defaults(["--runner=SparkRunner"]))
    assert options["--runner"] == "SparkRunner"
    options = dict(pair.split("=") for pair in pipeline.with_defaults(["--direct_num_workers=7"]))
    assert options["--direct_num_workers"] == "7" and options["--direct_running_mode"] == "multi_processing"


def test_what_an_engine_refuses_in_a_worker_is_one_line():
    told = "Error processing\nTraceback …\nmser_jax.m5ser.engine.UnsupportedSpeechError: no voice 'x'; there is y\n\n"
    assert program.advice(RuntimeError(told)) == "no voice 'x'; there is y"
    assert program.advice(engines.EngineUnavailableError("no server")) == "no server"
    assert program.advice(RuntimeError("mser_jax.evaluation.finite.NotFiniteError: 1 of 8 …")) == "1 of 8 …"
    assert program.advice(FloatingPointError("1 of 8 waveforms")) == "1 of 8 waveforms"
    assert "goes on with the chunks" in program.advice(RuntimeError("OSError: No space left on device"))
    assert program.advice(RuntimeError("a bug")) == ""
