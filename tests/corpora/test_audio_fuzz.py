"""Mutated audio files of every format: a plausible recording or BadAudio; nothing else, soon, in little memory."""

import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import sound_files as files

SEED = 20_261
BY_LIBSNDFILE, BY_FFMPEG = 30, 3  # mutations of each format


def mutated(encoded: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """One to three of: flipped bytes, zeros, a cut, a piece twice, out or of another file, numbers of a header."""
    data = bytearray(encoded)
    for _ in range(rng.integers(1, 4)):
        size = max(2, len(data))
        at = int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(min(size, 128)))
        length = int(min(size, 2 ** rng.uniform(0, 13)))
        kind = rng.integers(7)
        if kind == 0:
            for place in rng.integers(0, size, int(rng.integers(1, 9))):
                data[place : place + 1] = bytes([int(rng.integers(256))])
        elif kind == 1:
            data[at : at + length] = bytes(min(length, max(0, size - at)))
        elif kind == 2:
            del data[max(1, at) :]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            other = others[int(rng.integers(len(others)))]
            start = int(rng.integers(max(1, len(other))))
            data[at : at + length] = other[start : start + length]
        elif kind == 5:
            width = int(rng.choice([1, 2, 4, 8]))
            values = [
                0,
                1,
                2**7,
                2 ** (8 * width) - 1,
                2 ** (8 * width - 1),
                int(rng.integers(2**31)) % 2 ** (8 * width),
            ]
            at = int(rng.integers(min(size, 96))) // 2 * 2
            order = "little" if rng.random() < 0.5 else "big"
            data[at : at + width] = int(rng.choice(np.array(values, object))).to_bytes(width, order)
        else:
            del data[at : at + length]
    return bytes(data)


PROGRAM = """
import collections, faulthandler, os, pathlib, pickle, resource, sys, time
import numpy as np
from mser_jax.corpora import audio_check
faulthandler.enable()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 3 * 2**30,) * 2)
counted, slowest = collections.Counter(), (0, "")
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    faulthandler.dump_traceback_later(60, exit=True)
    begin = time.process_time()
    try:
        waveform, info = audio_check.load(path)
    except audio_check.BadAudio as bad:
        counted[str(bad.reason)] += 1
        if audio_check._UNFORESEEN in bad.detail:
            print("FAILED", path.name, bad)
            counted["failed"] += 1
        assert bad.detail and len(bad.detail) < 400 and bad.detail.isprintable(), (path.name, bad.detail)
    except BaseException as error:
        print("FAILED", path.name, type(error).__name__, error)
        counted["failed"] += 2
    else:
        counted["ok"] += 1
        assert waveform.dtype == np.int16 and 1_600 <= len(waveform) <= 4_000_000, (path.name, info)
        assert abs(len(waveform) / 16_000 - info.duration_s) < 0.01 and 0 < info.gain <= 1, (path.name, info)
    slowest = max(slowest, (time.process_time() - begin, path.name))
assert slowest[0] < 10, slowest
print(dict(counted), slowest)
print("TOTAL", counted.total() - counted["failed"], counted["failed"], counted["ok"])
"""


@pytest.mark.slow
def test_a_thousand_mutated_files(tmp_path):
    """Names tell the format and the number, from which, with SEED, the mutation follows."""
    (tmp_path / "made").mkdir()
    (tmp_path / "mutated").mkdir()
    whole = {name: files.written(*how) for name, how in files.BY_LIBSNDFILE.items()}
    by_ffmpeg = files.by_ffmpeg(tmp_path / "made")
    whole |= {name: by_ffmpeg[name] for name in (*files.BY_FFMPEG, "video.mp4", "two.mkv", "mute.mp4")}
    whole |= {"id3 flac": files.id3(900) + whole["flac pcm_16"], "joined ogg": whole["ogg vorbis"] * 2}
    others, total = list(whole.values()), 0
    for place, (name, encoded) in enumerate(whole.items()):
        for number in range(BY_FFMPEG if name in by_ffmpeg and not name.startswith("pipe") else BY_LIBSNDFILE):
            rng = np.random.default_rng([SEED, place, number])
            (tmp_path / "mutated" / f"{name} {number}").write_bytes(mutated(encoded, others, rng))
            total += 1
    print(f"{total} files, seed {SEED}")
    assert total >= 1_000
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), tmp_path / "mutated"], capture_output=True, text=True,
        timeout=600, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    print(done.stdout[-3000:], done.stderr[-300:])
    assert done.returncode == 0, f"seed {SEED}"
    answered, failed, good = map(int, done.stdout.splitlines()[-1].split()[1:])
    assert (answered, failed) == (total, 0)
    assert "Traceback" not in done.stderr
    assert 0.1 * total < good < 0.9 * total
