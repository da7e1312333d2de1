"""espeak-ng as an engine: the shared library of the PyPI package espeakng-loader, called in this process.

espeak-ng (https://github.com/espeak-ng/espeak-ng, 1.52) keeps its synthesiser in static variables: the
phases of the flutter and of the glottal wave, among others, live on from one sentence to the next, and no
call resets them. Since the same arguments must give the same samples in any order, every sentence gets a
library that was just loaded (0.4 ms) and is unloaded after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import espeakng_loader
import numpy as np
from pypinyin import Style, lazy_pinyin

from mser_jax.m5ser.engine import Speech, UnsupportedSpeechError
from mser_jax.m5ser.engines import EngineError
from mser_jax.m5ser.prosody import JITTER, TARGETS, Prosody, draw_prosody, tilt_spectrum

# speak_lib.h: espeak_AUDIO_OUTPUT, espeakCHARS_*, espeak_PARAMETER. Its own rate is 175 words a minute.
_SYNCHRONOUS, _UTF8 = 2, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_WORDS_PER_MINUTE = 165
# Below the library's default of 100, so that loud emotions stay clear of its automatic gain control.
_NEUTRAL_VOLUME = 60
# SetPitch2's pivot; then, typical of the variants, a voice's range over its floor and the contour's median.
_PIVOT, _RANGE_OVER_FLOOR, _MEDIAN_HEIGHT = 18, 0.0145, 22
_BUFFER_MS = 1000
_TRIM_DB, _HOP = 45, 128

# Tags whose espeak voice goes by another name. Not every build of it reads hanzi; pinyin always works.
_VOICE_OF = {"zh": "cmn-latn-pinyin"}
_TERMINAL = ".!?。！？؟…"
_TO_ASCII = str.maketrans("，。！？；：、", ",.!?;:,")

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_lock = threading.Lock()


class EspeakEngine:
    """The rule-based engine: every language of espeak-ng, voices = its speaker variants (m1, f2, …).

    A variant is the same speaker in every language. `prosody` renders emotion, relative to the variant.
    Safe to call from several threads (they take turns). Linux and macOS.
    """

    name = "espeak-ng"

    def languages(self) -> tuple[str, ...]:
        """All language tags of the installed data, and "zh" (Mandarin in hanzi)."""
        return tuple(sorted({*_language_files(), *_VOICE_OF}))

    def voices(self, language: str) -> tuple[str, ...]:
        """Names of the speaker variants; every variant speaks every language.

        Raises:
          UnsupportedSpeechError: unknown language.
        """
        _voice_file(language)
        return _variants()

    def facts(self) -> tuple:
        """What else decides the sound; see engines.fingerprint."""
        return [], TARGETS, JITTER, _version()

    def speak(self, text: str, *, language: str, voice: str, emotion: str, intensity: float, seed: int) -> Speech:
        """See `Engine.speak`. Leading and trailing silence is cut off; 22050 Hz.

        Raises:
          UnsupportedSpeechError: a language, voice or emotion that espeak-ng or the prosody lacks.
          EngineError: the library failed, or the text came out silent.
        """
        if voice not in self.voices(language):  # espeak-ng itself ignores an unknown variant
            raise UnsupportedSpeechError(
                f"espeak-ng has no voice {voice!r}; there is {', '.join(self.voices(language))}"
            )
        if emotion not in TARGETS:
            raise UnsupportedSpeechError(f"no prosody for emotion {emotion!r}; there is {', '.join(TARGETS)}")
        prosody = draw_prosody(emotion, intensity, np.random.default_rng(seed))
        spoken = spoken_form(text, language) + ("?" if prosody.rise else ".")
        samples, rate = _synthesize(spoken, f"{_voice_file(language)}+{voice}", prosody, seed)
        if not samples.any():
            raise EngineError(f"espeak-ng spoke nothing for {text!r} ({language}, {voice})")
        waveform = _trim(tilt_spectrum(samples.astype(np.float32) / 32768, rate, prosody.tilt_db))
        metadata = {"engine": self.name, "version": _version(), "voice": voice, "language": language}
        values = {name: value for name, value in vars(prosody).items() if name != "jitter_pct"}
        return Speech(
            waveform=waveform,
            sampling_rate=rate,
            metadata={**metadata, "emotion": emotion, "intensity": intensity, "seed": seed, **values},
        )


@functools.cache
def _version() -> str:
    return importlib.metadata.version("espeakng-loader")


def spoken_form(text: str, language: str) -> str:
    """The text as espeak-ng wants it: no mark at the end (prosody sets it), Mandarin as pinyin with tones.

    Example: spoken_form("书在架子上。", "zh") == "shu1 zai4 jia4 zi5 shang4".
    """
    text = text.strip().lstrip("¡¿").rstrip(_TERMINAL + " \u202f\xa0")
    if language != "zh":
        return text
    syllables = lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True, tone_sandhi=True)
    return " ".join(syllables).translate(_TO_ASCII)


@functools.cache
def _data_dir() -> Path:
    return Path(espeakng_loader.get_data_path())


@functools.cache
def _variants() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (_data_dir() / "voices" / "!v").iterdir()))


@functools.cache
def _language_files() -> dict[str, str]:
    """Tag (lower case) -> voice file below lang/, as SetVoiceByName takes it without scanning every voice."""
    root = _data_dir() / "lang"
    return {path.name.lower(): str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def _voice_file(language: str) -> str:
    files = _language_files()
    name = _VOICE_OF.get(language, language.lower())
    if name not in files:
        raise UnsupportedSpeechError(
            f"espeak-ng does not speak {language!r}; there is {', '.join(sorted({*files, *_VOICE_OF}))}"
        )
    return files[name]


@functools.cache
def _dlclose() -> Callable[[int], int]:
    close = ctypes.CDLL(None).dlclose  # ctypes itself never unloads
    close.argtypes = [ctypes.c_void_p]
    return close


@contextlib.contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Loads, initialises and unloads the library; yields it and its sampling rate (Hz). Hold `_lock`."""
    path = espeakng_loader.get_library_path()
    with contextlib.suppress(OSError):
        ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
        raise RuntimeError(
            f"{path} is already loaded in this process by other code, so its state cannot be reset between "
            "sentences; generate speech in a process of its own"
        )
    library = ctypes.CDLL(path)
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, str(_data_dir()).encode(), 0)
        if rate <= 0:
            raise RuntimeError(f"espeak-ng did not start: espeak_Initialize returned {rate}")
        yield library, rate
        library.espeak_Terminate()
    finally:
        _dlclose()(library._handle)


def _synthesize(text: str, voice: str, prosody: Prosody, seed: int) -> tuple[np.ndarray, int]:
    """Samples int16 [samples] and sampling rate of `text` spoken by an espeak-ng voice ("gmw/en+m1")."""
    blocks: list[bytes] = []

    @_Callback
    def collect(samples: ctypes._Pointer, count: int, _events: int | None) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, 2 * count))
        return 0

    encoded = text.encode("utf-8") + b"\0"
    with _lock, _fresh_library() as (library, rate):
        library.espeak_SetSynthCallback(collect)
        status = library.espeak_SetVoiceByName(voice.encode())
        for parameter, value in _parameters(prosody).items():
            status = status or library.espeak_SetParameter(parameter, value, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed % 2**31))
        status = status or library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _UTF8, None, None)
    if status:
        raise EngineError(f"espeak-ng failed with status {status} for {text!r} ({voice})")
    return np.frombuffer(b"".join(blocks), np.int16), rate


def _parameters(prosody: Prosody) -> dict[int, int]:
    """espeak-ng's integers for a prosody.

    Its pitch parameter (an octave per 50 steps) moves only the floor of the f0 contour; its range parameter
    (linear, 50 = the voice's own) stretches in Hz what lies above (wavegen.c: SetPitch2). Moving a contour by
    semitones takes both: the range grows with f0, and the floor makes up for what that does to the median.
    """
    shift = 2 ** (prosody.pitch_st / 12)
    spread = min(shift * 2**prosody.range_oct, 99 / 50)
    floor = shift + _RANGE_OVER_FLOOR * (_PIVOT * (spread - 1) + _MEDIAN_HEIGHT * (shift - spread))
    return {
        _RATE: round(np.clip(_WORDS_PER_MINUTE * 2**prosody.rate_oct, 80, 350)),
        _VOLUME: round(np.clip(_NEUTRAL_VOLUME * 10 ** (prosody.volume_db / 20), 5, 200)),
        _PITCH: round(np.clip(50 + 50 * np.log2(max(floor, 0.5)), 0, 99)),
        _RANGE: round(50 * spread),
    }


def _trim(waveform: np.ndarray) -> np.ndarray:
    """librosa.effects.trim(top_db=45, frame_length=512, hop_length=128), without its import (3 s of every worker)."""
    hops = -(-len(waveform) // _HOP) + 4
    padded = np.zeros(hops * _HOP, np.float32)
    padded[2 * _HOP : 2 * _HOP + len(waveform)] = waveform
    energy = np.square(padded).reshape(hops, _HOP).sum(axis=1, dtype=np.float64)
    frames = np.convolve(energy, np.ones(4), "valid")[: len(waveform) // _HOP + 1]
    loud = np.flatnonzero(frames > frames.max() * 10 ** (-_TRIM_DB / 10))
    return waveform[loud[0] * _HOP : (loud[-1] + 1) * _HOP]
