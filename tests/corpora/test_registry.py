import json
import subprocess
import sys

import pytest
from toy_corpus import ToneCorpus, item

from mser_jax.corpora import builder, registry


def test_parse_specs():
    assert registry.parse_specs("m5ser_mini, m5ser_mini:seed=1@2.5,speech_folder:/x@.5") == [
        ("m5ser_mini", 1.0),
        ("m5ser_mini:seed=1", 2.5),
        ("speech_folder:/x", 0.5),
    ]
    assert registry.parse_specs("speech_folder:/a@b/c") == [("speech_folder:/a@b/c", 1.0)]
    assert registry.parse_specs("speech_folder:/a@b/c@3") == [("speech_folder:/a@b/c", 3.0)]


def test_parse_specs_of_folders():
    for folder in ("/a b/ c", "/данные/資料", "/a@b", "/x@y@z", "~/x", "x?outside=/y@z", "gs://b/a@c", "/a:b"):
        assert registry.parse_specs(f" speech_folder:{folder} ") == [(f"speech_folder:{folder}", 1.0)]
        assert registry.parse_specs(f"speech_folder:{folder} @ 2") == [(f"speech_folder:{folder}", 2.0)]
    assert registry.parse_specs("speech_folder:/run@2@1") == [("speech_folder:/run@2", 1.0)]
    assert len(registry.parse_specs("speech_folder:/a/x,speech_folder:/b/x,m5ser:/a/x")) == 3


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ("", "expected at least one"),
        ("speech_folder:/a,b/c", r"unknown corpus 'b/c'.*A comma ends a spec.*'speech_folder:/a'"),
        ("speech_folder:/a,speech_folder:/a/", "given twice"),
        ("speech_folder:/a/../b,speech_folder:/b", "given twice"),
        ("m5ser:~/x,m5ser:~//x@3", "given twice"),
        ("m5ser_mini@inf", "must be a positive number"),
        ("m5ser_mini@1_0", "weight '1_0' is not a number"),
        ("m5ser_mini@", "weight '' is not a number"),
        ("speech_folder:/x@-0", "must be a positive number"),
        (
            "m5ser-mini",
            r"unknown corpus 'm5ser-mini'. Did you mean 'm5ser_mini'\? .*mser_jax.corpora.*speech_folder:DIR",
        ),
        ("m5ser_mini,iemocamp", "unknown corpus 'iemocamp'"),
        ("m5ser_mini@two", "weight 'two' is not a number"),
        ("m5ser_mini@0", "must be a positive number"),
        ("m5ser_mini@-1", "must be a positive number"),
        ("m5ser_mini@nan", "must be a positive number"),
        ("m5ser_mini,m5ser_mini@2", "given twice"),
    ],
)
def test_specs_that_cannot_be(specs, message):
    with pytest.raises(ValueError, match=message):
        registry.parse_specs(specs)


def test_every_entry_leads_to_a_builder_of_that_name():
    for name in registry.BUILDERS:
        found = registry.corpus_class(name)
        assert issubclass(found, builder.CorpusBuilder)
        assert found.name == name


def test_open_corpus(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.BUILDERS, "tone_corpus", "toy_corpus:ToneCorpus")
    monkeypatch.setattr(ToneCorpus, "items", [item(number) for number in range(4)])
    corpus = registry.open_corpus("tone_corpus", str(tmp_path))
    assert (corpus.name, corpus.spec, len(corpus.source)) == ("tone_corpus", "tone_corpus", 4)
    assert corpus.index["id"].to_pylist() == [corpus.source[row]["id"].decode() for row in range(4)]
    assert corpus.folder == str(tmp_path / "tone_corpus" / "1.0.0")
    with pytest.raises(ValueError, match="'tone_corpus' takes no argument, got 'x'"):
        registry.open_corpus("tone_corpus:x", str(tmp_path))
    table = builder.pa.parquet.read_table(tmp_path / "tone_corpus" / "1.0.0" / "index.parquet")
    builder.pa.parquet.write_table(table.slice(1), tmp_path / "tone_corpus" / "1.0.0" / "index.parquet")
    with pytest.raises(RuntimeError, match="4 records but 3 rows"):
        registry.open_corpus("tone_corpus", str(tmp_path))


def test_prepare_corpus_tool(tmp_path):
    root = builder.__file__.rpartition("/mser_jax/")[0]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "manifest.jsonl").write_text(json.dumps({"path": "a.wav", "language": "de", "emotion": "calm"}))

    def tool():
        command = [sys.executable, f"{root}/tools/prepare_corpus.py", f"speech_folder:{folder}"]
        return subprocess.run(
            [*command, f"--data_dir={tmp_path / 'data'}"],
            env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    failed = tool()
    assert failed.returncode == 1
    assert "missing: 1" in failed.stderr
    assert "Traceback" not in failed.stderr
    from soundfile import write
    from toy_corpus import tone

    write(folder / "a.wav", tone(), 16_000)
    done = tool()
    assert done.returncode == 0, done.stderr
    assert "calm→neutral" in done.stdout
    assert "1 utterances of 0 speakers" in done.stdout
    assert "found in" in tool().stdout
