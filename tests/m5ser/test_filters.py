"""Filters of the waveform: on signals whose measures are known, on real recordings, on espeak-ng's own speech."""

import io
import json

import numpy as np
import pytest
import scipy.signal
import soundfile

from mser_jax.config import ConfigError
from mser_jax.m5ser import filters
from mser_jax.m5ser.espeak import EspeakEngine
from mser_jax.m5ser.lines import Line, Text

RATE = 16_000
CHEAP = ("duration", "silence", "clipping", "loudness", "duplicates")


def line(text="Nobody came to the party.", emotion="angry", language="en", voice="m1"):
    return Line(
        text=Text(id=text, text=text, language=language),
        engine="e",
        voice=voice,
        emotion=emotion,
        intensity=1.0,
        seed=0,
    )


def candidate(samples, **of_line):
    if samples.dtype != np.int16:
        samples = np.round(np.clip(samples, -1, 32767 / 32768) * 32768).astype(np.int16)
    return filters.Candidate(waveform=samples, line=line(**of_line))


def measure(name, *batch, **options):
    (made,) = filters.build_filters({name: {"enabled": True, **options}})
    return made.measure(batch)


def sine(seconds, frequency=440.0, amplitude=0.3):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)


def espeak(text="The river froze over last night.", emotion="neutral", language="en", voice="m1", intensity=1.0):
    speech = EspeakEngine().speak(
        text, language=language, voice=voice, emotion=emotion, intensity=intensity, seed=1
    )  # fmt: skip
    return scipy.signal.resample_poly(speech.waveform, 320, 441)


@pytest.mark.parametrize(
    ("seconds", "text", "reason"),
    [
        (2.0, "Nobody came to the party.", ""),  # 21 letters: 10.5 a second
        (0.25, "No.", "short"),
        (21.0, "Nobody came to the party. " * 10, "long"),
        (8.0, "Nobody came to the party.", "rate"),
        (0.5, "Nobody came to the party.", "rate"),
        (1.0, "没有人来参加聚会。", ""),  # 8 Han, each three, and a mark
        (10.0, "没有人来参加聚会。", "rate"),
    ],
)
def test_duration(seconds, text, reason):
    (found,) = measure("duration", candidate(sine(seconds), text=text))
    assert found.reason == reason
    assert found.measures["letters_per_second"] == pytest.approx(
        {"N": len(text.replace(" ", "")), "没": 25}[text[0]] / seconds, abs=0.01
    )


def test_silence_is_found_where_it_is():
    quiet = np.random.default_rng(0).normal(0, 1e-4, 5 * RATE)
    spoken, early, late, gaps = quiet[:RATE].copy(), quiet.copy(), quiet.copy(), quiet.copy()
    spoken += sine(1.0)
    early[: 2 * RATE] += sine(2.0)
    late[round(1.8 * RATE) : 4 * RATE] += sine(2.2)
    for begin in range(0, 5 * RATE, RATE):
        gaps[begin : begin + RATE // 5] += sine(0.2)
    whole, early, late, gaps = measure("silence", *map(candidate, (spoken, early, late, gaps)))
    assert whole.measures == {"silent_share": 0, "leading_s": 0, "trailing_s": 0} and not whole.reason
    assert early.measures == {"silent_share": 0.6, "leading_s": 0, "trailing_s": 3.0} and early.reason == "silence"
    assert late.measures == {"silent_share": 0.56, "leading_s": 1.8, "trailing_s": 1.0} and late.reason == "silence"
    assert gaps.measures["silent_share"] == 0.8 and gaps.reason == "silence" and gaps.measures["trailing_s"] == 0.8
    (nothing,) = measure("silence", candidate(np.zeros(RATE)))
    assert nothing.reason == "silence" and nothing.measures["silent_share"] == 1


def test_clipping_is_found_also_where_it_was_made_quieter():
    rng = np.random.default_rng(0)
    speech = 0.1 * scipy.signal.lfilter([1], [1, -0.9], rng.normal(0, 1, 2 * RATE))
    flat = np.clip(speech, -0.4, 0.4)
    top = np.count_nonzero(np.abs(speech) >= 0.4) / len(speech)
    found = measure("clipping", *map(candidate, (speech, np.clip(3 * speech, -1, 1), flat, 0.2 * flat)))
    assert [verdict.reason for verdict in found] == ["", "clipping", "clipping", "clipping"]
    assert found[2].measures["clipped_share"] == pytest.approx(top, rel=0.1)
    assert found[0].measures["clipped_share"] < 1e-4


def reference_lufs(samples):
    """BS.1770-4 as it is written: filters over the samples at 48 kHz, blocks of 400 ms every 100 ms, two gates."""
    weighted = scipy.signal.resample_poly(samples, 3, 1)
    weighted = scipy.signal.lfilter(
        [1.53512485958697, -2.69169618940638, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585], weighted
    )
    weighted = scipy.signal.lfilter([1, -2, 1], [1, -1.99004745483398, 0.99007225036621], weighted)
    powers = np.array([np.mean(weighted[i : i + 19200] ** 2) for i in range(0, len(weighted) - 19200 + 1, 4800)])
    powers = powers[powers > 10 ** (-69.309 / 10)]
    powers = powers[10 * np.log10(powers) > 10 * np.log10(powers.mean()) - 10]
    return -0.691 + 10 * np.log10(powers.mean())


def test_loudness_is_that_of_the_standard():
    (full,) = measure("loudness", candidate(sine(3.0, 997.0, 1.0)))
    assert full.measures["lufs"] == pytest.approx(-3.01, abs=0.05) and full.reason == "loud"  # as the standard says
    for speech in (espeak(), espeak(emotion="sad"), np.concatenate([np.zeros(2 * RATE), espeak(emotion="angry")])):
        (found,) = measure("loudness", candidate(speech))
        assert found.measures["lufs"] == pytest.approx(reference_lufs(speech), abs=0.2) and not found.reason
    short, faint, nothing = measure(
        "loudness", candidate(sine(0.25, 997.0, 0.5)), candidate(sine(1.0, 997.0, 0.002)), candidate(np.zeros(RATE))
    )
    assert short.measures["lufs"] == pytest.approx(-9.03, abs=0.1)
    assert (faint.reason, nothing.reason) == ("quiet", "quiet") and "lufs" not in nothing.measures


def through(samples, kind):
    if kind in ("OGG", "MP3"):
        file = io.BytesIO()
        soundfile.write(file, samples, RATE, format=kind)
        file.seek(0)
        return soundfile.read(file)[0][: len(samples)]
    noise = np.random.default_rng(0).normal(0, 0.03 * samples.std(), len(samples))
    return {"quiet": 0.1 * samples, "noise": samples + noise, "late": samples[80:]}[kind]


@pytest.mark.parametrize("kind", ["quiet", "noise", "late", "OGG", "MP3"])
def test_copies_are_found(kind):
    said = espeak()
    found = measure("duplicates", candidate(said, emotion="sad"), candidate(through(said, kind), emotion="sad"))
    assert [verdict.reason for verdict in found] == ["", "duplicate"], "the first passes"
    found = measure("duplicates", candidate(said, emotion="sad"), candidate(through(said, kind), emotion="happy"))
    assert [verdict.reason for verdict in found] == ["duplicate"] * 2, "one of the labels is wrong"
    assert all(verdict.measures["similarity"] >= 0.94 for verdict in found)


def test_the_same_samples_are_found_for_any_words_and_voice():
    said, other = espeak(), espeak(voice="f2")
    batch = candidate(said), candidate(other, voice="f2"), candidate(said, text="Sorry?", voice="f2")
    found = measure("duplicates", *batch)
    assert [verdict.reason for verdict in found] == ["", "", "duplicate"]
    hashes = [verdict.measures["audio_hash"] for verdict in found]
    assert hashes[0] == hashes[2] != hashes[1]
    assert json.loads(json.dumps(hashes[0])) == hashes[0] == int(hashes[0]), "survives the provenance"
    assert measure("duplicates", *batch) == found


def test_emotions_of_the_same_words_are_no_copies():
    emotions = ("angry", "fear", "happy", "neutral", "sad", "surprise")
    for voice, intensity in (("m3", 1.0), ("f2", 0.6)):
        found = measure(
            "duplicates",
            *(candidate(espeak(emotion=e, voice=voice, intensity=intensity), emotion=e, voice=voice) for e in emotions),
        )
        assert {verdict.reason for verdict in found} == {""}


def test_real_recordings_pass(shared):
    rows = [json.loads(row) for row in (shared / "speech" / "manifest.jsonl").read_text().splitlines()][::120]
    batch = [
        candidate(
            soundfile.read(shared / "speech" / row["path"], dtype="int16")[0],
            text=row["transcript"] or "", language=row["language"], emotion=row["emotion"], voice=row["path"],
        )
        for row in rows
    ]  # fmt: skip
    for made in filters.build_filters(filters.DEFAULTS):
        reasons = [verdict.reason for verdict in made.measure(batch)]
        assert reasons.count("") >= len(batch) - 1, (made.name, reasons)


def test_each_is_switched_by_its_section():
    assert tuple(made.name for made in filters.build_filters(filters.DEFAULTS)) == CHEAP
    assert not filters.build_filters({})
    some = {name: {**section, "enabled": name == "loudness"} for name, section in filters.DEFAULTS.items()}
    some["loudness"]["max_lufs"] = -3.5
    (loudness,) = filters.build_filters(some)
    assert loudness.measure([candidate(sine(3.0, 997.0, 1.0))])[0].reason == "loud"
    assert not loudness.measure([candidate(sine(3.0, 997.0, 0.9))])[0].reason, "-3.9 LUFS"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"loudnes": {}}, "Did you mean 'loudness'"),
        ({"silence": {"max_shar": 0.1}}, "Did you mean 'max_share'"),
        ({"intelligibility": {"enabled": True}}, "config.filters.intelligibility.model="),
        ({"emotion": {"enabled": True}}, "config.filters.emotion.checkpoint="),
        ({"intelligibility": {"enabled": True, "model": "/no/such"}}, "no config.json"),
        ({"emotion": {"enabled": True, "checkpoint": "/no/such"}}, "no checkpoint below"),
    ],
)
def test_sections_that_cannot_be(section, message):
    with pytest.raises(ConfigError) as refused:
        filters.build_filters(section)
    assert message in str(refused.value)
