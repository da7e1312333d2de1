"""Says where every thread stands when a run stops making progress: a hang in a collective leaves no other trace."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import TextIO

from absl import logging


class Watchdog:
    """Within `with Watchdog(…) as watchdog:`, `beat` is expected again and again. A late one prints all stacks."""

    def __init__(self, seconds: float, *, exit_code: int | None = None, file: TextIO | None = None) -> None:
        """
        Args:
            seconds: between two beats; 0 switches it off.
            exit_code: ends the process with it, instead of reporting once for each beat that is late.
            file: takes the stacks (default: stderr); a real file, as they are written without Python's help.
        """
        self._seconds, self._exit_code, self._file = seconds, exit_code, file
        self._changed = threading.Condition()
        self._last, self._doing, self._done = time.monotonic(), "started", False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self.beat("started")
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._done = True
            self._changed.notify()
        if self._seconds:
            self._thread.join()

    def beat(self, doing: str) -> None:
        """Progress: from now on `doing`."""
        with self._changed:
            self._last, self._doing = time.monotonic(), doing
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._done:
                last = self._last
                self._changed.wait_for(lambda last=last: self._done or self._last != last, self._seconds)
                if not self._done and self._last == last:
                    self._report()
                    # Once a beat, however late it is.
                    self._changed.wait_for(lambda last=last: self._done or self._last != last)

    def _report(self) -> None:
        logging.error(
            "No progress for %.0f s (telemetry.stall_seconds); last: %s. All stacks follow. A process that waits in "
            "a collective waits for another one: look for the one whose stack differs.", self._seconds, self._doing,
        )  # fmt: skip
        logging.flush()
        file = self._file or sys.stderr
        # faulthandler ends after 100 threads, the oldest last: the one that trains would be missing.
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        file.write("Main thread (most recent call last):\n" + "".join(traceback.format_stack(main)) + "\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.flush()
        if self._exit_code is not None:
            logging.error("Ending the process with code %d (telemetry.stall_exit).", self._exit_code)
            logging.flush()
            # Not sys.exit: the main thread is what hangs.
            os._exit(self._exit_code)
