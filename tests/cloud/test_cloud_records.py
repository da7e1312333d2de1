"""Corpora on gs://: built, copied to the host once and whole, read in place when asked, waited for with an estimate."""

import os
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from fake_gcs import Fault

from mser_jax import claims
from mser_jax.corpora import build_lock, shard_cache
from mser_jax.data import feature_cache
from mser_jax.data.sources import Source

SHARDS, EACH = 3, 5


@pytest.fixture
def shards(bucket, tmp_path):
    """File instructions of three shards on gs://, with records b'<shard>.<record>'."""
    found = []
    for shard in range(SHARDS):
        name = f"toy.array_record-{shard:05d}-of-{SHARDS:05d}"
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1,uncompressed")
        for record in range(EACH):
            writer.write(f"{shard}.{record}".encode())
        writer.close()
        (bucket / name).write_bytes((tmp_path / name).read_bytes())
        found.append(shard_cache.Shard(str(bucket / name), 0, EACH, EACH))
    return found


def copies(gcs, since=0):
    return [line for line in gcs.requests[since:] if "alt=media" in line]


def test_only_shards_with_wanted_records_are_copied_and_only_once(gcs, shards, cache):
    remote = shard_cache.RemoteRecords(shards)
    assert len(remote) == SHARDS * EACH
    before = len(gcs.requests)
    records = remote.local(np.array([0, 3, 12]))
    assert [records[row] for row in (0, 3, 12)] == [b"0.0", b"0.3", b"2.2"]
    assert len(copies(gcs, before)) == 2, "nobody wanted a record of the second shard"
    everything = remote.local(np.arange(len(remote)))
    assert [everything[row] for row in range(15)] == [f"{s}.{r}".encode() for s in range(SHARDS) for r in range(EACH)]
    assert len(copies(gcs, before)) == 3
    assert remote[7] == b"1.2" and len(copies(gcs, before)) == 3
    assert not list(cache.rglob("*.part")), "nothing half-written lies about"


def test_read_in_place_when_asked_with_what_it_costs(gcs, shards, monkeypatch, caplog):
    monkeypatch.setenv("MSER_CACHE_DIR", "off")
    before = len(gcs.requests)
    records = shard_cache.RemoteRecords(shards).local(np.arange(15))
    assert [records[row] for row in (14, 0)] == [b"2.4", b"0.0"]
    assert len(copies(gcs, before)) >= 4, "a request for each record, and one to open each file"
    assert "a request a record" in caplog.text


def test_a_damaged_copy_is_made_again_and_never_used(gcs, shards, cache, caplog):
    size = len((shard_cache.epath.Path(shards[0].filename)).read_bytes())
    gcs.faults.append(Fault("00000-of-.*alt=media", 200, times=1, content=b"x" * size))
    assert shard_cache.RemoteRecords(shards)[0] == b"0.0"
    assert "copying again" in caplog.text
    gcs.faults[0] = Fault("00001-of-.*alt=media", 200, content=b"x" * size)
    with pytest.raises(OSError, match=r"00001-of-00003: 3 copies to .* came out wrong"):
        shard_cache.RemoteRecords(shards)[EACH]


def test_a_shard_that_was_built_again_is_copied_again(gcs, shards, cache, bucket):
    assert shard_cache.RemoteRecords(shards)[0] == b"0.0"
    name = shards[0].filename
    (shard_cache.epath.Path(name)).write_bytes((shard_cache.epath.Path(shards[1].filename)).read_bytes())
    assert shard_cache.RemoteRecords(shards)[0] == b"1.0", "same name and size, other content"


def test_no_room_is_said_before_anything_is_copied(gcs, shards, cache, monkeypatch):
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda path: type("usage", (), {"free": 100}))
    before = len(gcs.requests)
    with pytest.raises(OSError, match="Set MSER_CACHE_DIR to a larger disk"):
        shard_cache.RemoteRecords(shards)[0]
    assert not copies(gcs, before)


def test_processes_of_a_host_share_the_copies_and_see_how_long_it_takes(gcs, shards, cache):
    gcs.faults += [Fault("alt=media", 503, times=1), Fault("alt=media", delay=1.0)]
    code = f"""
from mser_jax.corpora import shard_cache
paths = shard_cache.copy({[shard.filename for shard in shards]!r})
print(sum(path.stat().st_size for path in paths))
"""
    environ = {**os.environ, **gcs.environ, "MSER_CACHE_DIR": str(cache)}
    before = len(gcs.requests)
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=-1, stderr=-1, text=True) for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(copies(gcs, before)) == 1 + SHARDS, "each file once, and one that was refused"
    assert f"copying {SHARDS} record files to {cache}" in answers[0][1] and "100%" in answers[0][1]


def test_features_of_a_corpus_on_gs_lie_beside_this_hosts_copies(cache):
    source = Source("toy", "toy", 1.0, "gs://bucket/data/toy", None)
    folder = feature_cache.folder_of(source, "auto", {"weights": "a"})
    assert str(folder).startswith(f"{cache}/bucket/data/toy/features/")
    with pytest.raises(ValueError, match="array_record, which writes features, cannot write to gs://"):
        feature_cache.folder_of(source, "gs://bucket/features", {"weights": "a"})


def test_the_build_lock_of_a_bucket_waits_and_outlives_a_dead_builder(gcs, bucket, monkeypatch, capsys):
    folder = bucket / "1.0.0"
    dead = claims.take(bucket / ".1.0.0.lock")
    clock = claims.time.time
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        monkeypatch.setattr(claims.time, "time", lambda: clock() + claims.STALE_SECONDS)

    monkeypatch.setattr(build_lock.time, "sleep", sleep)
    with build_lock.build_lock(folder) as check:
        assert dead.lost
        check()
        claims.take(bucket / ".1.0.0.lock", force=True)
        with pytest.raises(RuntimeError, match=r"another may be building there\. Nothing was replaced"):
            check()
    assert waits == [build_lock.POLL_SECONDS]
    assert "another process is building there; waiting" in capsys.readouterr().err
