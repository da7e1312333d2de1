"""Listeners, readers and guessers are told apart, by language and against a loop."""

import numpy as np
import pytest

from mser_jax.corpora.emotions import LABEL_SPACES
from mser_jax.evaluation import incongruence
from mser_jax.m5ser.mini import M5serMiniConfig, design

LABELS = LABEL_SPACES[6]


@pytest.fixture(scope="module")
def lines():
    return [line for line in design(M5serMiniConfig()) if line.language in ("de", "fa", "en")]


def score(lines, answers, labels=LABELS):
    ids = np.array([labels.index(a) if a in labels else len(labels) for a in answers])
    words = [incongruence.content_emotion(line.id) for line in lines]
    return incongruence.incongruence(ids, [x.emotion for x in lines], words, [x.language for x in lines], labels)


def test_a_listener_and_a_reader(lines):
    listener = score(lines, [line.emotion for line in lines])
    reader = score(lines, [line.sentence.content for line in lines])
    for kind in incongruence.KINDS:
        assert set(listener[kind]) == {"de", "en", "fa", "all"}
        for name in listener[kind]:
            assert (listener[kind][name]["by_voice"], listener[kind][name]["by_words"]) == (1.0, 0.0)
            assert (reader[kind][name]["by_voice"], reader[kind][name]["by_words"]) == (0.0, 1.0)
    assert f"all ({listener['neutral_words']['all']['n']})  1.000  0.000" in incongruence.format_table(listener)
    assert "1.000" not in incongruence.format_table(score(lines, ["nothing"] * len(lines)))


def test_figures_equal_a_loop_over_utterances(lines):
    rng = np.random.default_rng()
    answers = rng.choice([*LABELS, "nothing"], len(lines)).tolist()
    found = score(lines, answers)["conflicting_words"]
    mine = [(x, a) for x, a in zip(lines, answers, strict=True) if x.sentence.content not in ("neutral", x.emotion)]
    assert found["all"]["n"] == len(mine)
    for language in ("de", "fa"):
        here = [(x, a) for x, a in mine if x.language == language]
        voice, words = (
            np.mean([np.mean([a == e for x, a in here if of(x) == e]) for e in {of(x) for x, _ in here}])
            for of in (lambda x: x.emotion, lambda x: x.sentence.content)
        )
        assert found[language] == {"n": len(here), "by_voice": pytest.approx(voice), "by_words": pytest.approx(words)}
    means = [found[language]["by_voice"] for language in ("de", "en", "fa")]
    assert found["all"]["by_voice"] == pytest.approx(np.mean(means))


def test_what_is_left_out(lines):
    four = LABEL_SPACES[4]
    found = score(lines, [line.emotion for line in lines], four)
    wanted = [x for x in lines if {x.emotion, x.sentence.content} <= set(four) and x.emotion != x.sentence.content]
    assert sum(found[kind]["all"]["n"] for kind in incongruence.KINDS) == len(wanted)
    assert incongruence.incongruence(np.zeros(2, int), ["sad", "sad"], ["", "sad"], ["de", "de"], four) == {}
    assert incongruence.format_table({}) == ""
    assert incongruence.content_emotion("nemo/spk1/0001.flac") == ""
