"""Ctrl-C is answered at once, also where Python runs nothing for minutes."""

import signal
import subprocess
import sys
import time

import pytest

# Like a compilation: one call that gives the lock of Python away and runs no handler.
BUSY = """
import hashlib, os
from mser_jax.parallel import preemption
with preemption.StopRequest() as stop:
    os.write(1, b"x")
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 300_000_000)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_and_a_second_ctrl_c_ends_a_busy_process(first):
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"x"
        begin = time.monotonic()
        process.send_signal(first)
        told = process.stderr.readline().decode()
        assert f"{first.name}: saves after the step that is under way and exits with code 75" in told
        assert time.monotonic() - begin < 5 and process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "SIGINT again: ends at once" in process.stderr.readline().decode()
        assert process.wait(20) == 130
        assert not process.stderr.read()
