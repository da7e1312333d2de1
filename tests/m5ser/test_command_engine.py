"""A program of ours that speaks, fails, hangs, or leaves children behind."""

import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from mser_jax.m5ser import engines
from mser_jax.m5ser.engine import Engine, UnsupportedSpeechError
from mser_jax.m5ser.engines import EngineError, EngineUnavailableError

PROGRAM = r"""
import json, pathlib, subprocess, sys, time
log, out, *told = sys.argv[1:]
text = told[0] if told else sys.stdin.read()
pathlib.Path(log).write_text(json.dumps([out, *told, text]))
if text == "fail":
    print("no voice could be loaded", file=sys.stderr); sys.exit(3)
if text == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(log).write_text(str(child.pid)); time.sleep(60)
if text == "orphan":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(log).write_text(str(child.pid))
if text == "chatter":
    print("x" * 10**6)
import numpy, soundfile
if text != "nothing":
    time = numpy.arange(22050 * 1.5) / 22050
    wave = (0 if text == "silence" else 0.3) * numpy.sin(2 * numpy.pi * 180 * time)
    soundfile.write(out, wave, 22050)
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "talker.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path), str(tmp_path / "log"), "{out}"]


def make(argv, **options):
    options = {"voices": "anna", "languages": "en", "name": "talker", "timeout_seconds": 20} | options
    return engines.build_engine("command", {"argv": argv, **options})


def speak(engine, text="Good evening.", **change):
    how = {"language": "en", "voice": "anna", "emotion": "sad", "intensity": 0.75, "seed": 7}
    return engine.speak(text, **how | change)


def log_of(program):
    return pathlib.Path(program[2]).read_text()


def test_the_program_gets_every_argument_as_it_is(program):
    argv = [*program, "{text}", "--{language}", "{voice}", "{emotion}={intensity}", "{seed}", "{{plain}}"]
    engine = make(argv)
    text = "$(touch /tmp/x); `id` \"quoted\" 'it''s' {voice} \\ ünï 你好\n--help"
    speech = speak(engine, text)
    out, *told = eval(log_of(program))
    assert told == [text, "--en", "anna", "sad=0.75", "7", "{plain}", text]
    assert not pathlib.Path(out).exists()
    assert isinstance(engine, Engine) and engine.name == "talker"
    assert speech.waveform.dtype == np.float32 and speech.sampling_rate == 16000
    assert len(speech.waveform) == 24000 and np.abs(speech.waveform).max() == pytest.approx(0.3, abs=0.01)
    wanted = {"engine": "command", "voice": "anna", "emotion": "sad", "intensity": 0.75, "seed": 7}
    assert wanted.items() <= dict(speech.metadata).items() and speech.metadata["program_rate"] == 22050


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".wav"])
def test_the_text_on_stdin_and_other_formats(program, suffix):
    pytest.importorskip("pyworld")
    speech = speak(make(program, suffix=suffix, world=True), "Grüße.")
    out, text = eval(log_of(program))
    assert text == "Grüße." and out.endswith(suffix)
    # Sadness, rendered by WORLD, takes longer.
    assert len(speech.waveform) == pytest.approx(24000 * 2 ** -speech.metadata["rate_oct"], rel=0.01)


@pytest.mark.parametrize(
    "text, words",
    [
        ("fail", "ended with code 3: no voice could be loaded .*talker.py"),
        ("nothing", "wrote no speech of 'nothing': missing"),
        ("silence", "silent"),
        ("a\0b", "could not be started"),
    ],
)
def test_failures_are_told_in_the_programs_own_words(program, text, words):
    with pytest.raises(EngineError, match=words):
        speak(make([*program, "{text}", "{emotion}"]), text)


def test_a_machine_in_trouble_is_no_bad_line(program, monkeypatch):
    """Every line would be left out for want of memory, one after the other."""
    engine = make([*program, "{text}", "{emotion}"])

    def no_memory(*args, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", no_memory)
    with pytest.raises(EngineUnavailableError, match="Cannot allocate memory"):
        speak(engine, "Good.")


def is_running(pid):
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


def test_a_program_that_hangs_is_killed_with_its_children(program):
    with pytest.raises(EngineError, match="killed after 3 s: it said nothing"):
        speak(make([*program, "{text}", "{emotion}"], timeout_seconds=3), "hang")
    assert gone(int(log_of(program)))


def test_what_a_program_leaves_behind_is_killed(program):
    assert len(speak(make([*program, "{text}", "{emotion}"]), "orphan").waveform) == 24000
    assert gone(int(log_of(program)))


def gone(pid):
    for _ in range(100):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def test_a_program_that_talks_much_does_not_block(program):
    assert len(speak(make([*program, "{text}", "{emotion}"]), "chatter").waveform) == 24000


def test_a_program_that_was_removed_stops_the_run(tmp_path):
    program = tmp_path / "speak"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    engine = make(f"{program} {{text}} {{emotion}} {{out}}")
    program.unlink()
    with pytest.raises(EngineUnavailableError, match="No such file"):
        speak(engine)


def test_the_fingerprint_is_of_the_sound(program):
    argv = [*program, "{text}", "{emotion}"]
    same = {engines.fingerprint(make(argv, **o)) for o in ({}, {"timeout_seconds": 5}, {"concurrency": 3})}
    other = {engines.fingerprint(make(a, **o)) for a, o in ((argv, {"version": "2"}), ([*argv, "--slow"], {}))}
    assert len(same) == 1 and len(other) == 2 and not same & other


@pytest.mark.parametrize(
    "change, words",
    [({"language": "fr"}, "'fr'.*en"), ({"voice": "eve"}, "'eve'.*anna"), ({"emotion": "disgust"}, "'disgust'.*sad")],
)
def test_what_is_missing_is_named_with_what_there_is(program, change, words):
    with pytest.raises(UnsupportedSpeechError, match=words):
        speak(make([*program, "{emotion}"], emotions="angry,sad"), **change)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["no-such-program", "{out}", "{emotion}"], "no program 'no-such-program'"),
        ([sys.executable, "{emotion}"], "must hold {out}"),
        ([sys.executable, "{out}"], "nothing would carry the emotion"),
        ([sys.executable, "{out}", "{mood}"], r"\{mood\} is none of \{text\}"),
        ([sys.executable, "{out}", "{"], "written twice"),
        ([], "'argv' is missing"),
    ],
)
def test_bad_options_are_said_at_once(argv, words):
    with pytest.raises(ValueError, match=words):
        make(argv)
