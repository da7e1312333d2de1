import concurrent.futures
import hashlib
import json
import subprocess
import sys

import librosa
import numpy as np
import pytest

from mser_jax.m5ser import prosody
from mser_jax.m5ser.engine import Engine, UnsupportedSpeechError
from mser_jax.m5ser.espeak import EspeakEngine, spoken_form
from mser_jax.m5ser.mini import M5serMiniConfig
from mser_jax.m5ser.prosody import JITTER, TARGETS, Prosody
from mser_jax.m5ser.texts import load_sentences

VOICES = (*M5serMiniConfig().train_voices, *M5serMiniConfig().validation_voices)
# Voices with noise, echo, flutter, and a Klatt synthesiser, where state could leak from.
CASES = [
    (language, voice, emotion, seed)
    for seed, (voice, emotion) in enumerate(
        [
            ("m1", "angry"),
            ("f2", "sad"),
            ("f5", "fear"),
            ("m7", "surprise"),
            ("whisper", "happy"),
            ("klatt", "neutral"),
        ]
    )
    for language in ("en", "zh", "fa")
]
PROGRAM = """
import hashlib, json, sys
from mser_jax.m5ser.espeak import EspeakEngine
from mser_jax.m5ser.texts import load_sentences
texts, engine = load_sentences()[3].texts, EspeakEngine()
for language, voice, emotion, seed in json.loads(sys.argv[1]):
    how = dict(language=language, voice=voice, emotion=emotion, intensity=0.9, seed=seed)
    print(hashlib.sha256(engine.speak(texts[language], **how).waveform.tobytes()).hexdigest())
"""


def _speak(text, language="en", voice="m3", emotion="neutral", intensity=1.0, seed=0):
    return EspeakEngine().speak(text, language=language, voice=voice, emotion=emotion, intensity=intensity, seed=seed)


def _digests(cases):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cases)], capture_output=True, text=True, check=True
    )
    return dict(zip(map(tuple, cases), done.stdout.split(), strict=True))


def test_same_samples_in_any_order_and_process():
    shuffled = [CASES[i] for i in np.random.default_rng().permutation(len(CASES))]
    forward, other = _digests(CASES), _digests(shuffled)
    assert forward == other
    texts = load_sentences()[3].texts
    for case in CASES[::5]:  # and in this process, after whatever was spoken here before
        language, voice, emotion, seed = case
        speech = _speak(texts[language], language, voice, emotion, 0.9, seed)
        assert hashlib.sha256(speech.waveform.tobytes()).hexdigest() == forward[case]
    assert len(set(forward.values())) == len(CASES)


def test_same_samples_from_threads():
    texts = [s.texts["de"] for s in load_sentences()[:12]]
    alone = [_speak(text, "de").waveform for text in texts]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: _speak(text, "de").waveform, texts))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_library_that_others_hold_is_refused():
    program = "import ctypes, espeakng_loader; keep = ctypes.CDLL(espeakng_loader.get_library_path())\n" + PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(CASES[:1])], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "already loaded in this process" in done.stderr


def test_is_an_engine_and_the_seed_matters():
    assert isinstance(EspeakEngine(), Engine)
    a, b = (_speak("The window is open.", seed=seed) for seed in (1, 2))
    assert a.waveform.dtype == np.float32 and a.sampling_rate == 22050
    assert a.metadata["pitch_st"] != b.metadata["pitch_st"]
    assert len(a.waveform) != len(b.waveform) or (a.waveform != b.waveform).any()


def test_every_sentence_is_audible_in_every_language():
    for sentence in load_sentences():
        for language, text in sentence.texts.items():
            speech = _speak(text, language, "f2")
            seconds = len(speech.waveform) / speech.sampling_rate
            assert 0.4 < seconds < 8, (sentence.id, language, seconds)
            assert np.sqrt(np.mean(speech.waveform**2)) > 0.01, (sentence.id, language)
            assert np.abs(speech.waveform).max() < 1


def test_silence_is_trimmed():
    for language in ("en", "zh"):
        waveform = _speak(load_sentences()[1].texts[language], language).waveform
        level = librosa.feature.rms(y=waveform, frame_length=882, hop_length=441, center=False)[0]
        level_db = 20 * np.log10(level / level.max())  # 40 ms blocks
        assert level_db[:2].max() > -50 and level_db[-3:].max() > -50


def test_mandarin_is_spoken_from_pinyin():
    assert spoken_form("书在架子上。", "zh") == "shu1 zai4 jia4 zi5 shang4"
    assert spoken_form("他有枪，他要开枪了！", "zh") == "ta1 you3 qiang1 , ta1 yao4 kai1 qiang1 le5"
    assert spoken_form("女", "zh") == "nv3"  # espeak-ng reads nü3 as English
    for sentence in load_sentences():
        hanzi = sentence.texts["zh"]
        assert spoken_form(hanzi, "zh").isascii()
        pinyin, own = _speak(hanzi, "zh"), _speak(hanzi, "cmn")
        # espeak-ng 1.52 reads hanzi, too, from its own dictionary: an independent reading of the same text.
        assert len(pinyin.waveform) == pytest.approx(len(own.waveform), rel=0.15)
        per_syllable = len(pinyin.waveform) / pinyin.sampling_rate / sum(c.isalpha() for c in hanzi)
        assert 0.12 < per_syllable < 0.4


def test_the_end_mark_is_prosody_not_text():
    a, b, c = (_speak(text, "es", emotion="sad", seed=4).waveform for text in ("¡Sal ya!", "Sal ya.", "¿Sal ya?"))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"language": "tlh"}, r"'tlh'.*\bde\b.*\bzh\b"),
        ({"voice": "m99"}, r"'m99'.*\bf1\b.*\bm1\b"),
        ({"emotion": "disgust"}, r"'disgust'.*angry"),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(change, message):
    with pytest.raises(UnsupportedSpeechError, match=message):
        _speak("Hello.", **change)


def test_text_without_speech_is_an_error():
    with pytest.raises(RuntimeError, match="spoke nothing"):
        _speak("...")


@pytest.fixture(scope="module")
def measured():
    """voice, language, emotion -> means of what _measure returns, jitter off."""
    patch = pytest.MonkeyPatch()
    patch.setattr("mser_jax.m5ser.prosody.JITTER", Prosody())
    texts = [load_sentences()[i].texts for i in (1, 7, 12)]
    try:
        return {
            (voice, language, emotion): np.mean(
                [_measure(_speak(t[language], language, voice, emotion, seed=1)) for t in texts], axis=0
            )
            for voice in VOICES
            for language in ("en", "pl")
            for emotion in TARGETS
        }
    finally:
        patch.undo()


def _measure(speech):
    y, rate = speech.waveform, speech.sampling_rate
    f0 = np.log2(librosa.yin(y, fmin=55, fmax=600, sr=rate, frame_length=1024, hop_length=256))
    level = librosa.feature.rms(y=y, frame_length=1024, hop_length=256)[0][: len(f0)]
    f0 = f0[: len(level)][level > 0.15 * level.max()]
    f0 = f0[np.abs(f0 - np.median(f0)) < 0.8]
    centroid = librosa.feature.spectral_centroid(y=y, sr=rate)[0]
    power = 10 * np.log10(np.mean(np.square(y)))
    return np.median(f0), f0.std(), len(y) / rate, power, np.log2(np.median(centroid))


@pytest.mark.parametrize("voice", VOICES)
@pytest.mark.parametrize("language", ["en", "pl"])
def test_directions_can_be_measured(measured, voice, language):
    names = ("pitch", "spread", "seconds", "level", "brightness")
    m = {e: dict(zip(names, measured[voice, language, e], strict=True)) for e in TARGETS}
    semitones = {e: 12 * (m[e]["pitch"] - m["neutral"]["pitch"]) for e in m}
    for emotion, target in TARGETS.items():
        assert semitones[emotion] == pytest.approx(target.pitch_st, abs=1.2), emotion
    assert m["sad"]["seconds"] > 1.15 * m["neutral"]["seconds"] > 1.25 * m["angry"]["seconds"]
    assert m["fear"]["seconds"] < m["angry"]["seconds"]
    assert m["angry"]["level"] - m["neutral"]["level"] == pytest.approx(5, abs=1.5)
    assert m["sad"]["level"] - m["neutral"]["level"] == pytest.approx(-4, abs=1.5)
    assert max(m["sad"]["spread"], m["fear"]["spread"]) < m["neutral"]["spread"]
    assert m["neutral"]["spread"] < min(m["happy"]["spread"], m["angry"]["spread"])
    assert m["sad"]["brightness"] < m["neutral"]["brightness"] < m["angry"]["brightness"]


def test_neighbours_overlap_through_jitter():
    # Learnable but not trivial: one cue alone leaves confusions, all of them together do not.
    gap = {n: abs(getattr(TARGETS["happy"], n) - getattr(TARGETS["angry"], n)) for n in ("pitch_st", "volume_db")}
    assert all(0.5 < gap[n] / getattr(JITTER, n) < 3 for n in gap)


def test_tilt_changes_the_slope_but_not_the_level():
    noise = np.random.default_rng().normal(0, 0.05, 22050).astype(np.float32)
    tilted = prosody.tilt_spectrum(noise, 22050, 3.0)
    power = np.abs(np.fft.rfft([noise, tilted])) ** 2
    bands = [power[:, round(f / 1.2) : round(f * 1.2)].mean(axis=1) for f in (250, 500, 1000, 2000, 4000)]
    gains = [10 * np.log10(after / before) for before, after in bands]
    assert np.diff(gains) == pytest.approx(3.0, abs=0.7)
    assert np.std(tilted) == pytest.approx(np.std(noise), rel=1e-3)
