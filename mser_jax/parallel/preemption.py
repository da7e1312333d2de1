"""SIGTERM, Ctrl-C and a preemption notice become a request that the loop honours between two steps: save, then exit.

Of several processes any one may be told; all of them stop after the same step. jax's preemption service carries the
notice (by default SIGTERM, which TPU VMs, GKE and Slurm send before they take a host) and picks the step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from absl import logging
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: schedulers are told to retry on it, and a retry resumes from the checkpoint.
EXIT_CODE = 75
# As a shell tells of a program that Ctrl-C ended.
INTERRUPTED = 128 + signal.SIGINT
# For the main thread to let go of files and leases.
_ENDING_SECONDS = 2.0


class Preempted(SystemExit):
    """The run was asked to stop, saved, and may be started again with the same command."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step


class StopRequest:
    """Within `with StopRequest() as stop:` the first signal sets `stop.requested`; a second Ctrl-C ends the process.

    A signal is answered at once, by a thread: Python runs handlers between two of its own instructions, and while XLA
    compiles there may be none for minutes. To be used in the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        # Of several processes SIGTERM is jax's: a handler of ours would hide it from the preemption service.
        self._service = jax.distributed.is_initialized()
        self._signals = (signal.SIGINT,) if self._service else (signal.SIGTERM, signal.SIGINT)
        self._before: dict[signal.Signals, object] = {}
        self._handled = False

    def __enter__(self) -> StopRequest:
        receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        threading.Thread(target=self._answer, args=(receiver,), name="signals", daemon=True).start()
        self._wakeup = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        for number in self._signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._sender)

    def after(self, step: int) -> bool:
        """Whether to stop now that `step` was begun: the same answer on every process. Ask after each step."""
        if not self._service:
            return self.requested
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        logging.warning("A process was told to stop: all save after step %d and exit with %d.", step, EXIT_CODE)
        self.requested = True
        return True

    def request(self) -> None:
        """Ask for a stop as a signal does: of several processes all hear of it."""
        told, self.requested = self.requested, True
        if self._service and not told:
            os.kill(os.getpid(), signal.SIGTERM)

    def _answer(self, receiver: int) -> None:
        """Reads the numbers of the signals that arrive; the thread that says what follows."""
        told = ending = False
        while number := os.read(receiver, 1):
            if number[0] not in self._signals or ending:
                continue
            name = signal.Signals(number[0]).name
            if told and number[0] == signal.SIGINT:
                ending = True
                logging.warning("%s again: ends at once, nothing more is saved; the newest checkpoint stays.", name)
                timer = threading.Timer(_ENDING_SECONDS, end)
                timer.daemon = True
                timer.start()
            elif not told:
                told = self.requested = True
                logging.warning(
                    "%s: saves after the step that is under way and exits with code %d; the same command goes on. "
                    "Compiling and evaluating are not interrupted. Ctrl-C (again) ends at once without saving.",
                    name, EXIT_CODE,
                )  # fmt: skip
        os.close(receiver)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._handled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._handled = self.requested = True
        if self._service:
            os.kill(os.getpid(), signal.SIGTERM)


def end() -> None:
    """End the process at once, with INTERRUPTED: threads that compile or read do not survive an orderly end."""
    for process in multiprocessing.active_children():
        process.kill()
    logging.flush()
    os._exit(INTERRUPTED)
