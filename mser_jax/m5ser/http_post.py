"""POST with JSON, as a long run needs it: retries with growing pauses, a rate, a number at once, a limit in time."""

from __future__ import annotations

import asyncio
import codecs
import email.utils
import logging
import random
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import aiohttp
import fsspec.asyn

from mser_jax.m5ser.engines import EngineError, EngineUnavailableError

BACKOFF_SECONDS = 1.0  # before the second attempt; doubles, each time shortened by up to a half at random
MAX_BACKOFF_SECONDS = 60.0
MAX_WAIT_SECONDS = 600.0  # that a server may ask for in Retry-After
MAX_BYTES = 2**26  # of an answer
CONNECT_SECONDS = 30.0
_RETRIED = (408, 425, 429)  # and 5xx
_REFUSED = (401, 402, 403, 404, 405)  # whatever the line


class Poster:
    """Sends bodies to one address. Safe to call from several threads.

    A 429 or a Retry-After makes all threads wait, not only the one that met it.
    """

    def __init__(
        self, url: str, *, key: str, concurrency: int, requests_per_minute: float, timeout_seconds: float, attempts: int
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(
                "url: expected http(s)://HOST[:PORT]/v1 without user, password or query, got one with scheme "
                f"{parts.scheme!r} and host {parts.hostname!r}; keys belong into api_key_env"
            )
        if concurrency < 1 or attempts < 1 or timeout_seconds <= 0 or requests_per_minute < 0:
            raise ValueError(
                "expected concurrency ≥ 1, attempts ≥ 1, timeout_seconds > 0, requests_per_minute ≥ 0, got "
                f"{concurrency}, {attempts}, {timeout_seconds}, {requests_per_minute}"
            )
        self.shown_url = url
        self._key, self._attempts, self._timeout = key, attempts, timeout_seconds
        self._slots, self._lock = threading.BoundedSemaphore(concurrency), threading.Lock()
        self._interval, self._next = 60 / requests_per_minute if requests_per_minute else 0.0, 0.0

    def __call__(self, body: Mapping[str, Any]) -> tuple[str, bytes]:
        """Content type and bytes of the first answer with status 200.

        Raises:
          EngineError: this body was refused (4xx), or all attempts failed.
          EngineUnavailableError: whatever the body, the server would refuse it.
        """
        for attempt in range(1, self._attempts + 1):
            with self._slots:
                self._wait_for_turn()
                try:
                    status, headers, data = fsspec.asyn.sync(fsspec.asyn.get_loop(), self._send, body)
                    if status == 200:
                        return headers.get("Content-Type", ""), data
                    problem = self._refusal(status, headers, data)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    status, headers, problem = 0, {}, f"{self.shown_url}: {self.hide(_describe(error, self._timeout))}"
            if attempt == self._attempts:
                break
            pause = self._pause(attempt, headers)
            logging.info("%s; attempt %d of %d in %.1f s", problem, attempt + 1, self._attempts, pause)
            if status in (429, 503):
                with self._lock:
                    self._next = max(self._next, time.monotonic() + pause)
            else:
                time.sleep(pause)
        raise EngineError(f"{problem}; {self._attempts} attempts")

    def hide(self, text: str) -> str:
        """The text without the key, which servers like to repeat."""
        return text.replace(self._key, "***") if self._key else text

    async def _send(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=self._timeout, sock_connect=min(CONNECT_SECONDS, self._timeout))
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            # Followed, a redirect would become a GET, and take the key to another host.
            session.post(self.shown_url, json=body, headers=headers, allow_redirects=False) as response,
        ):
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > MAX_BYTES:
                    raise aiohttp.ClientPayloadError(f"the answer does not end after {MAX_BYTES >> 20} MiB")
            return response.status, response.headers, bytes(data)

    def _wait_for_turn(self) -> None:
        """Returns when the next request may be sent."""
        while True:
            with self._lock:
                wait = self._next - time.monotonic()
                if wait <= 0:
                    self._next = time.monotonic() + self._interval
                    return
            time.sleep(wait)

    def _refusal(self, status: int, headers: Mapping[str, str], data: bytes) -> str:
        """What to say of a status that another attempt may change; raises for the others."""
        told = self.hide(data[:300].decode(errors="replace").strip())
        problem = f"{self.shown_url} answered {status}: {told}"
        if status in _REFUSED or 300 <= status < 400 or (status == 429 and "insufficient_quota" in told):
            where = f" (to {headers['Location']})" if "Location" in headers else ""
            key = "the key in options.api_key_env" if self._key else "no key was sent (options.api_key_env)"
            raise EngineUnavailableError(f"{problem}{where}; {key}; check options.url and options.model")
        if status not in _RETRIED and status < 500:
            raise EngineError(problem)
        return problem

    def _pause(self, attempt: int, headers: Mapping[str, str]) -> float:
        """Seconds until the next attempt: what the server asks for, and never less than our own growing pause."""
        own = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
        asked = _seconds(headers.get("Retry-After", ""))
        if asked > MAX_WAIT_SECONDS:
            raise EngineUnavailableError(
                f"{self.shown_url} asks to wait {asked:.0f} s; run the same command again then: it goes on from here"
            )
        return max(own, asked)


def words_of(kind: str, data: bytes) -> str:
    """The beginning of an answer that is text (an error in JSON, a web page) whatever its status; "" for audio."""
    try:
        words = codecs.getincrementaldecoder("utf-8")().decode(data[:4096])  # which may end within a character
    except UnicodeDecodeError:
        return ""
    is_text = kind.startswith("text/") or "json" in kind or words.lstrip()[:1] in ("{", "<", "[")
    return " ".join(words.split())[:300] if is_text else ""


def _seconds(retry_after: str) -> float:
    """Retry-After as seconds from now: a number or a date; 0 for anything else."""
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _describe(error: BaseException, timeout_seconds: float) -> str:
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return f"no whole answer within {timeout_seconds:g} s"
    return f"{type(error).__name__}: {error}"
