import collections
import unicodedata

import pytest

from mser_jax.m5ser.texts import load_sentences


def test_every_sentence_in_every_language_and_the_words_in_five_emotions():
    sentences = load_sentences()
    assert {tuple(s.texts) for s in sentences} == {("en", "fr", "de", "it", "zh", "es", "fa", "pl")}
    counts = collections.Counter(s.content for s in sentences)
    assert counts.pop("neutral") >= 20
    assert set(counts) == {"angry", "fear", "happy", "sad", "surprise"}
    assert len(set(counts.values())) == 1 and counts["sad"] >= 4
    assert len({s.id for s in sentences}) == len(sentences)


@pytest.mark.parametrize("language, script", [("zh", "CJK"), ("fa", "ARABIC"), ("pl", "LATIN"), ("en", "LATIN")])
def test_scripts_and_marks(language, script):
    texts = [s.texts[language] for s in load_sentences()]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == text.strip() == unicodedata.normalize("NFC", text)
        assert text[-1] in ".!?。！？؟"
        assert {unicodedata.name(c).split()[0] for c in text if c.isalpha()} == {script}


@pytest.mark.parametrize(
    "lines, message",
    [
        ("id\tcontent\ten\nn1\tneutral\tA.\nn1\tneutral\tB.\n", "line 3.*repeated"),
        ("id\tcontent\ten\nn-1\tneutral\tA.\n", "hyphen"),
        ("id\tcontent\ten\tde\nn1\tneutral\tA.\n", "line 2: expected 4"),
        ("id\tcontent\ten\nn1\tneutral\t \n", "non-empty"),
        ("id\tcontent\ten\nn1\tbored\tA.\n", "bored"),
        ("id\ten\nn1\tA.\n", "first line"),
    ],
)
def test_bad_tables_are_refused_by_line(tmp_path, lines, message):
    path = tmp_path / "sentences.tsv"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_sentences(path)
