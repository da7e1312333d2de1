import json

import pytest

from mser_jax.corpora import emotions


def test_order_is_the_id_and_spaces_follow_it():
    assert emotions.EMOTIONS == ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    assert [emotions.emotion_id(name) for name in emotions.EMOTIONS] == list(range(7))
    assert emotions.emotion_id("") == -1
    for size, names in emotions.LABEL_SPACES.items():
        assert len(names) == size
        assert list(names) == sorted(names, key=emotions.EMOTIONS.index)
    assert set(emotions.LABEL_SPACES[5]) - set(emotions.LABEL_SPACES[4]) == {"surprise"}
    assert set(emotions.LABEL_SPACES[6]) - set(emotions.LABEL_SPACES[5]) == {"fear"}


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        ("  ANG ", ("angry", None)),
        ("Ärger/Wut", ("angry", None)),
        ("A\u0308rger/Wut", ("angry", None)),  # decomposed, as macOS writes file names
        ("Enojado", ("angry", None)),
        ("alegría", ("happy", None)),
        ("Alegria", ("happy", None)),
        ("excited", ("happy", "excited→happy")),
        ("EXC", ("happy", "excited→happy")),
        ("Calm", ("neutral", "calm→neutral")),
        ("ps", ("surprise", "pleasant surprise→surprise")),
        ("pleasant_surprise", ("surprise", "pleasant surprise→surprise")),
        ("boredom", ("", None)),
        ("A", ("", None)),
        ("", ("", None)),
    ],
)
def test_canonical(native, expected):
    assert emotions.canonical(native) == expected


def test_every_canonical_name_maps_to_itself_and_no_name_is_listed_twice():
    for name in emotions.EMOTIONS:
        assert emotions.canonical(name) == (name, None)
    assert all(name for name in emotions._table())
    emotions.SPELLINGS["test"] = {"sad": "wut"}
    try:
        with pytest.raises(ValueError, match="'wut' is listed for both"):
            emotions._table()
    finally:
        del emotions.SPELLINGS["test"]


def test_label_space():
    assert emotions.label_space(4) == emotions.label_space("4") == ("angry", "happy", "neutral", "sad")
    assert emotions.label_space("sad, angry") == ("angry", "sad")
    for spec, message in [
        ("3", r"sizes are \[4, 5, 6, 7\]"),
        ("angry,hapy", "'hapy'. Did you mean 'happy'"),
        ("anger,sad", "'anger'. Did you mean 'angry'"),
        ("sad,sad", "each once"),
        ("sad", "at least two"),
    ]:
        with pytest.raises(ValueError, match=message):
            emotions.label_space(spec)
    with pytest.raises(ValueError, match="Did you mean 'surprise'"):
        emotions.emotion_id("surprized")


def test_agrees_with_the_manifest_of_real_recordings(shared):
    """`emotion_norm` was made by somebody else: an independent opinion on all 3,606 labels."""
    rows = [json.loads(line) for line in (shared / "speech" / "manifest.jsonl").open(encoding="utf-8")]
    assert len(rows) == 3606
    wrong = {
        (row["corpus"], row["emotion"]) for row in rows if emotions.canonical(row["emotion"])[0] != row["emotion_norm"]
    }
    assert not wrong
    merged = {(row["corpus"], emotions.canonical(row["emotion"])[1]) for row in rows} - {
        (row["corpus"], None) for row in rows
    }
    assert merged == {("tess", "pleasant surprise→surprise")}


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        ("โกรธ", "angry"), ("怒り", "angry"), ("tức giận", "angry"), ("TỨC GIẬN", "angry"), ("슬픔", "sad"),
        ("гнів", "angry"), ("KIZGIN", "angry"), ("zlosc", "angry"),
        ("غضب", "angry"), ("عصباني", "angry"), ("qo’rquv", "fear"),
        ("खुशी", "happy"), ("szomorú", "sad"), ("překvapení", "surprise"), ("ντροπή", ""), ("厌\u200b恶", "disgust"),
        ("Angry!", "angry"), ('"Traurig".', "sad"), ("悲しい！", "sad"), ("«радость»", "happy"),
        ("[neutral]", "neutral"), ("sad 😢", "sad"), ("😠", "angry"), ("☹", ""), ("😊\ufe0f", "happy"), ("sad?", ""),
        ("!sad", ""), ("?!", ""), ("", ""),
        ("mwana", ""), ("Freude\ufeff", "happy"), ("sorgsen", "sad"), ("furaha", "happy"), ("ความสุข", "happy"),
    ],
)  # fmt: skip
def test_labels_in_the_languages_of_the_world(native, expected):
    assert emotions.canonical(native)[0] == expected


def test_at_least_forty_languages_have_a_word_for_each_emotion():
    languages = {name: words for name, words in emotions.SPELLINGS.items() if name != "codes"}
    assert len(languages) >= 40
    for name, words in languages.items():
        assert tuple(words) == emotions.EMOTIONS, name
        for emotion, spellings in words.items():
            for word in spellings.split(","):
                assert emotions.canonical(word)[0] == emotion, (name, word)
