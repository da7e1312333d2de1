"""tools/doctor.py: each check finds what is wrong, and says what to do."""

import importlib.metadata
import importlib.util
import pathlib
import re

import jax
import pytest

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "doctor.py"


@pytest.fixture(scope="module")
def doctor():
    spec = importlib.util.spec_from_file_location("doctor", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_versions(doctor, monkeypatch):
    assert {state for state, _ in doctor.versions()} == {"OK"}
    asked = ["jax>=99", "no_such_package_1", "pytest<1; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    state, text = list(doctor.versions())[-1]
    assert state == "FAIL"
    assert f"jax {jax.__version__}, >=99 is needed" in text and "no_such_package_1 is missing" in text
    assert "Do: pip install" in text and "pytest" not in text


def test_devices(doctor, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    (first, found), (second, advice) = doctor.devices()
    assert (first, second) == ("OK", "WARN") and "8 × cpu" in found and "unset it" in advice
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(doctor.distributed, "has_tpu", lambda: True)
    assert list(doctor.devices())[1][0] == "FAIL"


def test_storage(doctor, tmp_path, monkeypatch):
    found = list(doctor.place("workdir", str(tmp_path / "a" / "b")))
    assert found[0][0] == "OK" and "written, read, listed, deleted" in found[0][1] and "GiB are free" in found[1][1]
    assert not (tmp_path / "a").exists(), "nothing is left behind"
    (tmp_path / "file").write_text("")
    ((state, text),) = doctor.place("workdir", str(tmp_path / "file" / "run"))
    assert state == "FAIL" and "NotADirectoryError" in text and "Do: check owner" in text

    def refuse(folder):
        raise PermissionError(f"{folder}: read only")

    monkeypatch.setattr(doctor.storage, "check", refuse)
    assert [state for state, _ in doctor.place("data.data_dir", str(tmp_path))] == ["WARN"], "data are only read"
    assert [state for state, _ in doctor.place("workdir", str(tmp_path))] == ["FAIL"]


def test_all_reduce(doctor, monkeypatch):
    ((state, text),) = doctor.all_reduce(num_bytes=2**12, repeats=2)
    assert state == "OK" and re.search(r"over 8 device\(s\): [\d.]+ ms, [\d.]+ GB/s", text)
    monkeypatch.setattr(jax.lax, "psum", lambda x, axis: x)
    ((state, text),) = doctor.all_reduce(num_bytes=2**12)
    assert state == "FAIL" and "wrong sum" in text


def test_data(doctor, tiny, capsys):
    found = list(doctor.reading(tiny(), 0.1))
    assert [state for state, _ in found] == ["OK", "OK"]
    assert "144 utterances" in found[0][1] and "waveform int16[16, 48000]" in found[0][1]
    assert re.search(r"read at \d+ utterances/s by 1 process", found[1][1])
    assert not doctor.check("data", lambda: doctor.reading(tiny(**{"data.corpora": "m5ser_mni"}), 0.1))
    assert re.match(r"FAIL  data .*Did you mean 'm5ser_mini'", capsys.readouterr().out)


def test_a_check_that_breaks_is_a_fail(doctor, capsys):
    def broken():
        yield "OK", "so far"
        raise RuntimeError("no more")

    assert not doctor.check("x", broken)
    assert capsys.readouterr().out.splitlines()[1].startswith("FAIL  x           RuntimeError: no more")


def test_paths(doctor, tiny):
    config = tiny(**{"data.feature_cache": "gs://bucket/features"})
    found = dict(doctor.paths_of(config, "gs://bucket/run"))
    assert found["workdir"] == "gs://bucket/run" and found["data.feature_cache"] == "gs://bucket/features"
    assert found["data.data_dir"] == config.data.data_dir
