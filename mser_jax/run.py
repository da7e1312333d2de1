"""Where a run lies: RUN, RUN/checkpoints and RUN/checkpoints/350 name a checkpoint wherever one is asked for."""

from __future__ import annotations

import dataclasses
import difflib

from etils import epath

from mser_jax import storage
from mser_jax.config import ConfigError

CHECKPOINTS = "checkpoints"
# Of a workdir: what a run makes there as folders, and as files.
_FOLDERS = (CHECKPOINTS, "evaluations", "lease", "tensorboard")
_FILES = ("config.json", "finished.json", "metrics.jsonl")


@dataclasses.dataclass(frozen=True)
class Location:
    """The workdir of a run, and the step of one of its checkpoints; None is the newest."""

    run: epath.Path
    step: int | None = None

    @property
    def checkpoints(self) -> epath.Path:
        """The folder that has a folder a step."""
        return self.run / CHECKPOINTS


def locate(path: epath.PathLike, step: int | None = None, *, what: str = "checkpoint") -> Location:
    """Find the run that a path names: its workdir, the checkpoints in it, or one of these.

    Args:
        path: as a person gave it, relative or with `~` too.
        step: that was asked for beside it; None and negative ones ask for what the path says, else the newest.
        what: the option that it comes from, for messages.

    Raises:
        ConfigError: there is no such run (the nearest is named), or path and `step` name two checkpoints.
    """
    try:
        given = storage.absolute(path)
    except ValueError as error:
        raise ConfigError(f"{what}={path}: {error}") from None
    step = None if step is None or step < 0 else step
    run, named = given, None
    if not (given / CHECKPOINTS).exists():
        if given.name == CHECKPOINTS:
            run = given.parent
        elif given.parent.name == CHECKPOINTS and given.name.isdecimal():
            run, named = given.parent.parent, int(given.name)
    if named is not None and step is not None and named != step:
        raise ConfigError(f"{what}={path} is the checkpoint of step {named}, but step {step} is asked for: give one")
    found = Location(run, step if named is None else named)
    if not found.checkpoints.exists():
        raise ConfigError(f"{what}={path}: no checkpoint below {found.checkpoints}. {_hint(run)}")
    return found


def check_places(run: epath.Path) -> None:
    """Look for what is in the way of a run's files and folders, which it would meet after hours.

    Raises:
        ConfigError: a file lies where a folder is to be, or the other way round.
    """
    if storage.is_remote(run):  # there are no folders there
        return
    for path in (run / name for name in (*_FOLDERS, *_FILES)):
        if path.exists() and path.is_dir() != (path.name in _FOLDERS):
            found, wanted = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
            raise ConfigError(f"--workdir={run}: {path} is {found}, expected {wanted} or nothing: move it away")


def _hint(run: epath.Path) -> str:
    if inside := next((path for path in run.parents if (path / CHECKPOINTS).is_dir()), None):
        return f"Expected the workdir of a training run. Did you mean {inside}?"
    beside = [path.name for path in run.parent.iterdir() if path != run] if run.parent.is_dir() else []
    near = difflib.get_close_matches(run.name, beside, n=1)
    return "Expected the workdir of a training run" + (f". Did you mean {run.parent / near[0]}?" if near else "")
