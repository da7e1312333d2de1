"""The watchdog reports a beat that is late, once, with the stacks of all threads."""

import logging
import threading
import time

from mser_jax.telemetry.watchdog import Watchdog


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_reports_each_late_beat_once(tmp_path, caplog):
    path = tmp_path / "stacks"

    def reports():
        return [record.getMessage() for record in caplog.records if "No progress" in record.getMessage()]

    release = threading.Event()
    stuck = threading.Thread(target=release.wait, name="stuck")
    stuck.start()
    with path.open("w") as file, Watchdog(0.05, file=file) as watchdog, caplog.at_level(logging.ERROR, "absl"):
        watchdog.beat("dispatching step 7")
        assert wait_for(reports)
        time.sleep(0.3)
        assert len(reports()) == 1 and "last: dispatching step 7" in reports()[0]
        watchdog.beat("saving step 8")
        assert wait_for(lambda: len(reports()) == 2) and "last: saving step 8" in reports()[1]
    release.set()
    stuck.join()
    stacks = path.read_text()
    assert "test_reports_each_late_beat_once" in stacks and stacks.count("Current thread") >= 1
    assert "in wait" in stacks, "threads other than the one that prints, too"


def test_says_nothing_while_beats_come_or_when_it_is_off(tmp_path, caplog):
    path = tmp_path / "stacks"
    with path.open("w") as file, Watchdog(0, file=file) as off, Watchdog(30, file=file) as on:
        for step in range(50):
            off.beat(f"step {step}")
            on.beat(f"step {step}")
            time.sleep(0.002)
    assert not path.read_text() and "No progress" not in caplog.text
