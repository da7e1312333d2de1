import pytest

from mser_jax.corpora import persons
from mser_jax.data import prompts


@pytest.mark.parametrize("gender", persons.GENDERS)
def test_no_word_has_two_meanings(gender):
    for language, words in persons._WORDS[gender].items():
        for word in words.split(", "):
            assert persons.gender(word) == persons.gender(f" {word.upper()} ") == gender, (language, word)


def test_words_for_gender():
    assert len(persons._WORDS["female"]) > 30 and persons._WORDS["female"].keys() == persons._WORDS["male"].keys()
    said = {
        "female": "f F w Frau mujer MUJER mulher femme žena kadın KADIN женский Ж 女 여자 หญิง أنثى perempuan nainen nő",
        "male": "m M h Mann hombre homem homme muž erkek ERKEK мужской М 男 남자 ชาย ذكر pria mies férfi",
        "other": "divers non-binary otro x",
        "": "unknown n/a nan None - ?",
    }
    for gender, words in said.items():
        assert {word: persons.gender(word) for word in words.split()} == dict.fromkeys(words.split(), gender)
    assert persons.gender("") == ""
    for word in ("mariposa", "fox", "manager", "0", "1", "k", "v", "child", "mfm", "wolf"):
        assert persons.gender(word) is None, "not guessed"


@pytest.mark.parametrize(
    ("said", "years"),
    [
        ("30", "30"), ("30.0", "30"), (" 7.5 ", "7.5"), ("007", "7"), ("20-29", "20-29"), ("20 – 29", "20-29"),
        ("30+", "30+"), ("30 years", "30"), ("25 y.o.", "25"), ("adult", "adult"), ("", ""), ("unknown", ""),
        ("120", "120"), ("-1", None), ("0", None), ("300", None), ("1990", None), ("1e3", None), ("29-20", None),
        ("3,5", None), ("NaN", ""), ("9" * 400, None), ("inf", None), ("٣٠", "30"),
    ],
)  # fmt: skip
def test_ages(said, years):
    assert persons.age(said) == years


def test_captions_know_gender_by_its_word():
    def speaker(gender):
        return prompts._speaker(prompts.Facts(emotion="sad", gender=gender), prompts._tables()["en"])

    assert speaker("mujer") == speaker("f") == speaker("female") != speaker("m")
    assert speaker("hombre") == speaker("M") == speaker("male")
    assert speaker("mariposa") == speaker("") == speaker("divers") not in (speaker("f"), speaker("m"))
