"""Any server that speaks OpenAI's POST /v1/audio/speech: how CosyVoice, Qwen3-TTS and many others are served.

The body has model, input, voice, instructions, response_format and speed (the API's own names), and what the option
`extra` adds for servers that know more. What comes back is checked before it is believed. Answers may cost money:
they are kept in a cache by content, so that a run that was killed asks for nothing twice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mser_jax import storage
from mser_jax.corpora import audio_check
from mser_jax.m5ser import engines, http_post, prosody, text_filters, world
from mser_jax.m5ser.engine import Speech, UnsupportedSpeechError
from mser_jax.m5ser.instructions import Instructions

BAD_ANSWERS = 2  # answers that are no speech of the text, until the line is given up: each may have been paid for
GIVE_UP_AFTER = 20  # lines in succession that failed, until the run is stopped
MAX_CHARACTERS_A_SECOND = 40.0  # nobody speaks half as fast; of the text's length as text_filters counts it
NO_INSTRUCTIONS = "none"
_PCM_RATE = 24_000  # of OpenAI's headerless format: 16 bits, little-endian, mono


class OpenAIEngine:
    """A model behind a server.

    url: up to and without /audio/speech, as in "http://localhost:8000/v1". No secrets in it.
    model, languages, voices: see engines.voice_table; the server is not asked.
    name: what records carry as `domain`; "": the model.
    api_key_env: the environment variable (on every worker) that holds the key; "": no key.
    instructions: TOML file with the words for emotions; "": instructions.toml here; "none": nothing is said.
    instruct_in: language of these words; "own": that of the text.
    input: what is sent as input; may hold {text}, {instructions} (then not sent by themselves), {emotion}, {intensity}.
    world: whether WORLD gives the prosody of the emotion to what came back, for servers that know none.
    response_format, speed: see OpenAI's reference. sampling_rate: Hz that is insisted on; 0: that of the header.
    extra: more of the body; strings may hold {language}, {emotion}, {intensity}, {seed}; "{seed}" alone is a number.
    concurrency, requests_per_minute (0: no limit): of each worker process.
    timeout_seconds: of a request, from connecting to the last byte. attempts: of a line, before it fails.
    cache: folder (gs:// too) that keeps the answers; "": none.

    Safe to call from several threads.
    """

    def __init__(
        self,
        url: str,
        model: str,
        voices: str | Mapping[str, str],
        languages: str = "",
        *,
        name: str = "",
        api_key_env: str = "",
        instructions: str = "",
        instruct_in: str = "en",
        input: str = "{text}",
        world: bool = False,
        response_format: str = "wav",
        sampling_rate: int = 0,
        speed: float = 1.0,
        extra: Mapping[str, Any] | None = None,
        concurrency: int = 4,
        requests_per_minute: float = 0.0,
        timeout_seconds: float = 120.0,
        attempts: int = 6,
        cache: str = "",
    ):
        self.name, self.concurrency = name or model, concurrency
        self._model, self._voices = model, engines.voice_table(languages, voices)
        self._words = None if instructions == NO_INSTRUCTIONS else Instructions(instructions, instruct_in)
        self._input, self._world, self._extra = input, world, dict(extra or {})
        self._format, self._rate, self._speed = response_format, sampling_rate, speed
        self._check_options()
        self._post = http_post.Poster(
            f"{url.rstrip('/')}/audio/speech", key=engines.secret(api_key_env), concurrency=concurrency,
            requests_per_minute=requests_per_minute, timeout_seconds=timeout_seconds, attempts=attempts,
        )  # fmt: skip
        self._cache = storage.absolute(cache) if cache else None
        if not cache:
            logging.warning(
                "%s: answers are not kept: a run that is killed asks (and pays) again for up to a chunk of them; set "
                "options.cache=DIR", self.name,
            )  # fmt: skip
        self._failed, self._lock = 0, threading.Lock()
        self._asking: dict[str, threading.Lock] = {}  # by name in the cache

    def _check_options(self) -> None:
        if "{text}" not in self._input:
            raise ValueError(f"input={self._input!r} must hold {{text}}")
        if self._world:
            world.check()
        self._body("", language="en", voice="", emotion="neutral", intensity=1.0, seed=0)
        told = f"{self._input} {json.dumps(self._extra)}"
        if self._words is None and not self._world and "{emotion}" not in told:
            raise ValueError(
                "nothing would carry the emotion: leave instructions on, set world=True, or put {emotion} into input "
                "or extra"
            )

    def languages(self) -> tuple[str, ...]:
        """Those that the options name."""
        return tuple(sorted(self._voices))

    def voices(self, language: str) -> tuple[str, ...]:
        """Those that the options name. Raises UnsupportedSpeechError: not this language."""
        return engines.voices_of(self._voices, language, self.name)

    def facts(self) -> tuple:
        """What else decides the sound; see engines.fingerprint."""
        words = self._words.facts() if self._words else ()
        table = (prosody.prosody_facts(), world.version()) if self._world else ()
        extra = json.dumps(self._extra, sort_keys=True)
        return self._model, words, self._input, table, self._format, self._rate, self._speed, extra

    def speak(self, text: str, *, language: str, voice: str, emotion: str, intensity: float, seed: int) -> Speech:
        """See `Engine.speak`; 16 kHz. The server may answer another time otherwise: what is kept in the cache stays.

        Raises:
          UnsupportedSpeechError: a language, voice or emotion that the options lack.
          EngineError: the line failed after its retries.
          EngineUnavailableError: every line would, or GIVE_UP_AFTER in succession did.
        """
        engines.check_voice(self._voices, language, voice, self.name)
        if self._world and emotion not in prosody.TARGETS:
            raise UnsupportedSpeechError(f"no prosody for {emotion!r}; there is {', '.join(prosody.TARGETS)}")
        body = self._body(text, language=language, voice=voice, emotion=emotion, intensity=intensity, seed=seed)
        try:
            waveform, rate = self._answer(body, text)
            drawn = {}
            if self._world:
                waveform, drawn = world.perform(waveform, audio_check.SAMPLING_RATE, emotion, intensity, seed)
        except engines.EngineError as error:
            self._count(failed=True, error=error)
            raise
        self._count(failed=False)
        metadata = {"engine": "openai_http", "url": self._post.shown_url, "server_rate": rate, "seed": seed}
        metadata |= {key: value for key, value in body.items() if key != "input" or value != text}
        metadata |= {"language": language, "emotion": emotion, "intensity": intensity, **drawn}
        return Speech(waveform=waveform, sampling_rate=audio_check.SAMPLING_RATE, metadata=metadata)

    def _body(
        self, text: str, *, language: str, voice: str, emotion: str, intensity: float, seed: int
    ) -> dict[str, Any]:
        how = {"language": language, "emotion": emotion, "intensity": intensity, "seed": seed}
        told = self._words.fill(**how) if self._words else ""
        values = {**how, "intensity": f"{intensity:g}", "text": text, "instructions": told}
        try:
            extra = {
                key: seed if value == "{seed}" else value.format(**values) if isinstance(value, str) else value
                for key, value in self._extra.items()
            }
            spoken = self._input.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"input or extra: {error!r} is none of {{{'}, {'.join(values)}}}") from error
        body = {"model": self._model, "input": spoken, "voice": voice, "response_format": self._format}
        if told and "{instructions}" not in self._input:
            body["instructions"] = told
        return body | ({"speed": self._speed} if self._speed != 1 else {}) | extra

    def _answer(self, body: Mapping[str, Any], text: str) -> tuple[np.ndarray, int]:
        """float32 [time] at 16 kHz and the server's rate; from the cache, or the server's first good answer."""
        path = self._cache_path(body)
        if path is None:
            return self._ask(body, text)[0]
        with self._lock:
            mine = self._asking.setdefault(path.name, threading.Lock())
        with mine:  # two emotions may be edited from one answer, in two threads: it is paid for once
            if path.exists():
                try:
                    return self._read("", path.read_bytes(), text)
                except engines.EngineError as error:
                    logging.warning("%s in the cache is asked for again: %s", path, error)
            found, data = self._ask(body, text)
            storage.replace(path, data)
        with self._lock:
            self._asking.pop(path.name, None)  # who still waits holds it
        return found

    def _ask(self, body: Mapping[str, Any], text: str) -> tuple[tuple[np.ndarray, int], bytes]:
        """What `_answer` returns, and its bytes, of the server's first good answer."""
        for attempt in itertools.count(1):
            kind, data = self._post(body)
            try:
                return self._read(kind, data, text), data
            except engines.EngineError as error:
                if attempt == BAD_ANSWERS:
                    raise
                logging.info("%s: answer %d of %d: %s", self.name, attempt, BAD_ANSWERS, error)

    def _cache_path(self, body: Mapping[str, Any]) -> epath.Path | None:
        if self._cache is None:
            return None
        asked = json.dumps([self._post.shown_url, body], sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(asked.encode()).hexdigest()
        return self._cache / key[:2] / f"{key[:40]}.{self._format}"

    def _read(self, kind: str, data: bytes, text: str) -> tuple[np.ndarray, int]:
        """What `_answer` returns. Raises EngineError: not audio of the text, or not as agreed upon."""
        what = f"{self._post.shown_url}: {len(data)} bytes for {text!r}"
        if words := http_post.words_of(kind, data):
            raise engines.EngineError(f"{what} are no audio but {kind or 'text'}: {self._post.hide(words)}")
        try:
            if self._format == "pcm":
                samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.int16)
                waveform, info = audio_check.load(samples, self._rate or _PCM_RATE)
            else:
                waveform, info = audio_check.load(data)
        except audio_check.BadAudio as bad:
            raise engines.EngineError(f"{what} are no speech: {bad}") from bad
        if self._rate and info.sampling_rate != self._rate:
            raise engines.EngineError(f"{what} are at {info.sampling_rate} Hz, expected {self._rate} Hz")
        least = text_filters.length(text) / MAX_CHARACTERS_A_SECOND
        if info.duration_s < least:
            raise engines.EngineError(f"{what} are {info.duration_s:.2f} s, expected at least {least:.2f} s")
        return waveform.astype(np.float32) / 32768, info.sampling_rate

    def _count(self, *, failed: bool, error: Exception | None = None) -> None:
        with self._lock:
            self._failed = self._failed + 1 if failed else 0
            if self._failed >= GIVE_UP_AFTER:
                raise engines.EngineUnavailableError(
                    f"{self.name}: {self._failed} lines in succession failed, the last of them: {error}. When the "
                    "server is well, run the same command again: it goes on from here"
                ) from error
