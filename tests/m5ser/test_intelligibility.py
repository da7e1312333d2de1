"""Character errors against their definition; Whisper as a tiny random model, and the real one where there is one."""

import functools
import random

import numpy as np
import pytest
import scipy.signal
import tokenizers
import torch
import transformers

from mser_jax.config import ConfigError
from mser_jax.m5ser.espeak import EspeakEngine
from mser_jax.m5ser.filters import Candidate, Intelligibility
from mser_jax.m5ser.filters.intelligibility import character_error_rate, plain
from mser_jax.m5ser.lines import Line, Text


def candidate(samples, text, language):
    waveform = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    line = Line(
        text=Text(id="t", text=text, language=language), engine="e", voice="v", emotion="sad", intensity=1.0, seed=0
    )
    return Candidate(waveform=waveform, line=line)


def test_errors_are_the_fewest_edits():
    @functools.cache
    def edits(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))

    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 7))) for _ in range(2))
        assert character_error_rate(b, a) == (pytest.approx(edits(a, b) / len(a)) if a else 0), (a, b)


def test_what_counts_of_a_text():
    assert plain("Où est l'Été, 3 fois ?") == "oùestlété3fois"
    assert plain("ﬁne ＡＢ") == "fineab"
    assert character_error_rate("他們走了", "她们走了。") == 0, "homophones, in traditional characters"
    assert character_error_rate("Tā zǒu", "他走") > 0, "which is not what a recogniser writes"
    assert character_error_rate("", "Nobody") == 1
    assert character_error_rate("abcabcabc", "abc") == 2, "more than all of it"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of a random Whisper whose tokenizer knows letters, English and German."""
    folder = tmp_path_factory.mktemp("whisper")
    words = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    words += ["<|notimestamps|>", *"abcdefghijklmnopqrstuvwxyz "]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=" "))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    model.decoder = tokenizers.decoders.Fuse()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<|endoftext|>", additional_special_tokens=words[1:7]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=64, bos_token_id=0,
        eos_token_id=0, pad_token_id=0, decoder_start_token_id=1, begin_suppress_tokens=None, init_std=1.0,
    )  # fmt: skip
    whisper = transformers.WhisperForConditionalGeneration(config)
    whisper.generation_config.begin_suppress_tokens = None
    whisper.save_pretrained(folder)
    return folder


def test_a_random_model_understands_nothing(tiny):
    rng = np.random.default_rng(0)
    texts = [
        ("nobody came", "en"),
        ("kam keiner von allen", "de-AT"),
        ("nadie vino", "es"),
        ("", "en"),
        ("all went", "en"),
    ]
    batch = [candidate(0.1 * rng.standard_normal(8000 + 800 * i), *text) for i, text in enumerate(texts)]
    verdicts = Intelligibility(model=str(tiny), batch_size=2).measure(batch)
    assert [bool(verdict.measures) for verdict in verdicts] == [True, True, False, False, True]
    assert [verdict.reason for verdict in verdicts] == ["intelligibility"] * 2 + ["", "", "intelligibility"]
    alone = Intelligibility(model=str(tiny), batch_size=1, max_cer=99.0).measure(batch)
    assert [verdict.measures for verdict in alone] == [verdict.measures for verdict in verdicts]
    assert not any(verdict.reason for verdict in alone)


def test_a_directory_that_is_no_whisper(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is no Whisper model"):
        Intelligibility(model=str(tmp_path)).measure([candidate(np.ones(8000), "no", "en")])


def test_whisper_understands_the_words_that_were_spoken(weights):
    """espeak-ng in two languages is understood, and not taken for other words or for noise."""
    texts = {"en": "I will see you tomorrow morning.", "de": "Der Fluss ist gestern zugefroren."}
    spoken = {}
    for language, text in texts.items():
        speech = EspeakEngine().speak(text, language=language, voice="m3", emotion="neutral", intensity=1.0, seed=0)
        spoken[language] = scipy.signal.resample_poly(speech.waveform, 320, 441)
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    batch = [candidate(spoken["en"], texts["en"], "en"), candidate(spoken["de"], texts["de"], "de")]
    batch += [candidate(spoken["de"], "Zum Fest kam niemand.", "de"), candidate(noise, texts["en"], "en")]
    good, gut, other, nothing = Intelligibility(model=str(weights / "whisper-base")).measure(batch)
    assert good.measures["cer"] < 0.1 and gut.measures["cer"] < 0.3 and not good.reason and not gut.reason
    assert other.reason == nothing.reason == "intelligibility"
