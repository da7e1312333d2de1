"""The probes find what is there, and nothing where nothing is."""

import numpy as np
import pytest

from mser_jax.evaluation import probes


def world(seed=0, speakers=20, each=20, dim=16):
    """Embeddings of noise, and who spoke them in which of four languages."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat([f"s{i:02d}" for i in range(speakers)], each)
    language = np.repeat([f"l{i % 4}" for i in range(speakers)], each)
    return rng.normal(size=(speakers * each, dim)), speaker, language, rng


def test_noise_gives_nothing_away():
    x, speaker, language, _ = world()
    for result in (probes.language_probe(x, language, speaker), probes.speaker_probe(x, speaker)):
        assert result["n"] == 400 and result["balanced_accuracy"] < result["chance"] + 0.08
    assert result["classes"] == 20 and result["chance"] == pytest.approx(0.05)


def test_a_language_in_the_embedding_is_found_in_speakers_never_met():
    x, speaker, language, rng = world()
    x = x + 3.0 * rng.normal(size=(4, 16))[[int(name[1]) for name in language]]
    assert probes.language_probe(x, language, speaker)["balanced_accuracy"] > 0.95


def test_a_voice_is_no_language():
    """Each voice has a direction of its own: the speaker is found; the language, of new voices, is not."""
    x, speaker, language, rng = world()
    x = x + 4.0 * rng.normal(size=(20, 16))[[int(name[1:]) for name in speaker]]
    assert probes.speaker_probe(x, speaker)["balanced_accuracy"] > 0.95
    assert probes.language_probe(x, language, speaker)["balanced_accuracy"] < 0.6


def test_rare_and_unknown_classes_are_left_out():
    x, speaker, _, _ = world()
    speaker = speaker.astype(object)
    speaker[:20], speaker[20:37] = "", "s05"
    result = probes.speaker_probe(x, speaker.astype(str))
    assert (result["classes"], result["n"]) == (18, 377), "3 of s01 are too few, '' is nobody"
    with pytest.raises(ValueError, match="two classes"):
        probes.speaker_probe(x, np.full(400, "one"))
    with pytest.raises(ValueError, match="two groups"):
        probes.language_probe(x, speaker.astype(str), np.full(400, "one voice"))
