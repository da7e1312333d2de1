"""A part of a corpus is refused or marked; another source is built or refused; EmoBox's unlisted utterances."""

import json
import os
import pathlib
import runpy
import shutil
import sys

import miniature
import pytest

from mser_jax.corpora import builder as builder_lib
from mser_jax.corpora import completeness, folds, listing, registry
from mser_jax.corpora.builder import RawUtterance

ROOT = pathlib.Path(__file__).parents[3]
# 4 × 120 short utterances: a whole SAVEE.
SAVEE = [
    f"{speaker}/{emotion}{number:02}.wav"
    for speaker in ("DC", "JE", "JK", "KL")
    for emotion in ("a", "d", "f", "h", "n", "sa", "su")
    for number in range(1, 31 if emotion == "n" else 16)
]


@pytest.fixture
def tool(capsys, monkeypatch):
    """prepare_corpus.py in this process: arguments -> (exit code, stdout, lines of stderr but progress)."""

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["prepare_corpus.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(ROOT / "tools" / "prepare_corpus.py"), run_name="__main__")
        out, err = capsys.readouterr()
        return (
            done.value.code,
            out,
            [line for line in err.replace("\r", "\n").splitlines() if line[:8] not in ("", "building")],
        )

    return run


def prepare(source, data, spec="savee", **more):
    builder = registry.corpus_builder(spec, str(data), str(source), **more)
    builder.prepare()
    return builder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return miniature.write(tmp_path_factory.mktemp("whole"), SAVEE, seconds=0.12)


def test_half_a_corpus_and_then_all_of_it(whole, tmp_path, caplog, tool):
    half, data = tmp_path / "half", tmp_path / "data"
    for speaker in ("DC", "JK"):
        shutil.copytree(whole / speaker, half / speaker)
    code, out, errors = tool("savee", "--source", half, "--data_dir", data)
    assert code == 1 and not out and len(errors) == 1, "one line"
    assert "240 of 480 utterances (50 %), none of the speakers JE, KL" in errors[0]
    assert str(half) in errors[0] and "--allow_partial" in errors[0] and "kahlan.eps.surrey.ac.uk" in errors[0]
    assert not list((data / "savee").glob("*/index.parquet")) and not listing.one("savee", str(data))["prepared"]

    code, out, errors = tool("savee", "--source", half, "--data_dir", data, "--allow_partial")
    assert code == 0 and not errors and "built in" in out and "PARTIAL: 240 of 480 utterances" in out
    assert "partial" in listing.table([listing.one("savee", str(data))], str(data)).splitlines()[2]
    report = prepare(half, data, allow_partial=True).report_path
    first = report.read_text()
    with pytest.raises(completeness.PartialCorpusError, match="240 of 480"):
        prepare(half, data)
    registry.open_corpus("savee", str(data))
    assert "is a part of the corpus: 240 of 480" in caplog.text

    (tmp_path / "moved").mkdir()
    moved = half.rename(tmp_path / "moved" / "half")  # the same recordings
    prepare(moved, data, allow_partial=True)
    assert report.read_text() == first, "found"
    builder = registry.corpus_builder("savee", str(data), str(whole))
    assert builder.is_complete() and builder.outdated(), "all of it takes the place of a part"
    builder.prepare()
    assert json.loads(report.read_text())["partial"] == "" and len(builder.index()) == 480
    assert len(registry.open_corpus("savee", str(data)).source) == 480
    assert [path.name for path in sorted((data / "savee").iterdir())] == [".1.0.0.lock", "1.0.0"]

    # And then another source is not taken for that one.
    kept = report.read_text()
    with pytest.raises(
        ValueError, match=rf"was built from {whole} \(480 files, .*and not from {moved} .*delete {data}"
    ):
        prepare(moved, data)
    code, _, errors = tool("savee", "--source", moved, "--data_dir", data, "--allow_partial")
    assert code == 1 and len(errors) == 1 and report.read_text() == kept
    code, out, _ = tool("savee", "--source", os.path.relpath(whole), "--data_dir", data)
    assert code == 0 and "found in" in out
    (data / "savee" / "unpacked.abcd_123").mkdir()  # of a process that was killed
    prepare(whole, data)
    assert [path.name for path in sorted((data / "savee").iterdir())] == [".1.0.0.lock", "1.0.0"]
    missing = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match="no such folder"):
        prepare(missing, data)


def test_a_source_that_was_replaced_or_deleted(whole, tmp_path):
    source, data = tmp_path / "source.zip", tmp_path / "data"
    shutil.make_archive(str(tmp_path / "source"), "zip", whole)
    prepare(source, data)
    source.rename(tmp_path / "kept.zip")
    prepare(source, data)  # deleted, to save room
    prepare(tmp_path / "kept.zip", data)
    (whole / "DC").rename(tmp_path / "DC")
    try:
        shutil.make_archive(str(tmp_path / "source"), "zip", whole)
    finally:
        (tmp_path / "DC").rename(whole / "DC")
    with pytest.raises(ValueError, match=r"was built from .*source\.zip"):
        prepare(source, data)


def test_a_refused_build_leaves_what_was_there(whole, tmp_path):
    one = miniature.write(tmp_path / "one", ["DC/a01.wav"])
    two = miniature.write(tmp_path / "two", ["DC/a01.wav", "JE/a01.wav"])
    prepare(one, tmp_path / "data", allow_partial=True)
    with pytest.raises(completeness.PartialCorpusError, match=r"2 of 480 utterances \(0.417 %\)"):
        prepare(two, tmp_path / "data")
    assert len(registry.open_corpus("savee", str(tmp_path / "data")).source) == 1


@pytest.mark.parametrize(
    ("found", "lacks"),
    [
        ((96, 10), ""),
        ((95, 10), ""),
        ((94, 10), "94 of 100 utterances (94 %)"),
        ((99, 9), "99 of 100 utterances (99 %), none of the speaker s9"),
        ((1, 1), "1 of 100 utterances (1 %), none of the speakers s1, s2, s3, s4, s5, s6, s7, s8, s9"),
    ],
)
def test_what_counts_as_whole(found, lacks):
    number, speakers = found
    state = completeness.Found()
    for n in range(number):
        state.add(
            RawUtterance(id="", audio=b"", corpus="", speaker=f"s{n % speakers}", language="de", emotion_native="angry")
        )
    named = [f"s{n}" for n in range(10)]
    assert completeness.Whole(100, 10, named, ("de",), ("angry",)).lacking(state) == lacks
    assert completeness.Whole(0, 10).lacking(state) == "", "not published"
    state.absent.append("no b.parquet")
    assert completeness.Whole(0).lacking(state).endswith("utterances, no b.parquet")


def test_every_corpus_that_is_published_has_a_measure(tmp_path):
    for name in listing.public.NAMES:
        builder = registry.corpus_builder("emobox:savee" if name == "emobox" else name, str(tmp_path))
        whole = builder.whole()
        assert whole.utterances or name in ("cameo", "emobox", "msp_podcast"), name
        assert not whole.speakers or len(set(whole.speakers)) in (builder.FACTS.speakers, 3 if name == "mesd" else 0)


def test_recordings_that_a_table_names_and_nobody_has(tmp_path):
    """nEMO: the table names forty, the files are half of them."""
    rows = ["file_id\temotion\traw_text\tspeaker_id\tgender\tage"]
    rows += [f"EB0_anger_{n}.wav\tanger\tTak.\tEB0\tfemale\t30" for n in range(40)]
    source = miniature.write(tmp_path / "source", [f"samples/EB0_anger_{n}.wav" for n in range(0, 40, 2)], seconds=0.12)
    (source / "data.tsv").write_text("\n".join(rows))
    with pytest.raises(completeness.PartialCorpusError, match=r"recordings are missing, the first EB0_anger_1\.wav"):
        prepare(source, tmp_path / "data", "nemo")
    report = json.loads(prepare(source, tmp_path / "data", "nemo", allow_partial=True).report_path.read_text())
    assert report["built"] == 20 and report["skipped_by_reason"] == {"missing": 20}
    assert "20 recordings are missing" in report["partial"]


def test_of_recordings_that_are_all_there_and_broken_the_fault_is_told(whole, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    for name in SAVEE[::3]:
        (source / name).write_bytes(b"")
    for more in ({}, {"allow_partial": True}):
        with pytest.raises(builder_lib.TooManySkippedError, match=r"items are unusable, allowed 5%:\n  empty: "):
            prepare(source, tmp_path / "data", **more)


def test_a_build_of_a_time_when_no_source_was_kept(whole, tmp_path):
    """Of which all was built is found; a part is built again; old lists of EmoBox do not tell what they lack."""
    report = prepare(whole, tmp_path).report_path
    old = {key: value for key, value in json.loads(report.read_text()).items() if key not in ("source", "partial")}
    report.write_text(json.dumps(old))
    assert not registry.corpus_builder("savee", str(tmp_path), str(whole)).outdated()
    report.write_text(json.dumps(old | {"built": 455}))
    assert registry.corpus_builder("savee", str(tmp_path), str(whole)).outdated()
    report.write_text(json.dumps(old | {"emobox": {"listed": 400, "found": 400}}))
    with pytest.raises(ValueError, match="Delete it and build it again"):
        registry.open_corpus("savee:emobox-1", str(tmp_path))
    registry.open_corpus("savee:speaker-1", str(tmp_path))


def test_an_archive_that_python_does_not_read_is_named(tmp_path):
    source = miniature.write(tmp_path / "source", ["DC/a01.wav"])
    (source / "JE.rar").write_bytes(b"Rar!")
    with pytest.raises(completeness.PartialCorpusError, match=r"Python does not read JE\.rar: unpack it yourself"):
        prepare(source, tmp_path / "data")
    report = json.loads(prepare(source, tmp_path / "data", allow_partial=True).report_path.read_text())
    assert report["left_out_on_purpose"] == {"archive that Python does not read": 1}


def test_nothing_of_a_corpus(tmp_path):
    (tmp_path / "source").mkdir()
    for more, message in (({}, "nothing of it is in .*: 0 of 480"), ({"allow_partial": True}, "no utterance at all")):
        with pytest.raises((completeness.PartialCorpusError, ValueError), match=message):
            prepare(tmp_path / "source", tmp_path / "data", **more)


def test_a_corpus_that_is_built_into_its_own_source(tmp_path):
    """--source=DATA/savee --data_dir=DATA, with an archive in it: neither endless nor another source afterwards."""
    source = miniature.write(tmp_path / "savee", ["DC/a01.wav", "DC/a02.wav"])
    shutil.make_archive(str(source / "JE"), "zip", miniature.write(tmp_path / "JE", ["a01.wav"]))
    assert len(prepare(source, tmp_path, allow_partial=True).index()) == 3
    prepare(source, tmp_path, allow_partial=True)
    assert not registry.corpus_builder("savee", str(tmp_path), str(source), allow_partial=True).outdated()


def test_names_that_are_not_utf8_do_not_end_a_build(tmp_path):
    source = miniature.write(tmp_path / "source", SAVEE[:60], seconds=0.12)
    shutil.copy(source / SAVEE[0], os.fsencode(source / "DC") + b"/m\xe9.wav")
    report = json.loads(prepare(source, tmp_path / "data", allow_partial=True).report_path.read_text())
    assert [item["path"] for item in report["skipped_items"]] == ["DC/m\\xe9.wav"]


@pytest.mark.parametrize("name", ["dis-f1-b9.wav", "gio-m2-d7.wav"])
def test_a_code_that_the_grammar_has_and_the_corpus_has_not(tmp_path, name):
    good = [
        f"{e}-{s}-b1.wav" for e in ("dis", "gio", "neu", "rab", "sor") for s in ("f1", "f2", "f3", "m1", "m2", "m3")
    ]
    source = miniature.write(tmp_path / "source", [*good, name], seconds=0.12)
    report = json.loads(prepare(source, tmp_path / "data", "emovo", allow_partial=True).report_path.read_text())
    code = name.rpartition("-")[2][:2]
    assert report["skipped_items"] == [{"path": name, "reason": "code", "detail": f"unknown code '{code}'"}]


def test_unlisted_utterances_of_tested_speakers_do_not_train():
    columns = {
        "speaker": ["c:a", "c:a", "c:b", "c:b", "c:a", ""],
        "split": [""] * 6,
        "emobox_fold": [1, folds.UNLISTED, 2, 2, 0, folds.UNLISTED],
    }
    assert folds.parse("emobox-1").split(columns).tolist() == [
        "test",
        "left out",
        "train",
        "train",
        "train",
        "left out",
    ]
    assert folds.parse("emobox-2").split(columns).tolist()[1] == "left out"
    assert folds.parse("speaker-1of2").split(columns).tolist().count("left out") == 0
    by_list = [row for row in folds.summary(columns) if row["scheme"] == "emobox"]
    assert [(row["fold"], row["train"], row["test"], row["left_out"]) for row in by_list] == [
        (1, 3, 1, 2),
        (2, 2, 2, 2),
    ]
    with pytest.raises(ValueError, match=r"there are \[1, 2\]"):
        folds.parse("emobox-3").split(columns)
