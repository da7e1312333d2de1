"""Small corpora in memory: real FLAC bytes, and an index like that of a corpus on disk."""

import dataclasses
import io
import zlib

import numpy as np
import pyarrow as pa
import soundfile

from mser_jax.data import sources

TEXT = dict.fromkeys(sources.TEXT_COLUMNS, "")


@dataclasses.dataclass
class FakeCorpus:
    """What open_corpus returns, over a list."""

    name: str
    spec: str
    index: pa.Table
    source: list
    folder: str = ""
    place: str = ""
    own_corpus: str = ""


def flac(samples, rate=16_000):
    """int16 [n] or [n, channels] -> bytes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def tone(seconds, rate=16_000, key="", amplitude=8000):
    """A tone whose frequency (80–7000 Hz) depends on `key`."""
    hz = 80 + zlib.crc32(key.encode()) % 6920
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def make_corpus(name, cells, *, parallel=False, sentences=10**9, **columns):
    """A corpus of `cells` = [(language, emotion, seconds)]; keywords set a column for all rows.

    Each language × emotion goes through sentences 0, 1, … `sentences` - 1, 0, …
    """
    rows, data = [], []
    counts = {}
    for i, (language, emotion, seconds) in enumerate(cells):
        identity = f"{name}-{i:04d}"
        counts[language, emotion] = counts.get((language, emotion), -1) + 1
        sentence = counts[language, emotion] % sentences
        row = TEXT | {
            "id": identity,
            "language": language,
            "corpus": name,
            "emotion": emotion,
            "domain": "real",
        }
        row |= {"speaker": f"{name}:{i % 3}", "emotion_native": emotion, "transcript": f"text {sentence}"}
        row |= {
            "parallel_id": f"s{sentence}" if parallel else "",
            "duration_s": seconds,
            "gender": "mf"[i % 2],
        }
        row |= {"pitch_hz": 100.0 + i, "loudness_db": -20.0 - i, "rate": float("nan"), **columns}
        rows.append(row)
        data.append({"id": identity, "audio": flac(tone(seconds, key=identity))})
    return FakeCorpus(name, name, pa.Table.from_pylist(rows), data)


def cells(languages, emotions, n, seconds=0.3):
    """n records of every language × emotion."""
    return [(language, emotion, seconds) for language in languages for emotion in emotions for _ in range(n)]
