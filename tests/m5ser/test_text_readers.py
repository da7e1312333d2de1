"""Readers against files written as the collections ship them."""

import collections

import pyarrow as pa
import pyarrow.parquet
import pytest

from mser_jax.m5ser import text_readers

ALL = ("en", "de", "zh", "zh-Hant", "es", "pt-BR", "fr")


def read(spec, languages=ALL):
    return list(text_readers.read(spec, languages))


def test_xed(tmp_path):
    (tmp_path / "de-projections.tsv").write_text(
        'Was ist passiert?\t4, 7\nDas läuft schlecht.\t6\n"Ein Rest.\nKid.\t8\n'
    )
    (tmp_path / "cn-projections.tsv").write_text("微笑一下吧\t5\n")
    (tmp_path / "zh-projections.tsv").write_text("我是個人\t1\n")
    (tmp_path / "en-annotated.tsv").write_text("A dead man .\t1\n")
    (tmp_path / "neu_en.txt").write_text("9\tOne moment please.\n")
    (tmp_path / "README.md").write_text("not a text\n")
    found = {text.text: (text.language, text.content) for text in read(f"xed:{tmp_path}")}
    assert found == {
        "Was ist passiert?": ("de", ""),  # two labels
        "Das läuft schlecht.": ("de", "sad"),
        "Kid.": ("de", ""),  # trust is no canonical emotion
        "微笑一下吧": ("zh", "happy"),
        "我是個人": ("zh-Hant", "angry"),
        "A dead man .": ("en", "angry"),
        "One moment please.": ("en", "neutral"),
    }
    assert {text.language for text in read(f"xed:{tmp_path}", ("zh",))} == {"zh"}
    assert {text.license for text in read(f"xed:{tmp_path}")} == {"CC BY 4.0 (XED)"}


def test_the_real_xed(shared):
    texts = read(f"xed:{shared / 'texts' / 'xed'}", ("de", "zh", "en"))
    counts = collections.Counter(text.language for text in texts)
    for language, name in (("de", "de-projections.tsv"), ("zh", "cn-projections.tsv")):
        lines = (shared / "texts" / "xed" / name).read_text(encoding="utf-8").split("\n")
        labelled = [line for line in lines if line.count("\t") == 1 and line.rstrip()[-1:].isdigit()]
        assert 0 < counts[language] == len(labelled), language
    assert len({text.id for text in texts}) > 0.8 * len(texts), "an id is of its words"
    assert not any("\t" in text.text for text in texts)


COLUMNS = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def test_brighter_parquet_and_csv(tmp_path):
    """As on the Hugging Face hub (a folder a language) and in SemEval-2025 task 11 (a csv a language)."""
    rows = [
        {"id": "1", "text": "Ich freue mich.", **dict.fromkeys(COLUMNS, 0), "joy": 1, "emotions": ["joy"]},
        {"id": "2", "text": "Der Bus kommt um acht.", **dict.fromkeys(COLUMNS, 0), "emotions": []},
        {"id": "3", "text": "Wie furchtbar!", **dict.fromkeys(COLUMNS, 0), "fear": 1, "sadness": 1, "emotions": []},
    ]
    (tmp_path / "deu").mkdir()
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "deu" / "train-00000-of-00001.parquet")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "eng.csv").write_text('id,text,anger,fear,joy,sadness,surprise\n1,"Oh, no",0,0,0,0,1\n')
    (tmp_path / "train" / "ptbr.csv").write_text(
        "id,text,Anger,Disgust,Fear,Joy,Sadness,Surprise\n1,Que raiva,1.0,,0,0,0,0\n"
    )
    found = {text.text: (text.language, text.content) for text in read(f"brighter:{tmp_path}")}
    assert found == {
        "Ich freue mich.": ("de", "happy"),
        "Der Bus kommt um acht.": ("de", "neutral"),
        "Wie furchtbar!": ("de", ""),
        "Oh, no": ("en", "surprise"),
        "Que raiva": ("pt-BR", "angry"),
    }
    (tmp_path / "train" / "esp.csv").write_text("id,text,label\n1,Hola,joy\n")
    with pytest.raises(ValueError, match=r"esp.csv: expected the columns id, text, anger"):
        read(f"brighter:{tmp_path}")


def test_goemotions(tmp_path):
    (tmp_path / "train.tsv").write_text(
        "My favourite food\t27\teebbqej\nWhy the hell not\t3,14\ted00q6i\nThanks a lot\t15\teezlygj\nAh well\t2,3\tx\n"
    )
    found = {text.text: (text.language, text.content) for text in read(f"goemotions:{tmp_path}")}
    assert found == {
        "My favourite food": ("en", "neutral"),
        "Why the hell not": ("en", ""),  # annoyance and fear
        "Thanks a lot": ("en", "happy"),  # gratitude
        "Ah well": ("en", "angry"),  # anger and annoyance are one of Ekman's
    }
    (tmp_path / "dev.tsv").write_text("no label\n")
    with pytest.raises(ValueError, match=r"dev.tsv, line 1: expected text, numbers of emotions"):
        read(f"goemotions:{tmp_path}")


def test_goemotions_of_raters_needs_two_that_agree(tmp_path):
    names = text_readers._GOEMOTIONS
    assert len(names) == 28 and names[17] == "joy" and names[27] == "neutral"
    header = ["text", "id", "author", "rater_id", "example_very_unclear", *names]

    def row(text, key, *felt):
        return [text, key, "a", "1", "False", *("1" if name in felt else "0" for name in names)]

    rows = [header, row("Grand", "k1", "joy"), row("Grand", "k1", "joy", "love"), row("Eh", "k2", "joy"),
            row("Eh", "k2", "grief")]  # fmt: skip
    (tmp_path / "goemotions_1.csv").write_text("\n".join(",".join(cells) for cells in rows) + "\n")
    assert [(text.text, text.content) for text in read(f"goemotions:{tmp_path}")] == [("Grand", "happy")]


def test_tsv(tmp_path):
    file = tmp_path / "mine.tsv"
    file.write_text(
        "text\tlanguage\temotion\tparallel_id\nEs regnet.\tde\tneutral\tr1\nIt is raining.\ten\t\tr1\n\n"
        "Pfui!\tde\tEkel\t\n"
    )
    texts = read(f"tsv:{file}")
    assert [(t.text, t.language, t.content, t.parallel_id) for t in texts] == [
        ("Es regnet.", "de", "neutral", "r1"), ("It is raining.", "en", "", "r1"), ("Pfui!", "de", "disgust", ""),
    ]  # fmt: skip
    file.write_text("sentence\tlanguage\nx\tde\n")
    with pytest.raises(ValueError, match="the first line must name the columns text and language"):
        read(f"tsv:{file}")
    file.write_text("text\tlanguage\temotion\nx\tde\tbliss\n")
    with pytest.raises(ValueError, match=r"mine.tsv, line 2: emotion 'bliss'"):
        read(f"tsv:{file}")
    file.write_text("text\tlanguage\nx\n")
    with pytest.raises(ValueError, match=r"line 2: 1 cells, expected 2"):
        read(f"tsv:{file}")


def test_own_sentences_are_parallel():
    texts = read("sentences", ("en", "zh"))
    languages = collections.defaultdict(set)
    for text in texts:
        languages[text.parallel_id].add(text.language)
    assert len(languages) == 45 and all(found == {"en", "zh"} for found in languages.values())


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'brighter'"):
        read("brihter:x")
    with pytest.raises(ValueError, match="expected 'xed:PATH'"):
        read("xed")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere"):
        read(f"xed:{tmp_path / 'nowhere'}")
    with pytest.raises(FileNotFoundError, match=r"holds no train.tsv"):
        read(f"goemotions:{tmp_path}")
