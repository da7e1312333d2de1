"""SIGTERM and Ctrl-C become a request that the loop honours between two steps: save, then exit."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from absl import logging

# EX_TEMPFAIL of sysexits.h: schedulers are told to retry on it, and a retry resumes from the checkpoint.
EXIT_CODE = 75

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """The run was asked to stop, saved, and may be started again with the same command."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.step = step


class StopRequest:
    """Within `with StopRequest() as stop:` the first signal sets `stop.requested`; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        logging.warning("%s: will save after this step and exit with code %d.", signal.Signals(number).name, EXIT_CODE)
