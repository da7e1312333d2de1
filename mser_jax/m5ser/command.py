"""Any program as an engine: started once for every line, it writes a sound file."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import signal
import string
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mser_jax.corpora import audio_check
from mser_jax.m5ser import engines, prosody, world
from mser_jax.m5ser.engine import Speech, UnsupportedSpeechError

_FIELDS = ("text", "language", "voice", "emotion", "intensity", "seed", "out")
_SHOWN = 500  # last characters of what the program says on stderr, in errors


class CommandEngine:
    """A program and its arguments.

    argv: the program and its arguments (a list, or one string that is split as a shell would), in which {text},
      {language}, {voice}, {emotion}, {intensity}, {seed} and {out} (the file to write) are filled in. There is no
      shell, so nothing in a text is ever interpreted; but a text may begin with "-": put "--" before it where the
      program knows that. Without {text} the text comes on stdin.
    voices, languages: see engines.voice_table.
    name: what records carry as `domain`; "": the program's file name.
    version: whatever tells this version of the program and its model from others; a part of the line's id.
    emotions: "angry,sad,…" that the program can speak; "": any.
    world: whether WORLD gives the prosody of the emotion to what the program wrote.
    suffix: of the file's name, for programs that choose the format by it. Any format that libsndfile reads.
    timeout_seconds: after it the program, and all that it started, is killed.
    concurrency: programs at once, of each worker process.
    """

    def __init__(
        self,
        argv: str | Sequence[str],
        voices: str | Mapping[str, str],
        languages: str = "",
        *,
        name: str = "",
        version: str = "",
        emotions: str = "",
        world: bool = False,
        suffix: str = ".wav",
        timeout_seconds: float = 120.0,
        concurrency: int = 1,
    ):
        self._argv = shlex.split(argv) if isinstance(argv, str) else [str(word) for word in argv]
        self.name, self.concurrency = name or Path(self._argv[0]).name, concurrency
        self._voices, self._version = engines.voice_table(languages, voices), version
        self._emotions = tuple(e.strip() for e in emotions.split(",") if e.strip())
        self._world, self._suffix, self._timeout = world, suffix, timeout_seconds
        self._check_options()

    def _check_options(self) -> None:
        used = set()
        for word in self._argv:
            try:
                used |= {field for _, field, _, _ in string.Formatter().parse(word) if field is not None}
            except ValueError as error:
                raise ValueError(f"argv: {word!r}: {error}; a brace of the program's own is written twice") from error
        if unknown := used - set(_FIELDS):
            raise ValueError(f"argv: {{{unknown.pop()}}} is none of {', '.join(f'{{{name}}}' for name in _FIELDS)}")
        if "out" not in used:
            raise ValueError("argv must hold {out}: the file that the program writes")
        if not self._world and "emotion" not in used:
            raise ValueError("nothing would carry the emotion: put {emotion} into argv, or set world=True")
        if shutil.which(self._argv[0]) is None:
            raise ValueError(f"argv: there is no program {self._argv[0]!r} on this machine")
        if self._timeout <= 0 or self.concurrency < 1:
            raise ValueError(f"expected timeout_seconds > 0, concurrency ≥ 1; got {self._timeout}, {self.concurrency}")
        if self._world:
            world.check()

    def languages(self) -> tuple[str, ...]:
        """Those that the options name."""
        return tuple(sorted(self._voices))

    def voices(self, language: str) -> tuple[str, ...]:
        """Those that the options name. Raises UnsupportedSpeechError: not this language."""
        return engines.voices_of(self._voices, language, self.name)

    def facts(self) -> tuple:
        """What else decides the sound; see engines.fingerprint."""
        table = (prosody.prosody_facts(), world.version()) if self._world else ()
        return self._argv, self._version, table

    def speak(self, text: str, *, language: str, voice: str, emotion: str, intensity: float, seed: int) -> Speech:
        """See `Engine.speak`; 16 kHz. As repeatable as the program is.

        Raises:
          UnsupportedSpeechError: a language, voice or emotion that the options lack.
          EngineError: the program failed, took too long, or wrote no speech.
          EngineUnavailableError: there is no such program.
        """
        engines.check_voice(self._voices, language, voice, self.name)
        known = self._emotions or (tuple(prosody.TARGETS) if self._world else ())
        if known and emotion not in known:
            raise UnsupportedSpeechError(f"{self.name} cannot speak {emotion!r}; there is {', '.join(known)}")
        values = {"text": text, "language": language, "voice": voice, "emotion": emotion}
        values |= {"intensity": f"{intensity:g}", "seed": str(seed)}
        with tempfile.TemporaryDirectory(prefix="speech-") as scratch:
            out = Path(scratch) / f"out{self._suffix}"
            argv = [word.format(**values, out=out) for word in self._argv]
            self._run(argv, None if any("{text}" in word for word in self._argv) else text, scratch)
            try:
                samples, info = audio_check.load(out)
            except audio_check.BadAudio as bad:
                raise engines.EngineError(f"{self.name} wrote no speech of {text!r}: {bad}") from bad
        waveform, drawn = samples.astype(np.float32) / 32768, {}
        if self._world:
            waveform, drawn = world.perform(waveform, audio_check.SAMPLING_RATE, emotion, intensity, seed)
        metadata = {"engine": "command", "program": self.name, "version": self._version, "argv": shlex.join(self._argv)}
        metadata |= {"program_rate": info.sampling_rate, "voice": voice, "language": language, "emotion": emotion}
        metadata |= {"intensity": intensity, "seed": seed, **drawn}
        return Speech(waveform=waveform, sampling_rate=audio_check.SAMPLING_RATE, metadata=metadata)

    def _run(self, argv: Sequence[str], text: str | None, scratch: str) -> None:
        """Runs the program in a process group of its own; output goes to a file: a pipe may fill, or stay open."""
        with open(Path(scratch) / "stderr", "w+b") as said:
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL if text is None else subprocess.PIPE, stdout=said, stderr=said,
                    start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                # A NUL in the text, or too much of it, is the line's fault; all else fails for every line.
                if isinstance(error, ValueError) or error.errno == errno.E2BIG:
                    raise engines.EngineError(f"{self.name} could not be started: {error}") from error
                raise engines.EngineUnavailableError(f"{self.name}: {error}") from error
            try:
                process.communicate(None if text is None else text.encode(), timeout=self._timeout)
                ended = f"ended with code {process.returncode}" if process.returncode else ""
            except subprocess.TimeoutExpired:
                ended = f"was killed after {self._timeout:g} s"
            finally:
                _kill(process)
            if ended:
                said.seek(max(0, said.seek(0, os.SEEK_END) - _SHOWN))
                words = " ".join(said.read().decode(errors="replace").split())
                raise engines.EngineError(f"{self.name} {ended}: {words or 'it said nothing'} ({shlex.join(argv)})")


def _kill(process: subprocess.Popen) -> None:
    """Ends the program's process group, also what outlived the program itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
