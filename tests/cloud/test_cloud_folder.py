"""A speech folder on gs://: names, content and paths that lead out are looked up in one listing."""

import io
import json
import unicodedata

import numpy as np
import pytest
import soundfile

from mser_jax.corpora import registry, speech_folder
from mser_jax.corpora.folder import manifest

ROW = {"language": "de", "emotion": "sad"}


def write(folder, *paths):
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(ROW | {"path": path}) for path in paths))


def test_files_of_a_folder_on_gs(gcs, bucket):
    folder = bucket / "speech"
    decomposed = unicodedata.normalize("NFD", "é.wav")
    for name in ("a.wav", "sub/b.wav", decomposed):
        (folder / name).write_bytes(name.encode())
    (bucket / "other" / "x.wav").write_bytes(b"x")
    write(folder, "a.wav", "sub\\b.wav", "é.wav", "A.wav", f"{folder}/sub/c.wav")
    before = len(gcs.requests)
    rows = manifest.read_manifest(folder)
    assert len(gcs.requests) - before < 10, "not one for each recording"
    assert [row.fields["id"] for row in rows] == ["a.wav", "sub/b.wav", "é.wav", "A.wav", "sub/c.wav"]
    assert [row.file.missing for row in rows] == [
        "", "", "", "no such file; there is 'a.wav'", "no such file; there is 'sub/b.wav'",
    ]  # fmt: skip
    assert rows[2].path.read_bytes() == decomposed.encode()
    first = speech_folder.fingerprint(folder)
    assert speech_folder.fingerprint(folder) == first
    (folder / "a.wav").write_bytes(b"b.wav")
    assert speech_folder.fingerprint(folder) != first
    for path in ("../other/x.wav", f"{bucket}/other/x.wav", "/etc/hostname"):
        write(folder, "a.wav", path)
        with pytest.raises(ValueError, match=r"line 2: path .* leads out of the folder"):
            manifest.read_manifest(folder)
        if path != "/etc/hostname":
            (_, found) = manifest.read_manifest(folder, outside=str(bucket / "other"))
            assert (found.path.read_bytes(), found.file.missing) == (b"x", "")
    write(folder, "a.wav", "./a.wav")
    with pytest.raises(ValueError, match=r"line 2: path .a.wav. was already listed in line 1"):
        manifest.read_manifest(folder)


def test_a_folder_on_gs_is_built_on_gs(gcs, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("MSER_CACHE_DIR", str(tmp_path / "cache"))
    folder = bucket / "speech"
    for name in ("a.wav", "b.wav"):
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.1 * np.random.default_rng(ord(name[0])).standard_normal(3200), 16_000, format="WAV")
        (folder / name).write_bytes(buffer.getvalue())
    write(folder, "a.wav", "b.wav")
    made = registry.open_corpus(f"speech_folder:{folder}", f"{bucket}/data")
    assert made.index["id"].to_pylist() == ["a.wav", "b.wav"]
    assert (made.place, made.own_corpus) == (str(folder), "speech")
    assert registry.open_corpus(f"speech_folder:{folder}/", f"{bucket}/data").folder == made.folder
