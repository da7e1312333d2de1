"""SIGTERM, Ctrl-C and a preemption notice become a request that the loop honours between two steps: save, then exit.

Of several processes any one may be told; all of them stop after the same step. jax's preemption service carries the
notice (by default SIGTERM, which TPU VMs, GKE and Slurm send before they take a host) and picks the step.
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

import jax
from absl import logging
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: schedulers are told to retry on it, and a retry resumes from the checkpoint.
EXIT_CODE = 75


class Preempted(SystemExit):
    """The run was asked to stop, saved, and may be started again with the same command."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step


class StopRequest:
    """Within `with StopRequest() as stop:` the first signal sets `stop.requested`; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.requested = False
        # Of several processes SIGTERM is jax's: a handler of ours would hide it from the preemption service.
        self._service = jax.distributed.is_initialized()
        self._signals = (signal.SIGINT,) if self._service else (signal.SIGTERM, signal.SIGINT)
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in self._signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def after(self, step: int) -> bool:
        """Whether to stop now that `step` was begun: the same answer on every process. Ask after each step."""
        if not self._service:
            return self.requested
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        logging.warning("A process was told to stop: all save after step %d and exit with %d.", step, EXIT_CODE)
        self.requested = True
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._service:
            os.kill(os.getpid(), signal.SIGTERM)
        logging.warning("%s: will save after this step and exit with code %d.", signal.Signals(number).name, EXIT_CODE)
