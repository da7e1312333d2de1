"""The tables of corpora, saved again by a spreadsheet or damaged: told by file and line, and nobody gets another's."""

import json
import re

import miniature
import pytest

from mser_jax.corpora import builder, completeness, registry, tables

MSP = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
MSP += [f"MSP-PODCAST_0002_{n:04}.wav,{'ASHUN'[n % 5]},4.2,3.1,5.0,{n % 4},Female,Train" for n in range(40)]
NEMO = ["file_id,emotion,raw_text,speaker_id,gender,age"]
NEMO += [f"EB0_{e}_{n}.wav,{e},Tak,EB0,female,30" for e in ("anger", "fear") for n in range(20)]
RESD = ["path,emotion,text"]
RESD += [f"x/{n:02}_anger_fear_a_{n}.wav,anger,да" for n in range(40)]
# corpus: (path of a table, its lines between commas, folder of the recordings, the tables beside it)
CORPORA = {
    "msp_podcast": ("Labels/labels_consensus.csv", MSP, "Audios", {}),
    "nemo": ("data.tsv", NEMO, "samples", {}),
    "resd": ("train.csv", RESD, "train", {"test.csv": RESD[0]}),
}


def download(tmp_path, corpus, content):
    """A miniature of a corpus whose table holds `content`."""
    table, lines, folder, others = CORPORA[corpus]
    names = [line.partition(",")[0].rpartition("/")[2] for line in lines[1:]]
    source = miniature.write(tmp_path / "source", [f"{folder}/{name}" for name in names], seconds=0.12)
    for name, data in {table: content, **{name: text.encode() for name, text in others.items()}}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    return source


@pytest.mark.parametrize("corpus", CORPORA)
def test_saved_again_with_semicolons_and_a_mark(tmp_path, corpus):
    lines = [line.replace(",", ";").replace("4.2;", "4,2;") for line in CORPORA[corpus][1]]
    content = "\ufeff" + "\r\n".join([*lines, ";" * lines[0].count(";"), ""])
    records, *_ = miniature.build(corpus, download(tmp_path, corpus, content.encode()), tmp_path / "data")
    assert len(records) == 40 and all(u.emotion for u in records.values())
    if corpus == "msp_podcast":
        assert {round(u.arousal, 3) for u in records.values()} == {4.2}


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("column", [0, 1])
def test_a_renamed_column_is_one_line(tmp_path, corpus, column):
    table, lines, *_ = CORPORA[corpus]
    name = lines[0].split(",")[column]
    content = "\n".join([lines[0].replace(name, name.upper() + " (1)"), *lines[1:]])
    with pytest.raises(tables.TableError, match=rf"{table}: no column '{name}'") as caught:
        miniature.build(corpus, download(tmp_path, corpus, content.encode()), tmp_path / "data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("corpus", "change", "said"),
    [
        ("msp_podcast", ("S,4.2", "Q,4.2"), r"line 3, column 'EmoClass': expected one of .*got 'Q'"),
        ("msp_podcast", (",4.2,3.1", ",Apr 02,3.1"), r"column 'EmoAct': expected a number from 1 to 7, got 'Apr 02'"),
        ("msp_podcast", ("Train", "Trian"), r"column 'Split_Set': expected one of .*got 'Trian'"),
        ("nemo", (",anger,", ",angyr,"), r"data.tsv, line 2, column 'emotion': unknown label 'angyr'"),
        ("resd", (",anger,", ",,"), r"train.csv, line 2, column 'emotion': unknown label ''"),
    ],
)
def test_an_unknown_code_is_told_with_its_line_and_column(tmp_path, corpus, change, said):
    """One is left out and listed; more than are allowed stop the build."""
    lines = CORPORA[corpus][1]
    once = "\n".join(lines).replace(*change, 1)
    source = download(tmp_path, corpus, once.encode())
    _, _, report = miniature.build(corpus, source, tmp_path / "data")
    (item,) = report["skipped_items"]
    assert report["built"] == 39 and item["reason"] == "table"
    assert re.search(said, item["detail"])
    source = download(tmp_path / "more", corpus, "\n".join(lines).replace(*change).encode())
    with pytest.raises(builder.TooManySkippedError, match=said):
        miniature.build(corpus, source, tmp_path / "more")


@pytest.mark.parametrize("corpus", CORPORA)
def test_two_rows_that_contradict_each_other_label_nothing(tmp_path, corpus):
    lines = CORPORA[corpus][1]
    other = lines[2].replace(",S,", ",A,").replace(",anger,", ",fear,")
    source = download(tmp_path, corpus, "\n".join([*lines, lines[1], other]).encode())
    _, _, report = miniature.build(corpus, source, tmp_path / "data")
    (item,) = (item for item in report["skipped_items"] if item["reason"] == "table")
    assert report["built"] == 39
    assert "line 43" in item["path"] + item["detail"] and "was already in" in item["detail"]


def test_half_a_table_is_half_a_corpus(tmp_path):
    source = download(tmp_path, "msp_podcast", "\n".join(MSP).encode())
    (source / CORPORA["msp_podcast"][0]).write_text("\n".join(MSP[:21]))
    with pytest.raises(completeness.PartialCorpusError, match=r"20 utterances, .*20 recordings have no row in its"):
        miniature.build("msp_podcast", source, tmp_path / "data", allow_partial=False)


TURN = "[{n}.0 - {n}.9]\tSes01F_impro01_F{n:03}\t{code}\t[2.5000, 2.5000, 2.5000]\n"
TURN += "C-E1:\t{vote};\t()\nC-E2:\t{vote};\t()\n"


@pytest.mark.parametrize(
    "damage",
    [
        ("\tang\t", "\tagn\t"),
        ("[2.5000, 2.5000, 2.5000]", "[2,5000, 2,5000, 2,5000]"),
        ("[2.5000, 2.5000, 2.5000]", "[2.5000, 2.5000]"),
        ("[2.5000, 2.5000, 2.5000]", "[2.5.0, 2.5000, 2.5000]"),
        ("[5.0 - 5.9]\t", "[5.0 \n- 5.9]\t"),
        ("\tSes01F_impro01_F005", "Ses01F_impro01_F005"),
        ("[5.0 - 5.9]\tSes01F_impro01_F005\tang\t[2.5000, 2.5000, 2.5000]\n", ""),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_turn_that_does_not_parse_gives_its_votes_to_nobody(tmp_path, damage, line_end):
    turns = [
        TURN.format(n=n, code="ang" if n == 5 else "neu", vote="Anger" if n == 5 else "Neutral") for n in range(40)
    ]
    turns[5] = turns[5].replace(*damage)
    text = "\n".join(["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", "", *turns])
    names = [f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F{n:03}.wav" for n in range(40)]
    source = miniature.write(tmp_path / "source", names, seconds=0.12)
    path = source / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.replace("\n", line_end).encode())
    corpus = registry.corpus_builder("iemocap", str(tmp_path / "data"), str(source), allow_partial=True)
    corpus.MAX_SKIPPED = 0.2
    corpus.prepare()
    index = {row["id"][-4:]: row for row in corpus.index().to_pylist()}
    assert len(index) == 39 and "F005" not in index
    assert all(json.loads(row["votes"]) == {"Neutral": 2} for row in index.values())
    report = json.loads(corpus.report_path.read_text())
    told = {(item["path"].rpartition(", ")[0][-18:], item["reason"]) for item in report["skipped_items"]}
    assert told == {("Ses01F_impro01.txt", "table")}
    lines = [int(item["path"].rpartition(" ")[2]) for item in report["skipped_items"]]
    assert all(23 <= line <= 26 for line in lines), "the turn's own lines"


def test_a_text_that_is_not_there_is_not_the_next_ones(tmp_path):
    """ESD: an utterance without text before one with it."""
    names = [f"0011/{e}/0011_{n:06}.wav" for e, n in (("Angry", 351), ("Angry", 352), ("Happy", 701))]
    source = miniature.write(tmp_path / "source", names, seconds=0.12)
    (source / "0011" / "0011.txt").write_text(
        "0011_000351\n0011_000352\tTom was there.\tAngry\n0011_000701\tHi.\tHappy\n"
    )
    records, *_ = miniature.build("esd", source, tmp_path / "data")
    assert [u.transcript for u in records.values()] == ["", "Tom was there.", "Hi."]


def test_an_annotation_that_lacks_something_concerns_its_own_utterance(tmp_path):
    """M3ED: three of many utterances lack their speaker, their emotion or the split of their series."""
    good = {"Speaker": "A", "Text": "好", "EmoAnnotation": {"EmoAnnotator1": "Anger", "final_main_emo": "Anger"}}
    said = {f"anjia_1_{n}": good for n in range(1, 61)}
    said["anjia_1_7"] = good | {"Speaker": "C"}
    said["anjia_1_8"] = good | {"EmoAnnotation": {}}
    said["anjia_1_9"] = good | {"Text": None}
    who = {"A": {"Name": "王", "Gender": "female"}}
    annotation = {"anjia": {"anjia_1": {"SpeakerInfo": who, "Dialog": said}}}
    names = [f"modality_speech/A_anjia_1_{n}.wav" for n in range(1, 61)]
    source = miniature.write(tmp_path / "source", names, seconds=0.12)
    (source / "splitInfo").mkdir()
    for part in ("train", "val", "test"):
        (source / "splitInfo" / f"movie_list_{part}.txt").write_text("anjia\n" if part == "train" else "")
    (source / "annotation.json").write_text(json.dumps(annotation), encoding="utf-8-sig")
    records, _, report = miniature.build("m3ed", source, tmp_path / "data")
    assert len(records) == 57
    assert {re.search(r"anjia_1_\d", item["path"])[0][-1] for item in report["skipped_items"]} == {"7", "8", "9"}
    (source / "annotation.json").write_text("[1, 2")
    with pytest.raises(tables.TableError, match=r"annotation\.json: no JSON"):
        miniature.build("m3ed", source, tmp_path / "more")
