"""Writes miniature downloads of public corpora: files with true names and a little sound, and builds them."""

import io
import json

import numpy as np
import soundfile

from mser_jax.corpora import emotions, record, registry


def sound(name, seconds=0.3, rate=16_000, channels=1, audio_format="WAV"):
    """The bytes of a recording that is another one for every name."""
    rng = np.random.default_rng(list(name.encode()))
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 300) * time) + 0.01 * rng.standard_normal(len(time))
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([wave] * channels, axis=1), rate, format=audio_format)
    return buffer.getvalue()


def write(folder, names, **how):
    """Makes the files `names` (paths) below `folder`, with what `sound` takes."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound(name, **how))
    return folder


def build(spec, source, data_dir, emobox="", allow_partial=True):
    """Prepares a corpus; returns its records by id, its index (list of rows) and its report."""
    builder = registry.corpus_builder(spec, str(data_dir), str(source), str(emobox), allow_partial)
    builder.prepare()
    rows = builder.data_source()
    records = [record.Utterance.from_example(rows[row]) for row in range(len(rows))]
    assert all(u.emotion in (*emotions.EMOTIONS, "") for u in records)
    report = json.loads(builder.report_path.read_text())
    return {u.id: u for u in records}, builder.index().to_pylist(), report
