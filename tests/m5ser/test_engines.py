"""Engines by name: what a config may say, and what identifies an engine."""

import dataclasses

import pytest

from mser_jax import config as config_lib
from mser_jax.m5ser import engines
from mser_jax.m5ser.engine import UnsupportedSpeechError
from mser_jax.m5ser.espeak import EspeakEngine
from mser_jax.m5ser.mini import M5serMiniConfig
from mser_jax.m5ser.prosody import TARGETS

ARGV = "sh -c true {emotion} {out}"


def test_jitter_that_espeak_cannot_render_renames_nothing_of_its_own(monkeypatch):
    def names():
        return engines.fingerprint(EspeakEngine()), M5serMiniConfig().name

    before = names()
    monkeypatch.setitem(TARGETS, "sad", dataclasses.replace(TARGETS["sad"], jitter_pct=9.0))
    assert names() == before
    monkeypatch.setitem(TARGETS, "sad", dataclasses.replace(TARGETS["sad"], pitch_st=-9.0))
    assert all(new != old for new, old in zip(names(), before, strict=True))


def test_two_sections_may_use_one_engine():
    one, other = (
        engines.build_engine(name, {"engine": "command", "argv": ARGV, "name": name, "voices": "a", "languages": "en"})
        for name in ("left", "right")
    )
    assert (one.name, other.name) == ("left", "right")
    assert engines.fingerprint(one) != engines.fingerprint(other)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("espeek", {}, "no engine 'espeek'. Did you mean 'espeak'"),
        ("mine", {"engine": "comand"}, "no engine 'comand'. Did you mean 'command'"),
        ("espeak", {"voice": "m1"}, "engine espeak: no option 'voice'.*none"),
        ("command", {"argv": ARGV, "voice": "a"}, "Did you mean 'voices'"),
        ("command", {"voices": "a", "argv": ""}, "engine command: option 'argv' is missing"),
        ("kokoro", {}, "engine kokoro: option 'directory' is missing"),
    ],
)
def test_wrong_names_and_missing_options(name, options, words):
    with pytest.raises(ValueError, match=words):
        engines.build_engine(name, options)


def test_every_section_of_the_config_names_an_engine_and_its_options():
    for name, section in config_lib.load("configs/m5ser.py").engines.items():
        options = section.options.to_dict()
        assert section.enabled == (name == "espeak")
        with pytest.raises(ValueError) as caught:
            engines.build_engine(name, {**options, "no_such_option": 1})
        assert "'no_such_option'" in str(caught.value)  # so all the others are known


@pytest.mark.parametrize(
    "languages, voices",
    [("en,de", "anna, ben"), ("", "en: anna, ben; de: anna,ben"), ("de,en", {"en": "anna,ben", "de": "anna, ben"})],
)
def test_a_table_of_voices(languages, voices):
    table = engines.voice_table(languages, voices)
    assert table == {"en": ("anna", "ben"), "de": ("anna", "ben")}
    engines.check_voice(table, "de", "ben", "x")
    with pytest.raises(UnsupportedSpeechError, match="x has no voice 'eve' in 'de'; there is anna, ben"):
        engines.check_voice(table, "de", "eve", "x")
    with pytest.raises(UnsupportedSpeechError, match="x does not speak 'fr'; there is de, en"):
        engines.voices_of(table, "fr", "x")


@pytest.mark.parametrize(
    "languages, voices", [("", "anna"), ("en", ""), ("en", "en:"), ("en", "en: a; de: b"), ("", {})]
)
def test_tables_that_say_too_little(languages, voices):
    with pytest.raises(ValueError, match="which voices speak which languages"):
        engines.voice_table(languages, voices)
