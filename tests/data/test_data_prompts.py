import itertools
import math
import string

import numpy as np
import pytest

from mser_jax.corpora.emotions import EMOTIONS
from mser_jax.data import prompts

LANGUAGES = prompts.prompt_languages()
EVERY = list(itertools.product((-1, 0, 1), repeat=3))


def options(kind="emotion", language="en", transcript=0.0):
    return prompts.CaptionOptions(kinds=((kind, 1.0),), languages=(language,), transcript_probability=transcript)


def draws(facts, chosen, n=60):
    return {prompts.caption(facts, np.random.default_rng(i), chosen) for i in range(n)}


def test_tables_are_complete():
    assert {"en", "fr", "de", "it", "zh", "es"} <= set(LANGUAGES)
    tables = prompts._tables()
    for name, table in tables.items():
        assert set(table["emotions"]) == set(EMOTIONS), name
        assert all(set(words) == {"label", "voice", "manner"} for words in table["emotions"].values()), name
        assert len(table["templates"]["emotion"]) >= 4
        assert set(table["speakers"]) == set(tables["en"]["speakers"]), name
        assert set(table["languages"]) == set(tables["en"]["languages"]), name
        # The words of an emotion differ from those of every other, in each form a template may use.
        for form in ("label", "voice", "manner"):
            assert len({words[form] for words in table["emotions"].values()}) == len(EMOTIONS), (name, form)


def test_templates_use_known_fields_and_name_the_emotion():
    allowed = {"emotion": set(), "facts": {"language", "speaker"}, "acoustics": {"acoustics", "speaker"}}
    for table in prompts._tables().values():
        for kind, extra in allowed.items():
            for template in table["templates"][kind]:
                fields = {field for _, field, _, _ in string.Formatter().parse(template) if field}
                assert fields <= extra | {"label", "voice", "manner"}, template
                assert fields & {"label", "voice", "manner"}, template


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_template_formats(language):
    table = prompts._tables()[language]
    for emotion in EMOTIONS:
        for kind in prompts.KINDS:
            facts = prompts.Facts(
                emotion=emotion,
                language="de-AT",
                gender="female",
                age="71",
                pitch=-1,
                loudness=1,
                rate=1,
                transcript="Hallo.",
            )
            texts = draws(facts, options(kind, language, 1.0))
            wanted = len(table["templates"][kind]) * len(table["templates"]["transcript"])
            assert len(texts) == wanted
            for text in texts:
                assert not set("{}") & set(text) and "Hallo." in text and text == text.strip()
                assert any(word.lower() in text.lower() for word in table["emotions"][emotion].values())


@pytest.mark.parametrize("levels", EVERY)
def test_acoustic_words(levels):
    names = ("pitch", "loudness", "rate")
    facts = prompts.Facts(emotion="sad", **dict(zip(names, levels, strict=True)))
    words = prompts._tables()["en"]["acoustics"]
    texts = draws(facts, options("acoustics"))
    for name, level in zip(names, levels, strict=True):
        for side, word in zip((-1, 1), words[name], strict=True):
            said = [word in text for text in texts]
            assert all(said) if level == side else not any(said)
    if not any(levels):
        assert texts == set(prompts.label_prompts("sad", ["en"]))


def test_caption_wording():
    facts = prompts.Facts(emotion="happy", language="pl", gender="m", age="25", pitch=1, loudness=1, rate=-1)
    assert "A young man is speaking with joy, in Polish." in draws(facts, options("facts"))
    assert "Un jeune homme parle avec joie, en polonais." in draws(facts, options("facts", "fr"))
    assert "一位年轻男性高兴地说波兰语。" in draws(facts, options("facts", "zh"))
    assert "The voice sounds happy; it is high-pitched, loud and slow." in draws(facts, options("acoustics"))


@pytest.mark.parametrize(
    ("gender", "age", "word"),
    [
        ("male", "", "man"),
        ("f", "", "woman"),
        ("", "", "someone"),
        ("", "44", "someone"),
        ("female", "8", "child"),
        ("", "8", "child"),
        ("F", "29", "young woman"),
        ("male", "60", "elderly man"),
        ("male", "twenties", "man"),
        ("other", "", "someone"),
    ],
)
def test_speaker_words(gender, age, word):
    facts = prompts.Facts(emotion="sad", language="en", gender=gender, age=age)
    article = "" if word == "someone" else "an " if word[0] in "aeiou" else "a "
    assert f"Emotion: sadness. Language: English. Speaker: {article}{word}." in draws(facts, options("facts"))


def test_language_without_a_name_falls_back_to_the_emotion():
    facts = prompts.Facts(emotion="fear", language="xx")
    assert draws(facts, options("facts", "de")) <= set(prompts.label_prompts("fear", ["de"]))


def test_kinds_and_languages_follow_their_weights():
    facts = prompts.Facts(emotion="angry", language="en", pitch=1)
    chosen = prompts.CaptionOptions(kinds=(("emotion", 3.0), ("facts", 1.0)), languages=("en", "zh"))
    texts = [prompts.caption(facts, np.random.default_rng(i), chosen) for i in range(4000)]
    alone = set(prompts.label_prompts("angry", ["en", "zh"]))
    assert abs(sum(text in alone for text in texts) / 4000 - 0.75) < 0.03
    assert abs(sum(text.isascii() for text in texts) / 4000 - 0.5) < 0.03


def test_transcript_probability_and_braces_in_a_transcript():
    facts = prompts.Facts(emotion="angry", transcript="use {label} or {0} or { here")
    texts = [prompts.caption(facts, np.random.default_rng(i), options(transcript=0.3)) for i in range(2000)]
    assert abs(sum("use {label} or {0} or { here" in text for text in texts) / 2000 - 0.3) < 0.04
    assert all(text.startswith(tuple(prompts.label_prompts("angry", ["en"]))) for text in texts)


def test_every_text_is_every_caption_that_is_drawn():
    """In languages with and without words for an emotion; each caption once, none that cannot be drawn."""
    options = prompts.CaptionOptions(kinds=(("emotion", 1.0), ("facts", 0.0)), languages=("de", "zh", "en"))
    emotions = (*EMOTIONS, "wistful")
    told = prompts.Captions(options=options).every_text(emotions)
    rng = np.random.default_rng(0)
    drawn = {prompts.caption(prompts.Facts(emotion=emotion), rng, options) for emotion in emotions for _ in range(500)}
    assert drawn == set(told) and len(told) == len(set(told)) > 50


@pytest.mark.parametrize("change", [{"kinds": (("emotion", 1.0), ("facts", 0.1))}, {"transcript_probability": 0.1}])
def test_captions_with_facts_or_words_cannot_be_told(change):
    options = prompts.CaptionOptions(**{"kinds": (("emotion", 1.0),), **change})
    assert prompts.Captions(options=options).every_text(EMOTIONS) is None


def test_label_prompts():
    for emotion in EMOTIONS:
        texts = prompts.label_prompts(emotion)
        assert len(texts) == len(set(texts)) >= 4 * len(LANGUAGES)
        for language in LANGUAGES:
            assert set(prompts.label_prompts(emotion, [language])) == draws(
                prompts.Facts(emotion=emotion), options("emotion", language)
            )
    other = prompts.label_prompts("bored", ["fr", "zh"])
    assert "The speaker sounds bored." in other and "Emotion: bored." in other
    assert len(other) == len(prompts._tables()["en"]["templates"]["emotion"])
    assert not any("{" in text for text in other)
    assert draws(prompts.Facts(emotion="bored"), options("emotion", "zh")) == set(other)


def test_labels_of_one_question_are_put_in_the_same_languages():
    """A word of no table is put in English, and then all are: no anchor is the mean of more languages than another."""
    assert prompts.common_languages(["angry", "sad"], LANGUAGES) == LANGUAGES
    for asked in (LANGUAGES, ("zh", "en"), ("de",)):
        assert prompts.common_languages(["angry", "bored"], asked) == ("en",)
    with pytest.raises(ValueError, match="tlh"):
        prompts.common_languages(["angry"], ["tlh"])


def test_levels_are_quantiles_of_the_own_group():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(100, 10, 1000), rng.normal(500, 3, 500)])
    groups = np.repeat([4, 9], [1000, 500])
    values[::7] = math.nan
    out = prompts.levels(values, groups)
    assert out.dtype == np.int8 and not out[::7].any()
    for group in (4, 9):
        own = (groups == group) & ~np.isnan(values)
        ranks = values[own].argsort().argsort() / own.sum()
        expected = np.where(ranks < 0.3, -1, np.where(ranks > 0.7, 1, 0))
        assert (out[own] == expected).mean() > 0.995
    assert not prompts.levels(np.full(5, math.nan), np.zeros(5)).any()
    assert not prompts.levels(np.full(5, 3.0), np.zeros(5)).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": (("emotions", 1.0),)}, "acoustics"),
        ({"kinds": (("emotion", 0.0),)}, "kinds"),
        ({"kinds": (("emotion", 1.0), ("facts", -1.0))}, "kinds"),
        ({"languages": ("en", "tlh")}, "tlh"),
        ({"languages": ()}, "expected some of"),
        ({"transcript_probability": 1.5}, "transcript_probability"),
    ],
)
def test_caption_options_refuse(wrong, message):
    with pytest.raises(ValueError, match=message):
        prompts.CaptionOptions(**wrong)


def test_a_caption_without_emotion_is_refused():
    with pytest.raises(ValueError, match="emotion"):
        prompts.caption(prompts.Facts(emotion=""), np.random.default_rng(0), options())
