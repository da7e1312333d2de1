import collections

import numpy as np
import pytest

from mser_jax.corpora import splits


def test_speakers_are_disjoint_stable_and_in_proportion():
    speakers = [f"c:{number}" for number in range(5_000)]
    first = splits.split_by_speaker(speakers * 2, (0.7, 0.1, 0.2))
    np.testing.assert_array_equal(first[:5_000], first[5_000:])
    np.testing.assert_array_equal(splits.split_by_speaker(speakers[::7], (0.7, 0.1, 0.2)), first[:5_000:7])
    counts = collections.Counter(first[:5_000].tolist())
    for name, share in zip(splits.NAMES, (0.7, 0.1, 0.2), strict=True):
        assert counts[name] / 5_000 == pytest.approx(share, abs=0.03)  # 4 standard deviations
    assert (splits.split_by_speaker(speakers, salt="other") != splits.split_by_speaker(speakers)).any()


def test_the_drawing_never_changes():
    """A published split must come out the same in every version."""
    drawn = [splits.speaker_split(f"emodb:{number:02d}") for number in range(3, 10)]
    assert drawn == ["train", "test", "test", "train", "test", "train", "validation"]


def test_edges():
    assert splits.speaker_split("") == "train"
    assert {splits.speaker_split(f"{n}", (0.0, 0.0, 1.0)) for n in range(50)} == {"test"}
    assert {splits.speaker_split(f"{n}", (1.0, 0.0, 0.0)) for n in range(50)} == {"train"}
    with pytest.raises(ValueError, match="sum 1"):
        splits.speaker_split("a", (0.8, 0.1, 0.2))


def test_leave_one_language_out():
    train, test = splits.leave_one_language_out(["pt", "pt-BR", "de", "pts", "en"], "pt")
    assert train.tolist() == [2, 3, 4]
    assert test.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"leave out 'fr'.*\['de', 'en'\]"):
        splits.leave_one_language_out(["de", "en"], "fr")
    with pytest.raises(ValueError, match="need it and another"):
        splits.leave_one_language_out(["de", "de"], "de")
