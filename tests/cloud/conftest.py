"""A bucket on loopback, one a test process: clients keep the address that they saw first."""

import logging
import os
import pathlib
import re
import sys

import fake_gcs
import pytest
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "launch"))  # `sweeps`, which both test


@pytest.fixture(scope="session")
def _server():
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with fake_gcs.FakeGcs() as gcs:
        os.environ.update(gcs.environ)
        yield gcs


@pytest.fixture
def gcs(_server):
    """The server, without faults."""
    _server.faults.clear()
    yield _server
    _server.faults.clear()


@pytest.fixture
def bucket(gcs, request):
    """A folder of this test's own on gs://."""
    return epath.Path(f"gs://{fake_gcs.BUCKET}/{re.sub(r'[^a-z0-9]+', '_', request.node.name)}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty $MSER_CACHE_DIR."""
    monkeypatch.setenv("MSER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
