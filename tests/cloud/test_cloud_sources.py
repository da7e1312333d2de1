"""Original downloads on gs://: a folder, an archive and a folder of archives give the corpus that local ones give."""

import io
import os
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
from fake_gcs import Fault

from mser_jax.corpora import registry, source

NAMES = [
    f"wav/{speaker}a{text}{emotion}a.wav" for speaker in ("03", "08") for text in ("01", "02") for emotion in "WFNT"
]


def sound(name):
    """The bytes of 0.2 s of noise, another one for every name."""
    rng = np.random.default_rng(list(name.encode()))
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * rng.standard_normal(3200), 16_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def local(tmp_path):
    """A download of EmoDB, sixteen recordings of it."""
    for name in NAMES:
        path = tmp_path / "download" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound(name))
    return tmp_path / "download"


@pytest.fixture
def remote(gcs, bucket, local, tmp_path):
    """{"folder" | "archive" | "archives": a source on gs://}."""
    for name in NAMES:
        (bucket / "folder" / name).write_bytes((local / name).read_bytes())
    (bucket / "folder" / "__MACOSX" / "._a.wav").write_bytes(b"litter")
    archive = pathlib.Path(shutil.make_archive(str(tmp_path / "download"), "zip", local))
    (bucket / "download.zip").write_bytes(archive.read_bytes())
    (bucket / "archives" / "part1.zip").write_bytes(archive.read_bytes())
    (bucket / "archives" / "readme.txt").write_bytes(b"read me")
    return {"folder": bucket / "folder", "archive": bucket / "download.zip", "archives": bucket / "archives"}


def build(where, data_dir):
    builder = registry.corpus_builder("emodb", os.fspath(data_dir), os.fspath(where), allow_partial=True)
    builder.prepare()
    # NaN is not equal to itself.
    return [{key: value for key, value in row.items() if value == value} for row in builder.index().to_pylist()]


@pytest.mark.parametrize("kind", ["folder", "archive", "archives"])
def test_a_corpus_from_gs(gcs, remote, local, tmp_path, kind, capsys):
    before = len(gcs.requests)
    assert build(remote[kind], tmp_path / "data") == build(local, tmp_path / "local")
    reads = [line for line in gcs.requests[before:] if "alt=media" in line]
    assert len(reads) == {"folder": 16, "archive": 1, "archives": 2}[kind], "each file once"
    said = capsys.readouterr().err
    assert ("copying 16 files (0.00 GiB) from gs://" in said) == (kind == "folder")
    assert ("unpacking" in said) == (kind != "folder")
    assert not list((tmp_path / "data").rglob("*.wav")), "no copy is left"


def test_a_corpus_from_gs_to_gs(remote, bucket, cache, local, tmp_path):
    assert build(remote["archives"], bucket / "data") == build(local, tmp_path / "local")
    assert registry.open_corpus("emodb", os.fspath(bucket / "data")).folder.startswith("gs://")
    assert not [path for path in cache.rglob("*") if path.name.endswith((".wav", ".zip"))]


def test_a_source_that_cannot_be_had(gcs, remote, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gs://.*gone.*no such folder or archive"):
        build(remote["folder"].parent / "gone", tmp_path / "data")
    monkeypatch.setattr(source.shutil, "disk_usage", lambda path: type("usage", (), {"free": 100}))
    before = len(gcs.requests)
    for kind in ("folder", "archive"):
        with pytest.raises(OSError, match=r"GiB copied, 0\.0 GiB are free"):
            build(remote[kind], tmp_path / "data")
    assert not [line for line in gcs.requests[before:] if "alt=media" in line]
    monkeypatch.undo()
    gcs.faults.append(Fault("alt=media", 503, times=2))
    assert len(build(remote["folder"], tmp_path / "data")) == 16, "a refusal is met by asking again"
