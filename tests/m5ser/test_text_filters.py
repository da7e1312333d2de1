import random

import pytest

from mser_jax.m5ser import text_filters as filters
from mser_jax.m5ser import text_readers
from mser_jax.m5ser.lines import Text

SETTINGS = {"min_length": 8, "max_length": 60, "near_duplicates": 0.8, "check_language": True}


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("- Wenn alles klar ist.", "Wenn alles klar ist."),
        ("-我可以看看吗", "我可以看看吗"),
        ("公司出了问题 与你无关吧", "公司出了问题，与你无关吧"),
        ("... And I do not think so .", "And I do not think so."),
        ("<i>Komm her!</i>", "Komm her!"),
        ("{\\an8}Venez ici !", "Venez ici!"),
        ("* So get up", "So get up"),
        ("a half - hour , roughly", "a half-hour, roughly"),
        ('"Das Grauen der Tiefsee', "Das Grauen der Tiefsee"),
        ("don’t  go\u00ad\u200b there", "don't go there"),
        ("&quot;Yes&quot; &amp; no", "Yes & no"),
        ("cafe\u0301", "café"),
        ("¿Estás loco?", "¿Estás loco?"),
        ("Wait... what?", "Wait… what?"),
    ],
)
def test_normalize(raw, plain):
    assert filters.normalize(raw) == plain
    assert filters.normalize(plain) == plain, "nothing is left to do"


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        ("She met [PERSON] there.", "en", "unspeakable"),
        ("See https://example.org now", "en", "unspeakable"),
        ("Come here. - No, you come!", "en", "dialogue"),
        ("A well-known half-truth.", "en", ""),
        ("这样 okay 吗我不知道", "zh", "script"),
        ("Это хорошо, правда", "en", "script"),
        ("Это хорошо, правда", "ru", ""),
        ("1984, 2001!", "en", "script"),
        ("Yes.", "en", "too_short"),
        ("微笑吧", "zh", ""),
        ("word " * 20, "en", "too_long"),
    ],
)
def test_refusal(text, language, reason):
    assert filters.refusal(text, language, 8, 60) == reason


def text(words, language="en", number=[0]):  # noqa: B006 - a counter
    number[0] += 1
    return Text(id=f"t{number[0]}", text=words, language=language)


def test_select_says_what_was_left_out_and_why():
    given = [
        text("The river froze over during the night."), text("- The river froze over during the night!"),
        text("The river froze over during that night."), text("Hm."), text("Der Fluss fror in der Nacht zu.", "de"),
        text("A quite different sentence stands here."),
    ]  # fmt: skip
    chosen, left_out = filters.select(given, **SETTINGS)
    assert [t.id for t in chosen] == [given[i].id for i in (0, 4, 5)]
    assert left_out == {"en": {"duplicate": 1, "near_duplicate": 1, "too_short": 1}, "de": {}}
    chosen, _ = filters.select(given, **{**SETTINGS, "near_duplicates": 1.0})
    assert given[2].id in [t.id for t in chosen]
    assert [t.text for t in chosen][1] == "The river froze over during that night."


def test_sentences_in_the_wrong_language_are_found(shared):
    languages = ("de", "es", "fr", "it")
    rng = random.Random(0)
    texts = rng.sample(list(text_readers.read(f"xed:{shared / 'texts' / 'xed'}", languages)), 6000)
    chosen, _ = filters.select(texts, **{**SETTINGS, "near_duplicates": 1.0, "check_language": False})
    wrong = set(rng.sample([t.id for t in chosen], 200))
    mixed = [
        Text(**{**vars(t), "language": rng.choice([x for x in languages if x != t.language])}) if t.id in wrong else t
        for t in chosen
    ]
    found = filters.foreign(mixed)
    assert len(found & wrong) > 0.93 * len(wrong)
    assert len(found - wrong) < 0.03 * len(mixed)
    assert filters.foreign(list(reversed(mixed))) == found, "whatever the order"
    assert filters.foreign(mixed[:300]) == set(), "too few to know a language by"
