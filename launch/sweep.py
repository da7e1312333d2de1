"""Runs a list of named overrides: python launch/sweep.py configs/sweeps/NAME.py[:OPTIONS] --workdir=DIR

  --launcher=local   here, --jobs=N at a time (default 1); a run that was preempted goes on at once
  --launcher=print   prints the command of every row that is not done
  --launcher=slurm   sbatch launch/slurm.sbatch, a job a row; --submit='sbatch --partition=gpu' changes how
  --launcher=gke     launch/gke.yaml filled in from the environment, a JobSet a row, to kubectl
  --command=LINE     what runs a row, its arguments put behind; {name} is the row's: --command='bash launch/tpu_vm.sh
                     sweep-{name} v5litepod-16 us-west4-a --'
  --only=REGEX       rows whose name matches;  --status  only the table;  --resubmit  rows that were submitted, again
  --config.key=value for all rows

A row's run lies in DIR/NAME (local or gs://). Rows that finished with the same config are skipped, those that were cut
off go on, those whose folder has another config are refused. Several runners may work on one list, on any hosts: each
row is claimed (mser_jax/claims.py), and the claim of a runner that died is taken over. A row that failed is tried once
by each runner. DIR/sweep.csv has a line a row.
Exit code: 0 when all rows are done or submitted, 75 when told to stop, else 1.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import shlex
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mser_jax import claims, storage
from mser_jax import config as config_lib

HERE = pathlib.Path(__file__).parent
FINISHED, ROW = "finished.json", "row.json"
PREEMPTED = 75  # mser_jax/parallel/preemption.py, which imports jax
SUBMITTED, REFUSED = "submitted: ", ("another config", "unreadable")
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
FIGURES = ("ua", "wa", "macro_f1", "ece")


@dataclasses.dataclass(frozen=True)
class Row:
    """One run: its name, its config with all overrides, where it lies, and its arguments."""

    name: str
    config: ConfigDict
    workdir: epath.Path
    arguments: tuple[str, ...]
    overrides: dict[str, Any]

    @functools.cached_property
    def hash(self) -> str:
        """As the run itself computes it."""
        return config_lib.config_hash(self.config)

    @property
    def slug(self) -> str:
        """The name as jobs may be called."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def finished(self) -> dict[str, Any] | None:
        """{"step", "config_hash"} of the run that finished here, or None; where it is damaged the run says it again."""
        try:
            return _told(self.workdir / FINISHED)
        except config_lib.ConfigError:
            return None

    def status(self, stale_after: float = claims.STALE_SECONDS) -> str:
        """'done', 'open', 'another config: …', 'unreadable: …', or who has it. What fails is this row's alone."""
        try:
            finished, begun = self.finished(), _told(self.workdir / ROW)
            if finished and finished["config_hash"] == self.hash:
                return "done"
            if begun and begun["config_hash"] != self.hash:
                changes = config_lib.changes(config_lib.from_dict(begun["config"]), self.config)
                return f"another config: {'; '.join(changes)}"
            if finished:
                return f"another config: finished with {finished['config_hash']}, this is {self.hash}"
            holder = claims.who(self.workdir / "claims", stale_after=stale_after)
            return holder.name if holder and holder.alive else "open"
        except Exception as error:
            return f"unreadable: {_why(error)}"

    def begin(self) -> None:
        """Notes what runs here, for whoever comes with another config."""
        told = {"name": self.name, "config_hash": self.hash, "config": self.config.to_dict()}
        storage.replace(self.workdir / ROW, json.dumps(told, indent=1))


def _told(path: epath.Path) -> dict[str, Any] | None:
    """Read the JSON of a FINISHED or ROW; None without one. Raises ConfigError for a file of another kind."""
    try:
        told = json.loads(path.read_bytes()) if path.exists() else None
        return told and told | {"config_hash": told["config_hash"]}
    except (IsADirectoryError, ValueError, TypeError, KeyError) as error:
        raise config_lib.ConfigError(f"{path} is damaged ({error}); remove it if the row is to go on") from None


def _why(error: Exception) -> str:
    kind = "" if isinstance(error, config_lib.ConfigError) else f"{type(error).__name__}: "
    return storage.explain(error) or f"{kind}{error}"


def load(spec: str, workdir: str, only: str, shared: Sequence[str]) -> list[Row]:
    """The rows of a sweep file.

    Raises:
        ConfigError: no such file, no row, two rows of one name, or an override that the config refuses (which row, and
            why).
    """
    try:
        wanted = re.compile(only)
    except re.error as error:
        raise config_lib.ConfigError(f"--only={only}: not a regular expression ({error})") from None
    rows = []
    for given in config_lib.load(spec, "get_rows"):
        arguments = [f"--config.{key}={value}" for key, value in given["overrides"].items()] + list(shared)
        if not wanted.search(given["name"]):
            continue
        path = given["config"] if pathlib.Path("configs").is_dir() else str(HERE.parent / given["config"])
        try:
            config = parse(path, arguments)
        except config_lib.ConfigError as error:
            raise config_lib.ConfigError(f"{spec}: row {given['name']}: {error}") from error
        folder = storage.absolute(workdir) / given["name"]
        line = (f"--config={path}", f"--workdir={folder}", *arguments)
        rows.append(Row(given["name"], config, folder, line, given["overrides"]))
    names = [row.name for row in rows]
    if not rows:
        every = ", ".join(given["name"] for given in config_lib.load(spec, "get_rows"))
        raise config_lib.ConfigError(f"--only={only}: no row matches; there are {every or 'none'}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise config_lib.ConfigError(f"{spec}: rows of the same name: {', '.join(sorted(twice))}")
    return rows


def parse(spec: str, arguments: Sequence[str]) -> ConfigDict:
    """The config that `mser_jax.main` makes of these arguments, by the same parser."""
    config = config_lib.load(spec)
    for key, text in config_lib.split_overrides(["sweep", *arguments])[1].items():
        config_lib.set_value(config, key, text)
    config_lib.check(config)
    return config


class LocalRunner:
    """Runs rows here, some at a time, each under its claim."""

    def __init__(self, rows: Sequence[Row], command: str, heartbeat: float) -> None:
        self._open, self._command, self._heartbeat = list(rows), command, heartbeat
        self._stale = 8 * heartbeat
        self._lock, self.stop, self._told = threading.Lock(), threading.Event(), False
        self.failed: list[str] = []

    def run(self, jobs: int) -> None:
        """Until every row is done or failed here, or `stop` is set; waits for rows that others have."""
        threads = [threading.Thread(target=self._work, args=(jobs > 1,)) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # signals reach the main thread between joins

    def _work(self, apart: bool) -> None:
        while taken := self._next():
            row, claim = taken
            try:
                row.begin()
                with claims.held(claim, self._heartbeat, self._stale) as lost:
                    self._execute(row, lost, apart)
            except Exception as error:  # of storage; the other rows go on
                self._fail(row, _why(error))

    def _next(self) -> tuple[Row, claims.Claim] | None:
        with self._lock:
            while self._open and not self.stop.is_set():
                for row in tuple(self._open):
                    status = row.status(self._stale)
                    if status == "done":
                        self._open.remove(row)
                    elif status.startswith(REFUSED):
                        self._open.remove(row)
                        self._fail(row, status)
                    elif claim := self._claim(row):
                        self._open.remove(row)
                        return row, claim
                if self._open:
                    self._tell_who_has_them()
                    self.stop.wait(min(self._heartbeat, 5.0))
        return None

    def _claim(self, row: Row) -> claims.Claim | None:
        try:
            claim = claims.take(row.workdir / "claims", stale_after=self._stale)
            if claim and row.finished():  # another runner finished it since we looked
                return claim.beat(released=True)
        except Exception as error:  # of storage; the other rows go on
            claim = self._fail(row, _why(error))
            self._open.remove(row)
        return claim

    def _tell_who_has_them(self) -> None:
        if not self._told:
            _say("; ".join(["waiting for rows of others", *(f"{r.name}: {r.status(self._stale)}" for r in self._open)]))
            self._told = True

    def _execute(self, row: Row, lost: threading.Event, apart: bool) -> None:
        log = row.workdir / "log.txt"
        if storage.is_remote(log):
            log = epath.Path("runs") / "logs" / f"{row.slug}.txt"
        line = [*shlex.split(self._command.format(name=row.slug)), *row.arguments]
        _say(f"{row.name}: {'log in ' + str(log) if apart else shlex.join(line)}")
        log.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(log if apart else os.devnull, "a") as file:
                output = {"stdout": file, "stderr": file} if apart else {}
                process = subprocess.Popen(line, start_new_session=True, preexec_fn=_die_with_runner, **output)
                code = self._wait(process, lost)
            if code != PREEMPTED or self.stop.is_set() or lost.is_set():
                break
            _say(f"{row.name}: preempted, goes on")
        if lost.is_set():
            _say(f"{row.name}: another runner took it over while this one was silent")
        elif code == 0 and (finished := row.finished()) and finished["config_hash"] == row.hash:
            _say(f"{row.name}: done")
        elif not self.stop.is_set():
            self._fail(row, f"exit code {code}" + (", but it did not finish" if code == 0 else ""))

    def _wait(self, process: subprocess.Popen, lost: threading.Event) -> int:
        told = False
        while (code := process.poll()) is None:
            if (lost.is_set() or self.stop.is_set()) and not told:
                os.killpg(process.pid, signal.SIGTERM)  # it saves, and exits with PREEMPTED
                told = True
            time.sleep(0.1)
        return code

    def _fail(self, row: Row, why: str) -> None:
        _say(f"{row.name}: FAILED, {why}")
        self.failed.append(row.name)


def _die_with_runner() -> None:
    """A run whose runner was killed saves and ends before its claim goes stale (Linux: PR_SET_PDEATHSIG is 1)."""
    if _PRCTL:
        _PRCTL(1, signal.SIGTERM)


def submit(rows: Sequence[Row], launcher: str, how: str, *, again: bool) -> list[str]:
    """One job a row that is not done and nobody has; the claim then is the job's, for good. Returns what failed."""
    failed = []
    for row in rows:
        status = row.status()
        force = again and status.startswith(SUBMITTED)
        if status != "open" and not force:
            _say(f"{row.name}: {status}")
            failed += [row.name] if status.startswith(REFUSED) else []
            continue
        if (claim := claims.take(row.workdir / "claims", force=force)) is None:
            continue  # another runner was faster
        row.begin()
        try:
            job = (_sbatch if launcher == "slurm" else _kubectl)(row, shlex.split(how))
        except (subprocess.CalledProcessError, OSError) as error:
            claim.beat(released=True)
            _say(f"{row.name}: FAILED, {(getattr(error, 'stderr', '') or str(error)).strip()}")
            failed.append(row.name)
            continue
        dataclasses.replace(claim, owner=f"{SUBMITTED}{launcher} {job}").beat(forever=True)
        _say(f"{row.name}: {SUBMITTED}{launcher} {job}")
    return failed


def _sbatch(row: Row, how: Sequence[str]) -> str:
    line = [*(how or ["sbatch"]), "--parsable", f"--job-name={row.slug}", str(HERE / "slurm.sbatch"), *row.arguments]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def _kubectl(row: Row, how: Sequence[str]) -> str:
    text = string.Template((HERE / "gke.yaml").read_text())
    try:
        filled = text.substitute(os.environ, NAME=row.slug, ARGUMENTS=json.dumps(row.arguments))
    except KeyError as error:
        raise OSError(f"launch/gke.yaml needs {error} in the environment (its first lines say what it is)") from None
    line = [*(how or ["kubectl"]), "create", "-f", "-"]
    return subprocess.run(line, input=filled, check=True, capture_output=True, text=True).stdout.strip()


def table(rows: Sequence[Row], failed: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A line a row: name, status, hash, step, overrides, and the averages of its last evaluations."""
    lines = []
    for row in rows:
        status = row.status().partition(":")[0]
        status = "failed" if row.name in failed and status == "open" else status
        line = {"name": row.name, "status": status, "config_hash": row.hash}
        line |= {"step": (row.finished() or {}).get("step", ""), "workdir": str(row.workdir), **row.overrides}
        for evaluator, folder in _last_evaluations(row.workdir):
            try:
                macro = json.loads((folder / "results.json").read_bytes())["macro"]
            except (ValueError, TypeError, KeyError) as error:
                _say(f"{folder / 'results.json'} is damaged, its figures are left out ({error})")
                continue
            for group in ("zero_shot", "all"):
                figures = {name: macro[group].get(name) for name in FIGURES} if macro.get(group) else {}
                line |= {f"{evaluator}/{group}/{name}": value for name, value in figures.items()}
        lines.append(line)
    return lines


def _last_evaluations(workdir: epath.Path) -> list[tuple[str, epath.Path]]:
    """(evaluator, folder of its newest results.json); one that scores in several ways has a folder for each."""
    root, found = workdir / "evaluations", []
    for evaluator in sorted(root.iterdir()) if root.exists() else ():
        newest = max(evaluator.glob("step_*"), default=None, key=lambda path: path.name)
        for path in [] if newest is None else [newest, *(p for p in sorted(newest.iterdir()) if p.is_dir())]:
            if (path / "results.json").exists():
                found.append((evaluator.name if path == newest else path.name, path))
    return found


def write_csv(rows: Sequence[Row], path: epath.Path, failed: Sequence[str] = ()) -> None:
    """The table as CSV, whole or not at all."""
    lines = table(rows, failed)
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    storage.replace(path, text.getvalue())
    _say(f"{path}: {sum(line['status'] == 'done' for line in lines)} of {len(lines)} rows done")


def _say(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Parses, runs or submits, collects; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--launcher", default="local", choices=("local", "print", "slurm", "gke"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--command", default=f"{shlex.quote(sys.executable)} -m mser_jax.main")
    parser.add_argument("--submit", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--heartbeat", type=float, default=claims.HEARTBEAT_SECONDS, help="seconds; 8 of them: dead")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--resubmit", action="store_true")
    options, shared = parser.parse_known_args()
    if wrong := [argument for argument in shared if not re.match(r"--config\..+=", argument)]:
        parser.error(f"{wrong[0]}: expected --config.section.key=value")
    if options.jobs < 1 or not 0 < options.heartbeat < 1e6:
        parser.error(f"--jobs={options.jobs} --heartbeat={options.heartbeat}: expected 1 or more, more than 0")
    try:
        shlex.split(options.command.format(name="row"))
    except (KeyError, ValueError, IndexError) as error:
        parser.error(f"--command={options.command}: expected a command line, {{name}} for the row's name ({error!r})")
    try:
        if options.launcher != "print" and not options.status:
            config_lib.check_output("workdir", options.workdir)
        rows = load(options.sweep, options.workdir, options.only, shared)
    except config_lib.ConfigError as error:
        raise SystemExit(f"error: {error}") from error
    failed: list[str] = []
    if options.launcher == "print":
        lines = [shlex.split(options.command.format(name=row.slug)) + list(row.arguments) for row in rows
                 if row.status() != "done"]  # fmt: skip
        print("\n".join(map(shlex.join, lines)))
        return 0
    if options.launcher == "local" and not options.status:
        runner = LocalRunner(rows, options.command, options.heartbeat)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: runner.stop.set())
        runner.run(options.jobs)
        if runner.stop.is_set():
            return PREEMPTED
        failed = runner.failed
    elif not options.status:
        failed = submit(rows, options.launcher, options.submit, again=options.resubmit)
    write_csv(rows, storage.absolute(options.workdir) / "sweep.csv", failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
