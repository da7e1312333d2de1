"""An engine that hums: milliseconds a line, and fails, falls silent or refuses when told to."""

import hashlib
import os
import pathlib

import numpy as np

from mser_jax.m5ser.engine import Speech, UnsupportedSpeechError
from mser_jax.m5ser.engines import EngineError


class ToyEngine:
    """faults: a folder; a file `fail`, `silent` or `refuse` in it holds the emotion spoken so; `log` all."""

    name = "toy"

    def __init__(self, faults: str = "", seconds: float = 0.3):
        self._faults = pathlib.Path(faults) if faults else None
        self._seconds = seconds

    def languages(self):
        return ("de", "en", "zh")

    def voices(self, language):
        return ("m1", "f1", "deep") if language != "zh" else ("m1", "f1")

    def speak(self, text, *, language, voice, emotion, intensity, seed):
        told = (text, language, voice, emotion, intensity, seed)
        if self._faults:
            with open(self._faults / "log", "a") as log:
                log.write(repr(told) + "\n")
            for fault in ("fail", "silent", "refuse"):
                path = self._faults / fault
                if path.exists() and path.read_text() == emotion:
                    if fault == "fail":
                        raise EngineError("the server is gone")
                    if fault == "refuse":
                        raise UnsupportedSpeechError(f"toy cannot be {emotion}; try another")
                    return Speech(waveform=np.zeros(8000, np.float32), sampling_rate=16000, metadata={})
        digest = hashlib.sha256(repr(told).encode()).digest()
        rng = np.random.default_rng(list(digest))
        time = np.arange(round(16000 * (self._seconds + 0.01 * len(text)))) / 16000
        waveform = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 300) * time) + 0.01 * rng.standard_normal(len(time))
        return Speech(
            waveform=waveform.astype(np.float32),
            sampling_rate=16000,
            metadata={"pid": os.getpid() * 0, "pitch": float(digest[0]), "gender": "female" if voice == "deep" else ""},
        )
