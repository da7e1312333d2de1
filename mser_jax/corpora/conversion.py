"""Recordings to checked, resampled, encoded audio, in threads and in the order of the source."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator
from concurrent import futures

from mser_jax import storage
from mser_jax.corpora import acoustics, audio_check
from mser_jax.corpora.raw import LeftOut, RawUtterance

# libsndfile, soxr and the FFT release the GIL, what lies between does not: more threads made builds slower.
MAX_THREADS = 3


@dataclasses.dataclass(frozen=True)
class Converted:
    """An item as it is stored: FLAC of mono int16 at SAMPLING_RATE, and what is measured on it (acoustics.py)."""

    flac: bytes
    duration_s: float
    info: audio_check.AudioInfo
    pitch_hz: float
    loudness_db: float


def _convert(raw: RawUtterance | LeftOut) -> Converted | audio_check.BadAudio | None:
    if isinstance(raw, LeftOut):
        return None
    try:
        waveform, info = storage.retried(lambda: audio_check.load(raw.audio, raw.sampling_rate), raw.name)
    except audio_check.BadAudio as bad:
        return bad
    rate = audio_check.SAMPLING_RATE
    return Converted(
        flac=audio_check.encode_flac(waveform, rate),
        duration_s=len(waveform) / rate,
        info=info,
        pitch_hz=acoustics.pitch_hz(waveform, rate),
        loudness_db=acoustics.loudness_db(waveform),
    )


def in_order(
    raw_utterances: Iterable[RawUtterance | LeftOut],
) -> Iterator[tuple[RawUtterance | LeftOut, Converted | audio_check.BadAudio | None]]:
    """Convert all items in threads, results in the order of the items; None of a LeftOut."""
    threads = min(MAX_THREADS, os.cpu_count() or 1)
    waiting: collections.deque[tuple[RawUtterance | LeftOut, futures.Future]] = collections.deque()
    pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="corpus")
    try:
        for raw in raw_utterances:
            waiting.append((raw, pool.submit(_convert, raw)))
            if len(waiting) > 4 * threads:  # bounds the memory
                item, future = waiting.popleft()
                yield item, future.result()
        while waiting:
            item, future = waiting.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
