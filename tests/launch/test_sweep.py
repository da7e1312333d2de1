"""The sweep with real runner processes: no row twice, none lost, none mixed up."""

import csv
import pathlib
import re
import signal
import time

import pytest
import sweeps

from mser_jax import config as config_lib


def rows_of(workdir):
    return list(csv.DictReader((workdir / "sweep.csv").read_text().splitlines()))


def test_two_runners_share_a_list_and_a_third_finds_it_done(tmp_path):
    seeds = range(10, 16)
    path = sweeps.write(tmp_path, list(seeds))
    runners = [sweeps.start(path, tmp_path / "runs", "--jobs=2"), sweeps.start(path, tmp_path / "runs")]
    said = [runner.communicate(timeout=120)[1] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], said
    assert sweeps.times_run(tmp_path / "runs", seeds) == dict.fromkeys(seeds, 1)
    code, _, err = sweeps.run(path, tmp_path / "runs")
    assert code == 0 and "6 of 6 rows done" in err
    assert sweeps.times_run(tmp_path / "runs", seeds) == dict.fromkeys(seeds, 1)
    rows = rows_of(tmp_path / "runs")
    assert [row["name"] for row in rows] == [f"row/{seed}" for seed in seeds]
    assert [(row["status"], row["step"], row["seed"]) for row in rows] == [("done", "9", str(s)) for s in seeds]
    assert [float(row["zero_shot/zero_shot/ua"]) for row in rows] == pytest.approx([0.5 + s / 1000 for s in seeds])


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_the_row_of_a_runner_that_was_killed_is_taken_over(tmp_path):
    path = sweeps.write(tmp_path, [60])
    dead = sweeps.start(path, tmp_path / "runs")
    ran = tmp_path / "runs" / "row" / "60"
    deadline = time.monotonic() + 60
    while not list(ran.glob("ran-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (child,) = (int(file.read_text()) for file in ran.glob("ran-*"))
    dead.kill()
    dead.wait()
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child), "nobody trains in a folder that another will take"
    begin = time.monotonic()
    taken = sweeps.start(path, tmp_path / "runs")
    while len(list(ran.glob("ran-*"))) < 2 and time.monotonic() < begin + 60:
        time.sleep(0.1)
    assert len(list(ran.glob("ran-*"))) == 2
    taken.send_signal(signal.SIGTERM)
    _, err = taken.communicate(timeout=60)
    assert taken.returncode == 75 and "waiting for rows of others; row/60: " in err
    assert sorted(p.name for p in (ran / "claims").iterdir()) == ["claim-00000", "claim-00001"]


def test_preempted_rows_go_on_failed_ones_are_told_and_other_configs_are_refused(tmp_path):
    path = sweeps.write(tmp_path, [75, 3, 8])
    code, _, err = sweeps.run(path, tmp_path / "runs")
    assert code == 1 and "row/3: FAILED, exit code 3" in err and "row/75: preempted, goes on" in err
    assert sweeps.times_run(tmp_path / "runs", [75, 3, 8]) == {75: 2, 3: 1, 8: 1}
    assert [row["status"] for row in rows_of(tmp_path / "runs")] == ["done", "failed", "done"]
    code, _, err = sweeps.run(path, tmp_path / "runs", "--only=8", "--config.optim.learning_rate=0.5")
    assert code == 1 and "row/8: FAILED, another config: optim.learning_rate: 0.001 → 0.5" in err
    assert sweeps.times_run(tmp_path / "runs", [8]) == {8: 1}


def test_damage_in_one_row_is_that_rows_alone(tmp_path):
    path, runs = sweeps.write(tmp_path, [1, 2, 4, 5]), tmp_path / "runs"
    sweeps.run(path, runs, "--jobs=3", "--only=[124]")
    (runs / "row" / "1" / "finished.json").write_text("{")
    (runs / "row" / "2" / "finished.json").unlink()
    (runs / "row" / "2" / "row.json").write_bytes(b"\xff")
    (runs / "row" / "4" / "evaluations" / "zero_shot" / "step_00000009" / "results.json").write_text("[]")
    code, _, err = sweeps.run(path, runs)
    assert code == 1 and "Traceback" not in err
    assert re.search(r"row/2: FAILED, unreadable: .*row/2/row.json is damaged \(.*remove it", err), err
    assert re.search(r"row/4/evaluations.*results.json is damaged, its figures are left out", err), err
    assert sweeps.times_run(runs, [1, 2, 4, 5]) == {1: 2, 2: 1, 4: 1, 5: 1}
    assert [row["status"] for row in rows_of(runs)] == ["done", "unreadable", "done", "done"]


def test_a_command_that_is_none_is_told_at_once(tmp_path):
    for command in ("run {nam}", "run {", "'run"):
        code, _, err = sweeps.run(sweeps.write(tmp_path, [1]), tmp_path / "runs", f"--command={command}")
        assert code == 2 and f"--command={command}: expected a command line" in err and "Traceback" not in err


def test_mistakes_are_told_before_anything_runs(tmp_path):
    path = sweeps.write(tmp_path, [1])
    code, _, err = sweeps.run(path, tmp_path / "runs", "--config.sed=1")
    assert code == 1 and "row row/1: --config.sed: the config has no 'sed'" in err and "Traceback" not in err
    code, _, err = sweeps.run(sweeps.write(tmp_path, [1, 1]), tmp_path / "runs")
    assert code == 1 and "rows of the same name: row/1" in err


def test_a_list_of_nothing_is_a_mistake(tmp_path):
    path = sweeps.write(tmp_path, [1, 2])
    (tmp_path / "file").touch()
    for options, message in (
        ([tmp_path / "runs", "--only=zzz"], "error: --only=zzz: no row matches; there are row/1, row/2"),
        ([tmp_path / "runs", "--only=("], "error: --only=(: not a regular expression"),
        ([tmp_path / "runs", "--config.seed=-1"], "error: .*row row/1: --config.seed=-1: expected a number"),
        ([tmp_path / "file" / "runs"], "error: --workdir=.*/file/runs: nothing can be written"),
    ):
        code, _, err = sweeps.run(path, *options)
        assert code == 1 and "Traceback" not in err and len(err.splitlines()) == 1, err
        assert re.match(re.sub(r"([()])", r"\\\1", message), err), err
    assert sweeps.times_run(tmp_path / "runs", [1, 2]) == {1: 0, 2: 0}


def test_print_gives_the_lines_that_are_left(tmp_path):
    path = sweeps.write(tmp_path, [1, 2])
    sweeps.run(path, tmp_path / "runs", "--only=1")
    code, out, _ = sweeps.run(path, tmp_path / "runs", "--launcher=print")
    (line,) = out.splitlines()
    assert code == 0 and "-m mser_jax.main --config=configs/stage1.py" in line and line.endswith("--config.seed=2")


@pytest.mark.parametrize("name", ["ablation", "lolo", "scaling"])
def test_sweeps_have_rows_that_their_configs_take(name):
    import sweep  # launch/sweep.py, on the path by conftest

    rows = sweep.load(f"configs/sweeps/{name}.py", "/runs", "", ())
    assert len({row.hash for row in rows}) == len(rows) > 5, "no two rows are the same run"


def test_options_of_the_sweeps():
    import sweep

    spec = "configs/sweeps/lolo.py:stage=2;variant=whisper_base_gemma,cache=auto;languages=de,zh;seeds=0,1;init=/one"
    rows = sweep.load(spec, "/runs", "", ("--config.optim.learning_rate=1",))
    assert [row.name for row in rows] == ["de/seed_0", "zh/seed_0", "de/seed_1", "zh/seed_1"]
    assert rows[3].config.init_from == "/one/zh/seed_1" and rows[3].config.seed == 1
    assert rows[3].config.data.exclude_languages == "zh" and rows[3].config.optim.learning_rate == 1.0
    assert rows[3].hash == config_lib.config_hash(config_lib.from_dict(rows[3].config.to_dict()))
    ladder = sweep.load("configs/sweeps/scaling.py:widths=72,144;budgets=1e3", "/runs", "", ())
    assert [row.config.speech_encoder.sizes.num_layers for row in ladder] == [2, 4]
    assert ladder[1].config.optim.learning_rate == 1e-3 and ladder[1].config.train.budget == "1e3 examples"
    with pytest.raises(config_lib.ConfigError, match="expected multiples of 36"):
        sweep.load("configs/sweeps/scaling.py:widths=100", "/runs", "", ())
