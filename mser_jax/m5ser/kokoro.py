"""Kokoro-82M as an engine: the PyPI package kokoro-onnx on a folder with the model and its voices.

The folder holds an ONNX file and a voices file (NPZ, float32 [510, 1, 256] a voice: a style for every number of
phonemes), as kokoro-onnx publishes them (kokoro-v1.0.onnx, kokoro-v1.0.int8.onnx, voices-v1.0.bin). The model knows no
emotions: it takes a style and a speed, and WORLD (world.py) does the rest, for neutral speech too.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np

from mser_jax import storage
from mser_jax.m5ser import engines, prosody, world
from mser_jax.m5ser.engine import Speech, UnsupportedSpeechError

INSTALL = "the engine kokoro needs its package: pip install kokoro-onnx"
INSTALL_MANDARIN = "Mandarin by kokoro needs pinyin as phonemes: pip install pinyin-to-ipa"
# First letter of a voice's name -> language. Japanese voices want phonemes that espeak-ng does not give.
_LANGUAGE_OF = {"a": "en", "b": "en", "e": "es", "f": "fr", "h": "hi", "i": "it", "p": "pt", "z": "zh"}
# What espeak-ng calls the accents that the voices were trained on.
_ESPEAK = {"a": "en-us", "b": "en-gb", "en": "en-us", "fr": "fr-fr", "pt": "pt-br"}
_SPEEDS = (0.5, 2.0)  # that kokoro-onnx takes
# IPA of a pinyin syllable -> the model's symbols: affricates are one letter, tones are arrows at the vowel.
_SYMBOLS = {
    "tɕ": "ʨ", "ʈʂ": "ꭧ", "ts": "ʦ", "ɹ̩": "ɨ", "ɻ̩": "ɨ", "˧˩˧": "↓", "˧˥": "↗", "˥˩": "↘", "˥": "→", "̯": "",
}  # fmt: skip
_MARKS = str.maketrans("，。！？；：、", ",.!?;:,")


class KokoroEngine:
    """A Kokoro model. The same arguments give the same samples.

    directory: holds the model and the voices (on every worker; not gs://).
    model, voices_file: their names in it; "": the only *.onnx, and the only voices*.bin or *.npz.
    mixes: more voices, "af_heart+am_adam, af_heart*0.7+af_sky*0.3": styles mixed by weight, as new speakers. The
      language is that of the first.
    borrowed: languages that Kokoro has no voice for -> voices or mixes that speak them all the same, with an accent:
      "de: af_heart, am_adam; pl: af_sky" or {"de": "af_heart,am_adam"}. Any language of espeak-ng.
    threads: of the model, in each worker process.

    Safe to call from several threads.
    """

    name = "kokoro"

    def __init__(
        self,
        directory: str,
        *,
        model: str = "",
        voices_file: str = "",
        mixes: str = "",
        borrowed: str | Mapping[str, str] = "",
        threads: int = 1,
    ):
        if importlib.util.find_spec("kokoro_onnx") is None:
            raise ImportError(INSTALL)
        world.check()
        folder = Path(storage.absolute(directory))
        self._model = _only(folder, model, "*.onnx")
        self._voices_file = _only(folder, voices_file, "voices*.bin", "voices*.npz")
        with np.load(self._voices_file) as voices:
            self._single = frozenset(voices.files)
        self._threads, self._lock, self._made = threads, threading.Lock(), None
        self._voices = self._table(mixes, engines.voice_table("", borrowed) if borrowed else {})

    def _table(self, mixes: str, borrowed: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Language -> voices."""
        table: dict[str, tuple[str, ...]] = {}
        mixed = [mix.strip() for mix in mixes.split(",") if mix.strip()]
        for voice in [*sorted(self._single), *mixed]:
            self._weights(voice)
            if language := _LANGUAGE_OF.get(voice[0]):
                table[language] = (*table.get(language, ()), voice)
        for language, chosen in borrowed.items():
            for voice in chosen:
                self._weights(voice)
            table[language] = tuple(dict.fromkeys((*table.get(language, ()), *chosen)))
        return table

    def _weights(self, voice: str) -> dict[str, float]:
        """Voice or mix -> single voices with their shares. Raises ValueError: no such voice, or a bad weight."""
        shares = {}
        for part in voice.split("+"):
            name, _, weight = part.partition("*")
            try:
                shares[name.strip()] = float(weight or 1)
            except ValueError:
                raise ValueError(f"kokoro: {voice!r}: {weight!r} is no weight; write af_heart*0.7+af_sky*0.3") from None
        for name, share in shares.items():
            if name not in self._single or not 0 < share < np.inf:
                raise ValueError(
                    f"kokoro: {voice!r}: no voice {name!r} in {self._voices_file}, or a weight that is not positive; "
                    f"there is {', '.join(sorted(self._single))}"
                )
        return {name: share / sum(shares.values()) for name, share in shares.items()}

    def languages(self) -> tuple[str, ...]:
        """Those of the voices, and those borrowed for."""
        return tuple(sorted(self._voices))

    def voices(self, language: str) -> tuple[str, ...]:
        """Voices and mixes of a language. Raises UnsupportedSpeechError: no voice speaks it."""
        return engines.voices_of(self._voices, language, self.name)

    def facts(self) -> tuple:
        """What else decides the sound; see engines.fingerprint. Reads the model once."""
        return (
            _digest(self._model), _digest(self._voices_file), _version(), world.version(), prosody.prosody_facts(),
            importlib.metadata.version("espeakng-loader"),
        )  # fmt: skip

    def speak(self, text: str, *, language: str, voice: str, emotion: str, intensity: float, seed: int) -> Speech:
        """See `Engine.speak`; 24 kHz. The mark at the end of the text is not spoken: the prosody has its own.

        Raises:
          UnsupportedSpeechError: a language, voice or emotion that the model or the prosody lacks.
          EngineError: the model made nothing of the text.
        """
        engines.check_voice(self._voices, language, voice, self.name)
        if emotion not in prosody.TARGETS:
            raise UnsupportedSpeechError(f"no prosody for {emotion!r}; there is {', '.join(prosody.TARGETS)}")
        drawn = prosody.draw_prosody(emotion, intensity, np.random.default_rng(seed))
        speed = float(np.clip(2**drawn.rate_oct, *_SPEEDS))
        kokoro = self._kokoro()
        shares = self._weights(voice)
        style = sum(share * kokoro.voices[name] for name, share in shares.items())
        try:
            phonemes = self._phonemes(kokoro, text, language, voice)
            waveform, rate = kokoro.create(phonemes, style.astype(np.float32), speed, is_phonemes=True)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise engines.EngineError(f"kokoro: {text!r} ({language}, {voice}): {error}") from error
        waveform = np.asarray(waveform, np.float32).reshape(-1)
        waveform, done = world.perform(waveform, rate, emotion, intensity, seed, speed=False)
        genders = {name[1] for name in shares}
        metadata = {"engine": self.name, "version": _version(), "model": self._model.name, "voice": voice}
        metadata |= {"gender": {"f": "female", "m": "male"}[genders.pop()] if len(genders) == 1 else ""}
        metadata |= {"language": language, "emotion": emotion, "intensity": intensity, "seed": seed}
        return Speech(
            waveform=waveform, sampling_rate=rate, metadata=metadata | {"speed": speed, "phonemes": phonemes} | done
        )

    def _phonemes(self, kokoro: Any, text: str, language: str, voice: str) -> str:
        text = text.strip().rstrip(".!?。！？…") + "."
        if language == "zh":
            return mandarin(text)
        code = _ESPEAK.get(voice[0] if _LANGUAGE_OF.get(voice[0]) == language else language)
        with self._lock:  # espeak-ng has one state
            return kokoro.tokenizer.phonemize(text, code or _ESPEAK.get(language, language))

    def _kokoro(self) -> Any:
        """The package's object, made when first needed: a process that only plans needs no model."""
        with self._lock:
            if self._made is None:
                import kokoro_onnx
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
                providers = onnxruntime.get_available_providers()
                session = onnxruntime.InferenceSession(str(self._model), options, providers=providers)
                # A copy, which is another library to the loader: espeak.py unloads its own after every sentence.
                self._scratch = tempfile.TemporaryDirectory(prefix="espeak-")
                library = shutil.copy(espeakng_loader.get_library_path(), self._scratch.name)
                espeak = kokoro_onnx.EspeakConfig(lib_path=library, data_path=espeakng_loader.get_data_path())
                self._made = kokoro_onnx.Kokoro.from_session(session, str(self._voices_file), espeak)
            return self._made


def mandarin(text: str) -> str:
    """Hanzi as the phonemes of Kokoro's Mandarin voices; words apart by blanks, tones as arrows.

    Example: mandarin("书在架子上。") == "ʂu→ ʦai↘ ʨja↘ʦɨ ʂa↘ŋ."

    Raises:
      ImportError: pinyin-to-ipa is missing.
    """
    try:
        from pinyin_to_ipa import pinyin_to_ipa
    except ImportError as error:
        raise ImportError(INSTALL_MANDARIN) from error
    from pypinyin import Style, lazy_pinyin
    from pypinyin.seg import mmseg

    spoken = []
    for word in mmseg.seg.cut(text.translate(_MARKS)):
        for syllable in lazy_pinyin(word, style=Style.TONE3, neutral_tone_with_five=True, tone_sandhi=True):
            if not re.fullmatch(r"[a-zü]+[1-5]", syllable):
                spoken.append(syllable)
                continue
            ipa = "".join(pinyin_to_ipa(syllable)[0])
            for found, symbol in _SYMBOLS.items():
                ipa = ipa.replace(found, symbol)
            spoken.append(ipa)
        spoken.append(" ")
    return re.sub(r"\s+([,.!?;:])", r"\1", " ".join("".join(spoken).split()))


def _only(folder: Path, name: str, *patterns: str) -> Path:
    """The file of that name, or the only one of the patterns. Raises ValueError: none, or several."""
    found = [folder / name] if name else sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) != 1 or not found[0].is_file():
        raise ValueError(
            f"kokoro: expected one file {name or ' or '.join(patterns)} in {folder}, there is "
            f"{', '.join(path.name for path in found if path.is_file()) or 'none'}; kokoro-onnx publishes them "
            "(releases of github.com/thewh1teagle/kokoro-onnx: kokoro-v1.0.int8.onnx, voices-v1.0.bin)"
        )
    return found[0]


@functools.cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _version() -> str:
    return importlib.metadata.version("kokoro-onnx")
