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
    with path.open("w") as file, Watchdog(1.0, file=file) as watchdog, caplog.at_level(logging.ERROR, "absl"):
        # On a busy machine "started" may itself be late, and is then reported too: count by name.
        watchdog.beat("dispatching step 7")
        assert wait_for(lambda: any("last: dispatching step 7." in report for report in reports()))
        time.sleep(2.5)
        assert sum("last: dispatching step 7." in report for report in reports()) == 1
        watchdog.beat("saving step 8")
        assert wait_for(lambda: any("last: saving step 8." in report for report in reports()))
    assert sum("last: saving step 8." in report for report in reports()) == 1
    release.set()
    stuck.join()
    stacks = path.read_text()
    assert "test_reports_each_late_beat_once" in stacks.partition("Current thread")[0], "the main thread, before others"
    assert "in wait" in stacks.partition("Current thread")[2], "threads other than the one that prints, too"


def test_the_main_thread_is_shown_however_many_others_there_are(tmp_path):
    release = threading.Event()
    others = [threading.Thread(target=release.wait) for _ in range(150)]
    for thread in others:
        thread.start()
    path = tmp_path / "stacks"
    with path.open("w") as file, Watchdog(0.05, file=file):
        assert wait_for(lambda: "Current thread" in path.read_text())
    release.set()
    for thread in others:
        thread.join()
    assert "test_the_main_thread_is_shown_however_many" in path.read_text()


def test_says_nothing_while_beats_come_or_when_it_is_off(tmp_path, caplog):
    path = tmp_path / "stacks"
    with path.open("w") as file, Watchdog(0, file=file) as off, Watchdog(30, file=file) as on:
        for step in range(50):
            off.beat(f"step {step}")
            on.beat(f"step {step}")
            time.sleep(0.002)
    assert not path.read_text() and "No progress" not in caplog.text
