"""PAVOQUE: utterances cut out of one long recording per style."""

import io

import miniature
import numpy as np
import pytest
import soundfile

RATE = 44_100
STYLES = {"neutral": "a", "happy": "poppy", "sad": "obadiah", "angry": "spike", "poker": "poker_n"}


def annotation(style, prompt, count, first=0):
    """As in the corpus: a second each, text with YAML's own words and quotes, some with segments."""
    texts = ("Nein", "'Der Begriff Variant bezeichnet:'", "Ach ja?")
    return "".join(
        f"- prompt: {prompt}{number:04}\n  text: {texts[number % 3]}\n  style: {style}\n"
        f"  start: {float(number - first)}\n  end: {number - first + 0.5}\n"
        "  segments:\n  - {lab: H#, end: 0.280902}\n  - {lab: '?', end: 0.324898}\n"
        for number in range(first, first + count)
    )


def flac(seconds, seed):
    """The bytes of a long recording, and its samples int16 [time]."""
    samples = np.random.default_rng(seed).integers(-9_000, 9_000, round(seconds * RATE)).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue(), samples


def test_utterances_are_cut_where_the_annotation_says(tmp_path):
    longs = {}
    for seed, (style, prompt) in enumerate(STYLES.items()):
        (tmp_path / f"pavoque-{style}.yaml").write_text(annotation(style, prompt, 6), encoding="utf-8")
        encoded, longs[style] = flac(6, seed)
        (tmp_path / f"pavoque-{style}.flac").write_bytes(encoded)
    # The fourth of these is said to end after the recording does.
    outtakes = annotation("sad", "obadiah", 4, first=900)
    (tmp_path / "pavoque-outtakes.yaml").write_text(outtakes, encoding="utf-8")
    (tmp_path / "pavoque-outtakes.flac").write_bytes(flac(3.2, 9)[0])
    (tmp_path / ".travis.yml").write_text("language: none\n")
    records, index, report = miniature.build("pavoque", tmp_path, tmp_path / "data")
    assert len(records) == 33
    assert [(item["path"], item["reason"]) for item in report["skipped_items"]] == [("obadiah0903", "truncated")]
    one = records["spike0002-angry"]
    assert (one.emotion, one.speaker, one.gender, one.transcript) == (
        "angry",
        "pavoque:Stefan Röttig",
        "male",
        "Ach ja?",
    )
    assert records["a0000-neutral"].transcript == "Nein"
    assert records["a0001-neutral"].transcript == "Der Begriff Variant bezeichnet:"
    assert report["unlabelled"] == {"poker": 6} and report["resampled_from_hz"] == {"44100": 33}
    decoded, rate = soundfile.read(io.BytesIO(one.audio), dtype="float32")
    assert (len(decoded), rate) == (8_000, 16_000)
    # Noise is like no other: what was kept follows 2.0–2.5 s of the long one, whose low end it is.
    cut = longs["angry"][2 * RATE : 5 * RATE // 2] / 32768.0
    assert low_band_correlation(decoded, 16_000, cut, RATE) > 0.99
    assert low_band_correlation(decoded, 16_000, longs["angry"][: RATE // 2] / 32768.0, RATE) < 0.2
    assert {row["split"] for row in index} == {""}


def test_annotation_without_its_sound(tmp_path):
    """The repository holds all annotations but no sound. Outtakes are extra; a style is not."""
    (tmp_path / "pavoque-poker.yaml").write_text(annotation("poker", "poker_n", 2))
    (tmp_path / "pavoque-poker.flac").write_bytes(flac(2, 0)[0])
    (tmp_path / "pavoque-outtakes.yaml").write_text(annotation("sad", "obadiah", 2))
    records, _, report = miniature.build("pavoque", tmp_path, tmp_path / "data")
    assert len(records) == 2 and report["left_out_on_purpose"] == {"outtakes without sound": 1}
    (tmp_path / "pavoque-sad.yaml").write_text(annotation("sad", "obadiah", 2))
    with pytest.raises(FileNotFoundError, match=r"pavoque-sad\.yaml but no pavoque-sad\.flac\. Get it: https"):
        miniature.build("pavoque", tmp_path, tmp_path / "other")


def low_band_correlation(left, left_rate, right, right_rate):
    """Correlation of two recordings of the same length below 5 kHz."""
    spectra = [np.fft.rfft(samples) / len(samples) for samples in (left, right)]
    bins = int(5_000 * len(left) / left_rate)
    assert bins == int(5_000 * len(right) / right_rate)
    first, second = (spectrum[1:bins] for spectrum in spectra)
    return abs(np.vdot(first, second)) / (np.linalg.norm(first) * np.linalg.norm(second))
