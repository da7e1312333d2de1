"""The main line in a process of its own: it stops when told to, with the code that schedulers retry on, and goes on."""

import json
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]


def command(tiny, workdir, budget):
    config = tiny()
    shapes = ("num_layers", "width", "num_heads", "mlp_width")
    sections = {"speech_encoder.sizes": config.speech_encoder.sizes, "text_encoder.sizes": config.text_encoder.sizes}
    sections |= {"model.qformer": config.model.qformer}
    small = {f"{name}.{key}": section[key] for name, section in sections.items() for key in shapes}
    small |= {"model.embed_dim": 32, "train.batch_size": 16, "train.budget": budget, "telemetry.log_every": 1}
    small |= {
        "data.corpora": config.data.corpora,
        "data.data_dir": config.data.data_dir,
        "evaluate.bootstrap_samples": 9,
    }
    small |= {"mesh.replicated_limit": 1.0, "mesh.fsdp": 4, "mesh.data": 2}
    line = [sys.executable, "-m", "mser_jax.main", f"--config={ROOT / 'configs/stage1.py'}", f"--workdir={workdir}"]
    return [*line, *(f"--config.{key}={value}" for key, value in small.items())]


def steps(workdir):
    path = workdir / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [row["step"] for row in rows if "train/loss" in row]


def test_sigterm_saves_and_exits_75_and_the_same_line_goes_on(tiny, tmp_path):
    # From another directory: configs find each other wherever the command is given.
    run = subprocess.Popen(command(tiny, tmp_path, "2000 steps"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(steps(tmp_path)) < 2 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    log = run.communicate(timeout=120)[1]
    assert run.returncode == 75, log[-3000:]
    done = max(steps(tmp_path))
    assert f"Stopped at step {done} of 2000; saved" in log
    again = subprocess.run(
        command(tiny, tmp_path, f"{done + 2} steps"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"Resuming at step {done} of {done + 2}" in again.stderr
    assert steps(tmp_path)[-2:] == [done + 1, done + 2]
    assert (tmp_path / "evaluations" / "zero_shot" / f"step_{done + 2:08d}" / "results.json").exists()


def test_an_error_a_person_can_mend_is_one_line(tiny, tmp_path):
    done = subprocess.run(
        [*command(tiny, tmp_path, "2 steps"), "--config.data.corpora=m5ser_mni"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "error: --config.data: unknown corpus 'm5ser_mni'. Did you mean 'm5ser_mini'?" in done.stderr
    assert "Traceback" not in done.stderr
