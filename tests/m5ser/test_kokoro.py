"""What reaches the model, against a fake of its package; the real one where MSER_KOKORO names its folder."""

import importlib.machinery
import importlib.util
import os
import pathlib
import sys
import types

import espeakng_loader
import librosa
import numpy as np
import pytest

from mser_jax.m5ser import engines, kokoro
from mser_jax.m5ser.engine import Engine, UnsupportedSpeechError
from mser_jax.m5ser.engines import EngineError
from mser_jax.m5ser.espeak import EspeakEngine
from mser_jax.m5ser.prosody import Prosody

pytest.importorskip("pyworld")
RATE = 24000
VOICES = ("af_heart", "am_adam", "bf_emma", "ef_dora", "jf_alpha", "zf_xiaobei")
# What pinyin-to-ipa 1.0.1 gives, first variants.
IPA = {
    "shu1": "ʂu˥", "zai4": "tsai̯˥˩", "jia4": "tɕja˥˩", "zi5": "tsɹ̩", "shang4": "ʂa˥˩ŋ", "you3": "jou̯˧˩˧",
    "ta1": "tʰa˥", "qiang1": "tɕʰja˥ŋ", "yao4": "jau̯˥˩", "kai1": "kʰai̯˥", "le5": "lɤ", "ren2": "ɻə˧˥n",
    "zhong1": "ʈʂʊ˥ŋ",
}  # fmt: skip


def package(name, **content):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(content)
    return made


class FakeKokoro:
    """Speaks 40 ms of a 150 Hz buzz a phoneme; keeps what it was asked for."""

    asked: list  # of the test

    def __init__(self, session, voices_path, espeak_config):
        self.voices = np.load(voices_path)
        self.tokenizer = types.SimpleNamespace(phonemize=lambda text, lang: f"{lang}:{text}")
        self.asked.append({"session": session, "espeak": espeak_config})

    @classmethod
    def from_session(cls, session, voices_path, espeak_config=None):
        return cls(session, voices_path, espeak_config)

    def create(self, phonemes, voice, speed, is_phonemes):
        self.asked.append({"phonemes": phonemes, "style": voice, "speed": speed, "is_phonemes": is_phonemes})
        if "unspeakable" in phonemes:
            raise ValueError("Nothing to synthesize")
        time = np.arange(round(0.04 * len(phonemes) / speed * RATE)) / RATE
        wave = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 12))
        return (0.1 * wave).astype(np.float32), RATE


@pytest.fixture
def asked(monkeypatch):
    """What the package was asked for; the package is a fake."""
    made = []
    monkeypatch.setattr(FakeKokoro, "asked", made, raising=False)
    options = type("SessionOptions", (), {})
    espeak = lambda lib_path, data_path: types.SimpleNamespace(lib_path=lib_path, data_path=data_path)  # noqa: E731
    monkeypatch.setitem(sys.modules, "kokoro_onnx", package("kokoro_onnx", Kokoro=FakeKokoro, EspeakConfig=espeak))
    session = lambda path, options, providers: (path, options.intra_op_num_threads, providers)  # noqa: E731
    onnx = {"SessionOptions": options, "InferenceSession": session, "get_available_providers": lambda: ["CPU"]}
    monkeypatch.setitem(sys.modules, "onnxruntime", package("onnxruntime", **onnx))
    ipa = package("pinyin_to_ipa", pinyin_to_ipa=lambda syllable: [(IPA[syllable],)])
    monkeypatch.setitem(sys.modules, "pinyin_to_ipa", ipa)
    monkeypatch.setattr(kokoro, "_version", lambda: "0.6.1")
    return made


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kokoro-v1.0.int8.onnx").write_bytes(b"weights")
    styles = {name: np.full((510, 1, 256), number, np.float32) for number, name in enumerate(VOICES)}
    with (tmp_path / "voices-v1.0.bin").open("wb") as file:
        np.savez(file, **styles)
    return tmp_path


def make(folder, **options):
    return engines.build_engine("kokoro", {"directory": str(folder), **options})


def speak(engine, text="The letter is lying on the table.", **change):
    how = {"language": "en", "voice": "af_heart", "emotion": "neutral", "intensity": 1.0, "seed": 7}
    return engine.speak(text, **how | change)


def test_voices_say_their_languages_and_mixes_are_new_ones(folder, asked):
    engine = make(folder, mixes="af_heart+am_adam, ef_dora*0.7+af_heart*0.3", borrowed="de: am_adam, af_heart+bf_emma")
    assert isinstance(engine, Engine) and engine.languages() == ("de", "en", "es", "zh")
    assert engine.voices("en") == ("af_heart", "am_adam", "bf_emma", "af_heart+am_adam")
    assert engine.voices("es") == ("ef_dora", "ef_dora*0.7+af_heart*0.3")
    assert engine.voices("de") == ("am_adam", "af_heart+bf_emma")
    assert not asked  # no model is loaded to plan


def test_style_speed_and_phonemes_reach_the_model(folder, asked, monkeypatch):
    monkeypatch.setattr("mser_jax.m5ser.prosody.JITTER", Prosody())
    engine = make(folder, mixes="ef_dora*3+af_heart*1", borrowed={"de": "bf_emma"}, threads=2)
    neutral, sad = (speak(engine, emotion=e, intensity=i) for e, i in (("neutral", 1.0), ("sad", 0.5)))
    loaded, first, second = asked
    assert loaded["session"] == (str(folder / "kokoro-v1.0.int8.onnx"), 2, ["CPU"])
    assert first["phonemes"] == "en-us:The letter is lying on the table." and first["is_phonemes"]
    assert first["style"].shape == (510, 1, 256) and (first["style"] == VOICES.index("af_heart")).all()
    assert (first["speed"], second["speed"]) == pytest.approx((1.0, 2**-0.2))
    # The model has taken the speed; WORLD must not stretch the sound again.
    for speech, request in ((neutral, first), (sad, second)):
        seconds = 0.04 * len(request["phonemes"]) / request["speed"]
        assert len(speech.waveform) / RATE == pytest.approx(seconds, rel=0.005)
        assert speech.sampling_rate == RATE and speech.waveform.dtype == np.float32
    f0 = [np.median(librosa.yin(s.waveform, fmin=80, fmax=400, sr=RATE)) for s in (neutral, sad)]
    assert 12 * np.log2(f0[1] / f0[0]) == pytest.approx(-2.5 / 2, abs=0.25)
    speak(engine, "Hola.", language="es", voice="ef_dora*3+af_heart*1")
    assert asked[-1]["style"].mean() == pytest.approx(0.75 * VOICES.index("ef_dora"))
    assert asked[-1]["phonemes"] == "es:Hola."
    speak(engine, "Guten Tag!", language="de", voice="bf_emma")
    assert asked[-1]["phonemes"] == "de:Guten Tag."
    speak(engine, "Good day?", voice="bf_emma")
    assert asked[-1]["phonemes"] == "en-gb:Good day."
    assert len([a for a in asked if "session" in a]) == 1


def test_everything_used_is_in_the_metadata(folder, asked):
    told = dict(speak(make(folder, mixes="af_heart+bf_emma"), voice="af_heart+bf_emma", emotion="fear").metadata)
    wanted = {"engine": "kokoro", "version": "0.6.1", "model": "kokoro-v1.0.int8.onnx", "voice": "af_heart+bf_emma"}
    wanted |= {"language": "en", "emotion": "fear", "intensity": 1.0, "seed": 7, "gender": "female"}
    assert wanted.items() <= told.items()
    assert told["speed"] == pytest.approx(2 ** told["rate_oct"]) and told["phonemes"] == asked[-1]["phonemes"]
    assert {"pitch_st", "range_oct", "volume_db", "tilt_db", "rise", "jitter_pct", "pyworld"} <= set(told)


def test_its_espeak_is_not_that_of_the_engine_espeak(folder, asked):
    engine = make(folder)
    speak(engine)
    copy, own = pathlib.Path(asked[0]["espeak"].lib_path), pathlib.Path(espeakng_loader.get_library_path())
    assert not copy.samefile(own) and copy.read_bytes() == own.read_bytes()


def test_mandarin_has_one_letter_affricates_and_arrows_for_tones(folder, asked):
    assert kokoro.mandarin("书在架子上。") == "ʂu→ ʦai↘ ʨja↘ʦɨ ʂa↘ŋ."
    assert kokoro.mandarin("他有枪，他要开枪了！").startswith("tʰa→ jou↓ ʨʰja→ŋ, tʰa→ jau↘ ")
    assert kokoro.mandarin("中人") in ("ꭧʊ→ŋ ɻə↗n", "ꭧʊ→ŋɻə↗n")
    speak(make(folder), "书在架子上！", language="zh", voice="zf_xiaobei")
    assert asked[-1]["phonemes"] == "ʂu→ ʦai↘ ʨja↘ʦɨ ʂa↘ŋ."


def test_the_fingerprint_sees_the_weights_and_not_the_place(folder, asked, tmp_path_factory):
    first = engines.fingerprint(make(folder))
    assert first == engines.fingerprint(make(folder, threads=3, mixes="af_heart+am_adam"))
    other = tmp_path_factory.mktemp("other")
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert engines.fingerprint(make(other)) == first
    (other / "kokoro-v1.0.int8.onnx").write_bytes(b"finer weights")
    kokoro._digest.cache_clear()
    assert engines.fingerprint(make(other)) != first


def test_a_text_that_the_model_cannot_speak_fails_alone(folder, asked):
    engine = make(folder)
    with pytest.raises(EngineError, match=r"unspeakable.*en, af_heart.*Nothing to synthesize"):
        speak(engine, "unspeakable")
    assert len(speak(engine).waveform)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"language": "ja", "voice": "jf_alpha"}, "'ja'.*en, es, zh"),
        ({"voice": "ef_dora"}, "'ef_dora' in 'en'.*af_heart, am_adam"),
        ({"emotion": "disgust"}, "'disgust'.*angry"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(folder, asked, change, words):
    with pytest.raises(UnsupportedSpeechError, match=words):
        speak(make(folder), **change)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"model": "other.onnx"}, "expected one file other.onnx"),
        ({"mixes": "af_heart*much"}, "'much' is no weight"),
        ({"mixes": "af_hart+am_adam"}, "no voice 'af_hart'.*af_heart"),
        ({"borrowed": {"de": "nobody"}}, "no voice 'nobody'"),
        ({"mix": "a"}, "Did you mean 'mixes'"),
    ],
)
def test_bad_options_are_said_at_once(folder, asked, options, words):
    with pytest.raises(ValueError, match=words):
        make(folder, **options)


def test_a_folder_without_the_model_and_a_missing_package(tmp_path, asked, monkeypatch):
    with pytest.raises(ValueError, match=r"expected one file \*.onnx.*there is none"):
        make(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "kokoro_onnx" else real(name))
    with pytest.raises(ValueError, match="pip install kokoro-onnx"):
        make(tmp_path)
    monkeypatch.setitem(sys.modules, "pinyin_to_ipa", None)
    with pytest.raises(ImportError, match="pip install pinyin-to-ipa"):
        kokoro.mandarin("书")


REAL = os.environ.get("MSER_KOKORO", "")


@pytest.mark.skipif(
    not REAL or importlib.util.find_spec("kokoro_onnx") is None,
    reason="MSER_KOKORO names no folder with kokoro-v1.0.int8.onnx and voices-v1.0.bin, or kokoro-onnx is missing",
)
def test_the_real_model():
    engine = make(REAL, mixes="af_heart*0.6+am_adam*0.4")
    sentences = {
        "en": "The letter is lying on the kitchen table.", "es": "La carta está en la mesa de la cocina.",
        "fr": "La lettre est sur la table de la cuisine.", "hi": "किताब मेज पर रखी हुई है।",
        "it": "La lettera è sul tavolo della cucina.", "zh": "书在架子上，窗户开着。",
    }  # fmt: skip
    if importlib.util.find_spec("pinyin_to_ipa") is None:
        del sentences["zh"]
    for language, text in sentences.items():
        voice = engine.voices(language)[0]
        neutral, again, fear, sad = (
            speak(engine, text, language=language, voice=voice, emotion=e)
            for e in ("neutral", "neutral", "fear", "sad")
        )
        np.testing.assert_array_equal(neutral.waveform, again.waveform)
        assert 1 < len(neutral.waveform) / RATE < 5, language
        assert len(fear.waveform) < len(neutral.waveform) < len(sad.waveform), language
        f0 = [np.median(_pitch(speech.waveform)) for speech in (sad, neutral, fear)]
        assert f0[0] < f0[1] < f0[2], (language, f0)
    mixed = [speak(engine, voice=voice).waveform for voice in ("af_heart", "am_adam", "af_heart*0.6+am_adam*0.4")]
    f0 = [np.median(_pitch(waveform)) for waveform in mixed]
    assert f0[1] < f0[2] < f0[0]
    # espeak's own library is still its own.
    how = {"language": "en", "voice": "m1", "emotion": "sad", "intensity": 1.0, "seed": 1}
    assert len(EspeakEngine().speak("Both in one process.", **how).waveform)


def _pitch(waveform):
    f0 = librosa.yin(waveform, fmin=70, fmax=500, sr=RATE, frame_length=2048, hop_length=512)
    level = librosa.feature.rms(y=waveform, frame_length=2048, hop_length=512)[0]
    return f0[level > 0.3 * level.max()]
