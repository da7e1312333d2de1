import collections
import dataclasses
import io

import numpy as np
import pytest
import soundfile

from mser_jax.corpora.record import Utterance
from mser_jax.corpora.registry import open_corpus
from mser_jax.evaluation.incongruence import content_emotion
from mser_jax.m5ser import mini, prosody
from mser_jax.m5ser.mini import EMOTIONS, M5serMini, M5serMiniConfig, design

SETTINGS = "neutral_sentences=1;emotional_sentences=1;train_voices=m3;train_languages=en+zh;test_languages=fa"
SMALL = f"m5ser_mini:{SETTINGS}"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return open_corpus(SMALL, str(tmp_path_factory.mktemp("data")))


def test_nothing_but_the_voice_tells_the_emotion():
    lines = design(M5serMiniConfig())
    assert 3500 <= len(lines) <= 5000
    assert len({line.id for line in lines}) == len(lines)
    factors = {
        "voice and language": lambda x: (x.voice, x.language),
        "voice, language and sentence": lambda x: (x.voice, x.language, x.sentence.id),
        "words": lambda x: (x.sentence.content, x.split),
    }
    for name, factor in factors.items():
        counts = collections.defaultdict(collections.Counter)
        for line in lines:
            counts[factor(line)][line.emotion] += 1
        for value, per_emotion in counts.items():
            assert set(per_emotion) == set(EMOTIONS), (name, value)
            assert len(set(per_emotion.values())) == 1, (name, value, per_emotion)
    assert len(set(collections.Counter((x.voice, x.language) for x in lines).values())) == 1


def test_splits_by_language_and_voice():
    config = M5serMiniConfig()
    for line in design(config):
        held_out = line.language in ("fa", "pl")
        assert (line.split == "test") == held_out
        if not held_out:
            assert (line.split == "validation") == (line.voice in config.validation_voices)
    assert not set(config.train_voices) & set(config.validation_voices)
    assert {v[0] for v in config.train_voices} == {v[0] for v in config.validation_voices} == {"m", "f"}


def test_every_sentence_is_used_about_equally_in_every_language():
    lines = design(M5serMiniConfig())
    for language in {line.language for line in lines}:
        used = collections.Counter(x.sentence for x in lines if x.language == language for _ in [0]) if False else None
        used = collections.Counter(
            (x.sentence.content == "neutral", x.sentence.id) for x in lines if x.language == language
        )
        assert len(used) == 45
        for neutral in (True, False):
            counts = [n for (kind, _), n in used.items() if kind == neutral]
            assert max(counts) - min(counts) <= len(EMOTIONS)  # one voice more or less


def test_content_emotion_reads_what_the_id_says():
    for line in design(M5serMiniConfig())[::7]:
        assert content_emotion(line.id) == line.sentence.content
        assert line.id.endswith(f"-{line.emotion}")
    line = dataclasses.replace(design(M5serMiniConfig())[0], language="zh-tw")
    assert content_emotion(line.id) == "neutral"
    assert content_emotion("emodb-0001") == ""


def test_seed_and_sizes_change_the_folder_and_the_sound(monkeypatch):
    base = M5serMiniConfig()
    assert base.name == M5serMiniConfig().name
    changes = [
        {"seed": 1},
        {"neutral_sentences": 2},
        {"train_voices": ("m1", "f1")},
        {"test_languages": ("pl",)},
    ]
    names = {M5serMiniConfig(**change).name for change in changes} | {base.name}
    monkeypatch.setitem(prosody.TARGETS, "sad", prosody.Prosody(pitch_st=-3.0))
    names.add(M5serMiniConfig().name)
    assert len(names) == len(changes) + 2
    assert [x.id for x in design(base)] != [x.id for x in design(M5serMiniConfig(seed=1))]


@pytest.mark.parametrize("argument", ["sede=1", "seed=one", "seed", "name=x"])
def test_bad_arguments_list_the_settings(argument):
    with pytest.raises(ValueError, match=r"neutral_sentences"):
        M5serMini.from_argument(argument)


def test_impossible_designs_are_refused():
    with pytest.raises(ValueError, match="asks for 21 of 20"):
        M5serMiniConfig(neutral_sentences=21)
    with pytest.raises(ValueError, match="tlh"):
        M5serMiniConfig(test_languages=("tlh",))


def test_small_build_round_trips(small):
    config = M5serMini.from_argument(SETTINGS, "/nowhere").builder_config
    lines = design(config)
    assert len(lines) == len(small.source) == len(small.index) == 3 * 3 * 2 * 6
    rows = small.index.to_pylist()
    for i, (line, row) in enumerate(zip(lines, rows, strict=True)):
        utterance = Utterance.from_example(small.source[i])
        assert utterance.id == row["id"] == line.id
        assert utterance.emotion == utterance.emotion_native == row["emotion"] == line.emotion
        assert utterance.parallel_id == row["parallel_id"] == line.sentence.id
        assert utterance.speaker == row["speaker"] == f"m5ser_mini:{line.voice}"
        assert utterance.gender == {"m": "male", "f": "female"}[line.voice[0]]
        assert utterance.transcript == line.sentence.texts[line.language]
        assert (utterance.language, utterance.split) == (line.language, line.split)
        assert (utterance.corpus, utterance.domain) == ("m5ser_mini", "espeak-ng")
        assert utterance.license.startswith("Apache-2.0")
        samples, rate = soundfile.read(io.BytesIO(utterance.audio))
        assert rate == utterance.sampling_rate == 16_000
        assert len(samples) / rate == pytest.approx(row["duration_s"], abs=1e-3)
        assert 0.4 < row["duration_s"] < 8 and np.std(samples) > 0.005
        assert 50 < row["pitch_hz"] < 600 and -50 < row["loudness_db"] < -10 and row["rate"] > 0


def test_words_cross_languages(small):
    languages = collections.defaultdict(set)
    for row in small.index.to_pylist():
        languages[row["parallel_id"]].add(row["language"])
    assert any(len(found) > 1 for found in languages.values())


def test_an_utterance_does_not_depend_on_what_else_is_spoken(small, tmp_path):
    alone = open_corpus(SMALL.replace("emotional_sentences=1", "emotional_sentences=0"), str(tmp_path))
    audio = {row["id"]: small.source[i]["audio"] for i, row in enumerate(small.index.to_pylist())}
    for i, row in enumerate(alone.index.to_pylist()):
        assert alone.source[i]["audio"] == audio[row["id"]]


def test_the_default_is_registered_for_tfds():
    assert M5serMini.name == "m5ser_mini"
    assert mini.M5serMini.BUILDER_CONFIGS[0].name == M5serMiniConfig().name
