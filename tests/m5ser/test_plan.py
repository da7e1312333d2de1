"""The plan against counting: balance in every cut, every combination once, any line by its number."""

import collections
import dataclasses
import itertools

import pytest

from mser_jax.m5ser import plan as plan_lib
from mser_jax.m5ser.lines import Line, Text
from mser_jax.m5ser.plan import PlanError, Voice

EMOTIONS = ("angry", "happy", "sad")
SIZES = {"en": 7, "de": 5, "zh": 3}
LEVELS = (0.6, 1.0)


def texts():
    found = [
        Text(id=f"{language}-{k}", text="x" * (5 + 3 * k), language=language, content=("neutral", "sad")[k % 2])
        for language, size in SIZES.items() for k in range(size)
    ]  # fmt: skip
    return found + [Text(id=f"p-{language}", text="y" * 9, language=language, parallel_id="p") for language in SIZES]


def voices():
    both = [Voice("espeak", "a1", "m1"), Voice("espeak", "a1", "f1"), Voice("kokoro", "b2", "am_adam", "validation")]
    return {"en": both, "de": both[:2], "zh": both}


def make(**changes):
    settings = {"emotions": EMOTIONS, "intensities": LEVELS, "seed": 0, "chunk_utterances": 12}
    return plan_lib.make(texts(), voices(), **{**settings, **changes})


@pytest.mark.parametrize("rounds", [1, 2, 5, 7, 40, 200])
def test_any_cut_is_balanced(rounds):
    cut = make().with_utterances(rounds * 9)
    assert len(cut) == rounds * 9
    lines = [cut.line(n) for n in range(len(cut))]
    factors = {
        "language": lambda x: x.language,
        "voice": lambda x: (x.engine, x.voice),
        "voice and language": lambda x: (x.engine, x.voice, x.language),
        "text": lambda x: x.text.id,
        "words": lambda x: (x.text.content, x.language),
        "intensity": lambda x: (x.intensity, x.language),
        "split": lambda x: x.split,
        "text, voice, intensity": lambda x: (x.text.id, x.engine, x.voice, x.intensity),
    }
    for name, factor in factors.items():
        counts = collections.defaultdict(collections.Counter)
        for line in lines:
            counts[factor(line)][line.emotion] += 1
        for value, per_emotion in counts.items():
            assert len({per_emotion[emotion] for emotion in EMOTIONS}) == 1, (name, value, per_emotion)
    for language in SIZES:
        spoken = collections.Counter(line.text.id for line in lines if line.language == language)
        assert len(spoken) == min(rounds, SIZES[language] + 1)
        assert max(spoken.values()) - min(spoken.values()) <= len(EMOTIONS), "texts take turns"
        heard = collections.Counter((line.engine, line.voice) for line in lines if line.language == language)
        walks = -(-rounds // (SIZES[language] + 1))
        assert max(heard.values()) - min(heard.values(), default=0) <= len(EMOTIONS) * walks, "and so do voices"


def test_every_combination_comes_once_and_then_with_other_seeds():
    made = make()
    for row, language in enumerate(made.languages):
        combinations = set(
            itertools.product(
                [t.id for t in made.texts[language]], [v.name for v in made.voices[language]], LEVELS, EMOTIONS
            )
        )
        rounds = len(combinations) // len(EMOTIONS)
        takes = []
        for take in range(2):
            numbers = (
                ((take * rounds + r) * len(SIZES) + row) * len(EMOTIONS) + e
                for r in range(rounds) for e in range(len(EMOTIONS))
            )  # fmt: skip
            lines = [made.line(n) for n in numbers]
            assert {(x.text.id, x.voice, x.intensity, x.emotion) for x in lines} == combinations
            takes.append({x.id for x in lines})
        assert len(takes[0] | takes[1]) == 2 * len(combinations), "no utterance is made twice"


def test_a_larger_plan_begins_like_a_smaller_one():
    small, large = make().with_utterances(50), make().with_utterances(5000)
    assert [small.line(n) for n in range(len(small))] == [large.line(n) for n in range(len(small))]
    assert small.fingerprint == large.fingerprint == make().fingerprint
    assert make(seed=1).fingerprint != make().fingerprint
    assert [x.id for x in make(seed=1).with_utterances(50).chunk(0)] != [x.id for x in small.chunk(0)]


def test_chunks_are_the_plan_in_order():
    cut = make().with_utterances(50)
    assert cut.chunk_utterances == 12 and cut.num_chunks == 4
    assert [x for k in range(4) for x in cut.chunk(k)] == [cut.line(n) for n in range(45)]
    assert len(cut.chunk(3)) == 9
    assert make(chunk_utterances=10).chunk_utterances == 9, "whole blocks"
    assert make(chunk_utterances=1).chunk_utterances == 3


def test_parallel_texts_are_in_every_cut_and_spoken_by_other_voices():
    cut = make().with_utterances(9)
    lines = [cut.line(n) for n in range(9)]
    assert {x.text.parallel_id for x in lines} == {"p"}
    assert len({x.voice for x in lines}) > 1


def test_hours_follow_the_lengths_of_the_texts():
    seconds = {"en": (0.0, 0.5), "de": (1.0, 0.4), "zh": (0.5, 2.0)}
    whole = dataclasses.replace(make(), seconds=seconds)
    cut = whole.with_hours(2.0)
    blocks = [cut.line(n) for n in range(0, len(cut), len(EMOTIONS))]
    spoken = sum(seconds[x.language][0] + seconds[x.language][1] * len(x.text.text) for x in blocks)
    assert 0.98 * 7200 <= spoken <= 7200
    assert len(whole.with_hours(1e-6)) == 9, "at least a round"
    assert whole.with_hours(2000.0).rounds == pytest.approx(1000 * cut.rounds, rel=0.02)


def test_saved_and_loaded(tmp_path):
    cut = make().with_utterances(100)
    folder = plan_lib.epath.Path(tmp_path)
    cut.save(folder)
    loaded = plan_lib.load(folder)
    assert loaded.fingerprint == cut.fingerprint and len(loaded) == len(cut)
    assert [loaded.line(n) for n in range(99)] == [cut.line(n) for n in range(99)]


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(PlanError, match="no texts for language 'fr'"):
        plan_lib.make(texts(), {"fr": []}, emotions=EMOTIONS, intensities=LEVELS, seed=0, chunk_utterances=9)
    with pytest.raises(PlanError, match="no voices for language 'en'"):
        plan_lib.make(
            texts(), {**voices(), "en": []}, emotions=EMOTIONS, intensities=LEVELS, seed=0, chunk_utterances=9
        )
    for change in ({"emotions": ("angry", "bored")}, {"emotions": ("sad",)}, {"emotions": ("sad", "sad")},
                   {"intensities": ()}, {"intensities": (0.0,)}):  # fmt: skip
        with pytest.raises(PlanError):
            make(**change)


def test_an_id_is_of_all_that_conditions_the_sound():
    text = Text(id="a", text="Hello there.", language="en")
    base = {"text": text, "engine": "espeak", "voice": "m1", "emotion": "sad", "intensity": 1.0, "seed": 3}
    line = Line(**base)
    assert Line(**base, split="validation").id == line.id and len(line.id) == 20
    assert Line(**{**base, "text": Text(id="b", text="Hello there.", language="en", source="x")}).id == line.id
    changes = [{"engine": "kokoro"}, {"engine_print": "x"}, {"voice": "m2"}, {"emotion": "happy"}, {"intensity": 0.9},
               {"seed": 4}, {"text": Text(id="a", text="Hello there!", language="en")},
               {"text": Text(id="a", text="Hello there.", language="de")}]  # fmt: skip
    assert len({line.id, *(Line(**{**base, **change}).id for change in changes)}) == 1 + len(changes)
