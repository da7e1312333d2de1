"""Paths as people write them."""

import os
import pathlib

import pytest
from etils import epath

from mser_jax import storage


def test_paths_are_made_absolute(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, home, parents, URLs; a link keeps its name unless the path goes up from it."""
    home, work = tmp_path / "home", tmp_path / "work"
    (work / "inner").mkdir(parents=True)
    home.mkdir()
    (work / "link").symlink_to(home / "far" / "away")
    (home / "far" / "away").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    expected = {
        "runs/x": work / "runs/x",
        "./a//b/": work / "a/b",
        ".": work,
        "..": tmp_path,
        "../work/./inner/../runs": work / "runs",
        "~": home,
        "~/runs": home / "runs",
        "~nobody_of_that_name.wav": work / "~nobody_of_that_name.wav",
        "link/a": work / "link/a",
        "link/../b": home / "far/b",
        str(work / "absolute"): work / "absolute",
        "a b/ü": work / "a b/ü",
    }
    found = {given: storage.absolute(given) for given in expected}
    assert {given: os.fspath(path) for given, path in found.items()} == {k: str(v) for k, v in expected.items()}
    assert all(isinstance(path, epath.Path) for path in found.values())
    assert storage.absolute(pathlib.Path("runs")) == epath.Path(work / "runs")


@pytest.mark.parametrize("url", ["gs://bucket/runs/x", "gcs://bucket/a", "gs://bucket/a/../b"])
def test_urls_stay(url: str) -> None:
    assert storage.absolute(url) == epath.Path(url.replace("gcs", "gs"))


def test_other_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a folder or gs://"):
        storage.absolute("https://example.org/run")


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        storage.absolute("")
