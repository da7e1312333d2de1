"""gs:// through gcsfs and tensorstore: retries, silence, refusals that name the permission, files made once."""

import threading

import aiohttp
import pytest
import tensorstore
from fake_gcs import BUCKET, Fault

from mser_jax import claims, storage

REAL_REFUSAL = "run@project.iam.gserviceaccount.com does not have storage.objects.create access to the object."


def array(path):
    return {"driver": "zarr", "kvstore": str(path) + "/", "metadata": {"shape": [4], "dtype": "<f4"}}


def test_503s_are_sent_again_by_both_clients(gcs, bucket):
    gcs.faults += [Fault("POST", 503, times=2), Fault("GET.*alt=media", 503, times=1)]
    (bucket / "text").write_text("heard")
    store = tensorstore.open(array(bucket / "array"), create=True).result()
    store.write([1, 2, 3, 4]).result()
    assert (bucket / "text").read_text() == "heard" and store.read().result().tolist() == [1, 2, 3, 4]
    assert all(fault.times == 0 for fault in gcs.faults), "every fault was met"


def test_a_silent_request_is_given_up_and_sent_again(gcs, bucket, monkeypatch):
    assert storage.file_system(bucket).requests_timeout.sock_read == storage.SILENCE_SECONDS
    (bucket / "text").write_text("heard")
    monkeypatch.setattr(storage.file_system(bucket), "requests_timeout", aiohttp.ClientTimeout(sock_read=0.3))
    gcs.faults.append(Fault("alt=media", delay=5, times=1))
    before = len(gcs.requests)
    assert (bucket / "text").read_text() == "heard"
    assert sum("alt=media" in line for line in gcs.requests[before:]) == 2


def test_no_listing_is_older_than_the_bucket(gcs, bucket):
    (bucket / "one").write_text("1")
    assert [path.name for path in bucket.iterdir()] == ["one"]
    tensorstore.open(array(bucket / "two"), create=True).result()  # behind the back of gcsfs
    assert sorted(path.name for path in bucket.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("pattern", "permission"),
    [
        ("POST .*upload", "storage.objects.create"),
        ("GET .*alt=media", "storage.objects.get"),
        (r"GET .*/o\?", "storage.objects.list"),
        ("DELETE", "storage.objects.delete"),
    ],
)
def test_check_names_the_permission_that_is_missing_and_grants_it(gcs, bucket, pattern, permission):
    storage.check(bucket)
    gcs.faults.append(Fault(pattern, 403))
    with pytest.raises(PermissionError) as raised:
        storage.check(bucket)
    text = str(raised.value)
    assert f"lacks the permission {permission} on bucket {BUCKET}" in text
    assert (
        f"add-iam-policy-binding gs://{BUCKET} --member=serviceAccount:ACCOUNT --role=roles/storage.objectUser" in text
    )


def test_what_google_says_stands_above_what_the_request_looks_like(gcs, bucket):
    gcs.faults.append(Fault("POST", 403, message=REAL_REFUSAL))
    for attempt in (
        lambda: (bucket / "text").write_text("x"),
        lambda: tensorstore.open(array(bucket / "array"), create=True).result(),
    ):
        with pytest.raises((OSError, ValueError)) as raised:
            attempt()
        try:
            raise RuntimeError("saving failed") from raised.value
        except RuntimeError as error:
            text = storage.explain(error)
        assert f"refuses gs://{BUCKET}/{bucket.name}/" in text
        assert "run@project.iam.gserviceaccount.com lacks the permission storage.objects.create" in text
        assert "--member=serviceAccount:run@project.iam.gserviceaccount.com" in text


def test_other_errors_are_not_explained():
    for error in (FileNotFoundError("gs://b/x"), ValueError("403 utterances"), OSError("disk full: a/b/c")):
        assert storage.explain(error) == ""


@pytest.fixture(params=["local", "gs"])
def place(request, tmp_path):
    """A folder on both kinds of storage."""
    return storage.epath.Path(tmp_path) if request.param == "local" else request.getfixturevalue("bucket") / "claims"


def test_of_many_who_create_a_file_one_gets_it(place):
    barrier, won = threading.Barrier(8), []

    def attempt(number):
        barrier.wait()
        if storage.create(place / "file", f"I am {number}"):
            won.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(won) == 1 and (place / "file").read_text() == f"I am {won[0]}"


def test_a_claim_is_one_owners_until_it_is_given_back_or_silent(place):
    first = claims.take(place)
    assert claims.take(place) is None and claims.who(place).name == first.owner
    # Silent for longer than allowed: of those who see it one takes over, and the old owner sees that.
    second = claims.take(place, stale_after=0)
    assert second.number == 1 and first.lost and not second.lost
    assert claims.take(place) is None
    with claims.held(second, every=0.05) as lost:
        assert claims.take(place) is None and not lost.is_set()
    third = claims.take(place)
    assert third.number == 2, "what was given back is free at once"
    third.beat(forever=True)
    assert claims.take(place, stale_after=0) is None


def test_who_sleeps_too_long_is_told_that_the_claim_is_lost(place):
    claim = claims.take(place)
    with claims.held(claim, every=0.05) as lost:
        storage.create(place / "claim-00001", "somebody else")
        assert lost.wait(10)
    assert (place / "claim-00001").read_text() == "somebody else"


def test_a_create_whose_answer_was_lost_is_known_as_done(gcs, bucket, monkeypatch):
    (bucket / "file").write_text("mine, and only mine")  # done; the client sends it again and is refused
    assert storage.create(bucket / "file", "mine, and only mine")
    assert not storage.create(bucket / "file", "another's")
