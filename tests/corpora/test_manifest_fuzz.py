"""Hundreds of damaged manifests: one line that names the file, or every line accounted for; nothing else, and soon."""

import json
import os
import pathlib
import random
import time

import numpy as np
import pytest
import soundfile

from mser_jax.corpora import builder, registry
from mser_jax.corpora.folder import manifest

MANIFESTS, BUILDS, SEED = 480, 60, 20261130
FILES = 24
VALUES = [
    None, True, 0, -1, 30.0, 300, 1e308, 10**400, float("nan"), float("inf"), "", " ", "nan", "None", "NA", "\0", "\n",
    "\u2028", "\ud83d", "\udce9", "é", "e\u0301", "x" * 3000, [], ["a"], {}, {"a": {"b": [1]}}, {"sad": 2, "angry": 1},
    "train", "test", "validation", "dev", "EN", "pt_BR", "xx", "zh-hans", "mujer", "20-29", "sad", "怒り", "../x", "/",
    "/dev/zero", ".", "..", "0.wav", "./0.wav", "sub\\1.wav", "sub/1.wav", "pipe", "sub", "gone.wav", "gs://b/a",
    "C:\\a", "http://a/b", "~/a.wav", "0.WAV", "round", "out/etc/hostname",
]  # fmt: skip
FIELDS = [*manifest.REQUIRED, "corpus", "speaker", "gender", "age", "transcript", "parallel_id", "split", "valence",
          "votes", "domain", "license", "id", "audio", "emotion_native", "sampling_rate", "duration_s",
          "é", ""]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Short tones, a named pipe, links, and a recording that is listed under two names."""
    folder = tmp_path_factory.mktemp("fuzz") / "f"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    for number in range(FILES):
        path = folder / ("sub" if number % 2 else "") / f"{number}.wav"
        soundfile.write(path, rng.uniform(-0.3, 0.3, 1800), 16_000)
    os.mkfifo(folder / "pipe")
    (folder / "round").symlink_to("round")
    (folder / "out").symlink_to("/")
    return folder


def listed(rng):
    """Rows that are in order."""
    return [
        {"path": f"{'sub/' * (n % 2)}{n}.wav", "language": rng.choice(["de", "pt-BR"]),
         "emotion": rng.choice(["sad", "Wut"]), "speaker": n % 5, "gender": "w", "age": 31, "transcript": "so ist é",
         "split": rng.choice(["train", "test"])}
        for n in range(FILES)
    ]  # fmt: skip


def of_other_values(rng):
    rows = listed(rng)
    for _ in range(rng.choice([1, 1, 2, 8])):
        rng.choice(rows)[rng.choice(FIELDS)] = rng.choice(VALUES)
    for _ in range(rng.choice([0, 0, 1])):
        del rng.choice(rows)["emotion"]
    if rng.random() < 0.2:
        rows += [rng.choice(rows)]
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.7) for row in rows]
    return rng.choice(["\n", "\r\n", "\r"]).join(lines).encode("utf-8", "surrogatepass")


def of_other_bytes(rng):
    data = bytearray("\n".join(json.dumps(row, ensure_ascii=False) for row in listed(rng)).encode())
    for _ in range(rng.choice([1, 1, 2, 5, 40])):
        at, size = rng.randrange(len(data)), rng.choice([1, 1, 4, 100])
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at : at + size] = b""
        elif kind == 2:
            data[at:at] = rng.randbytes(size)
        elif kind == 3:
            data[at:at] = data[at : at + size]
        else:
            data[at:at] = rng.choice(
                [b"\n", b"\r", b'"', b"{", b"}", b",", b"[", b"\\", b"\0", b"\xef\xbb\xbf", b"NaN", b"\\ud800"]
            )
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def of_other_encodings(rng):
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in listed(rng))
    name = rng.choice(["utf-16", "utf-32", "utf-16-le", "utf-8-sig", "latin-1", "cp037", "utf-7"])
    data = bytearray(text.encode(name))
    if rng.random() < 0.5:
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[rng.choice([0, 0, 0, 1]) :])


@pytest.mark.slow
def test_damaged_manifests(folder, tmp_path):
    print(f"seed {SEED}")
    read = built = refused = 0
    for number in range(MANIFESTS):
        rng = random.Random(SEED + number)
        data = rng.choice([of_other_values, of_other_values, of_other_bytes, of_other_bytes, of_other_encodings])(rng)
        (folder / "manifest.jsonl").write_bytes(data)
        begin = time.process_time()
        try:
            rows = manifest.read_manifest(folder)
        except ValueError as error:
            assert str(folder / "manifest.jsonl") in str(error), (number, error)
            assert (len(str(error)) < 2000 and str(error).isprintable()) or "A speech folder" in str(error), number
            refused += 1
            continue
        finally:
            assert time.process_time() - begin < 5, number
        read += 1
        assert len(rows) <= len(data.splitlines())
        assert len({row.fields["id"] for row in rows}) == len(rows)
        if built < BUILDS:
            built += build(folder, tmp_path / "data", len(rows), number)
    print(f"{read} read, of these {built} built; {refused} refused")
    assert read > 50 and refused > 100 and built > 20


def build(folder, data, expected, number):
    """Whether it was built; else it was refused, in one of the two ways there are."""
    try:
        corpus = registry.corpus_builder(f"speech_folder:{folder}", str(data))
        corpus.prepare()
    except (ValueError, builder.TooManySkippedError) as error:
        assert str(error), number
        return False
    report = json.loads(pathlib.Path(corpus.report_path).read_text())
    assert report["built"] + report["skipped"] + sum(report["left_out_on_purpose"].values()) == expected, number
    index = corpus.index().to_pylist()
    assert len(index) == report["built"] == len(corpus.data_source()), number
    for row in index:
        assert row["gender"] in ("", "female", "male", "other") and row["split"] in ("", "train", "validation", "test")
    return True
