"""Sweeps of trivial runs, started as people start them."""

import pathlib
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
TRIVIAL = shlex.join([sys.executable, str(pathlib.Path(__file__).with_name("trivial_run.py"))])


def write(folder, seeds):
    """A sweep file with a row a seed, called row/SEED."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "list.py"
    path.write_text(
        "def get_rows(arg):\n"
        "    row = lambda seed: dict(name=f'row/{seed}', config='configs/stage1.py', overrides={'seed': seed})\n"
        f"    return [row(seed) for seed in {seeds}]\n"
    )
    return path


def start(path, workdir, *options, **kwargs):
    """A runner, as a process."""
    line = [sys.executable, str(ROOT / "launch" / "sweep.py"), str(path), f"--workdir={workdir}", "--heartbeat=0.5"]
    if not any(option.startswith(("--launcher", "--command")) for option in options):
        options = (*options, f"--command={TRIVIAL}")
    return subprocess.Popen([*line, *options], cwd=ROOT, stdout=-1, stderr=-1, text=True, **kwargs)


def run(path, workdir, *options, timeout=120, **kwargs):
    """(exit code, stdout, stderr) of a runner."""
    process = start(path, workdir, *options, **kwargs)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def times_run(workdir, seeds):
    """{seed: how often its row was run}."""
    return {seed: len(list((workdir / "row" / str(seed)).glob("ran-*"))) for seed in seeds}
