"""python -m mser_jax.main --config=configs/stage1.py[:variant] --workdir=DIR [--config.section.key=value …]

Trains what the config says, or goes on with it where DIR holds a checkpoint; with configs/evaluate.py it scores one.
DIR is a folder or gs://…. Of a run of several processes, where what starts them does not say (launch/):
--coordinator=HOST[:PORT] of process 0, --num_processes=N, --process_id=I, or MSER_COORDINATOR, ….
"""

from __future__ import annotations

import errno
import functools
import logging as std_logging
import os
from collections.abc import Sequence

from absl import app, flags, logging

from mser_jax import config as config_lib

_CONFIG = config_lib.define_flag()
_WORKDIR = flags.DEFINE_string("workdir", "", "Where the run is kept: a folder or gs://…", allow_override=True)

# Of a run of several processes, where what starts them does not say (parallel/distributed.py); or MSER_COORDINATOR, ….
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST[:PORT] of process 0", allow_override=True)
_NUM_PROCESSES = flags.DEFINE_string("num_processes", "", "Processes of this run", allow_override=True)
_PROCESS_ID = flags.DEFINE_string("process_id", "", "Which of them this is, from 0", allow_override=True)

_LOG_FAILED_SAVES = ("future.py", "async_checkpointer.py", "checkpoint_manager.py")


def _ours_or_important(record: std_logging.LogRecord) -> bool:
    """Orbax, grain and TFDS log every thread's progress as INFO; a person looks for the loss.

    A save that fails is logged by each of Orbax's threads with its traceback, a thousand lines of one fact, before the
    loop raises it.
    """
    if "orbax" in record.pathname and record.exc_info:
        if record.filename in _LOG_FAILED_SAVES:
            return False
        record.exc_info = None
    return record.levelno >= std_logging.WARNING or "mser_jax" in record.pathname


def _no_room(error: Exception, workdir: str) -> str:
    """What to do about a full disk that metrics or results met; '' for any other error."""
    if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return f"{workdir}: {error}. Free some room: the same command then goes on from the newest checkpoint"


def main(argv: Sequence[str]) -> None:
    """Runs the task that the config names; errors that a person can mend end in one line, not in a trace."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {list(argv[1:])}; write --config.section.key=value")
    # Not above: what is wrong with a command line is said at once, not after seconds of importing jax.
    from mser_jax import evaluate, storage, train
    from mser_jax.checkpoint import CheckpointError
    from mser_jax.data.unreadable import TooManyUnreadableError
    from mser_jax.parallel import distributed, preemption

    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_ours_or_important)
    config, workdir = _CONFIG.value, _WORKDIR.value and os.fspath(storage.absolute(_WORKDIR.value))
    try:
        with distributed.joined(
            config, coordinator=_COORDINATOR.value, num_processes=_NUM_PROCESSES.value, process_id=_PROCESS_ID.value,
            workdir=workdir,
        ):  # fmt: skip
            {"train": train.run, "evaluate": evaluate.run}[config.task](config, workdir)
    except (
        config_lib.ConfigError, CheckpointError, FloatingPointError, TooManyUnreadableError, storage.StorageError,
        train.EvaluationError,
    ) as error:  # fmt: skip
        raise SystemExit("\n".join(filter(None, (f"error: {error}", storage.explain(error))))) from error
    except KeyboardInterrupt:
        preemption.end()
    except Exception as error:
        if advice := storage.explain(error) or _no_room(error, workdir):
            raise SystemExit(f"error: {advice}") from error
        raise


if __name__ == "__main__":
    app.run(main, flags_parser=functools.partial(config_lib.parse_flags, usage=__doc__))
