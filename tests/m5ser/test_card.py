"""The card of a small generated set, read back; its parts against what they were made of."""

import base64
import collections
import io
import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import soundfile

from mser_jax import config as config_lib
from mser_jax.corpora.registry import open_corpus
from mser_jax.m5ser import card, card_page, card_probe, card_prosody, engines, generate, pipeline

ROOT = pathlib.Path(__file__).parents[2]
HERE = ["--direct_num_workers=1", "--direct_running_mode=in_memory"]
WORDS = {"en": "river|night|garden|letter|window|winter", "de": "Fluss|Nacht|Garten|Brief|Fenster|Winter"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a set by the humming engine, where some speak too fast."""
    folder = tmp_path_factory.mktemp("card")
    lines = ["text\tlanguage\temotion\tparallel_id\tlicense"]
    lines += [f"{word}, {word}, {word}.\t{lang}\tneutral\t\tCC0" for lang in WORDS for word in WORDS[lang].split("|")]
    (folder / "texts.tsv").write_text("\n".join(lines) + "\n")
    config = config_lib.load(str(ROOT / "configs" / "m5ser.py"))
    config.languages, config.emotions, config.intensities = "en,de", "happy,neutral,sad", (1.0,)
    config.texts.update({"sources": f"tsv:{folder / 'texts.tsv'}", "check_language": False, "near_duplicates": 1.0})
    config.texts.min_length = 1
    config.engines.espeak.enabled = False
    config.filters.duplicates.enabled = False
    config.filters.duration.max_letters_per_second = 36.0
    config.keep_balanced, config.limit, config.chunk_utterances = False, "108 utterances", 36
    with config.unlocked():
        config.engines.toy = {"enabled": True, "voices": "m1,f1", "validation_voices": "deep", "options": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "toy", "toy_engine:ToyEngine")
        generate.run(config, str(folder / "set"), HERE)
    pipeline.tools.cache_clear()
    return folder / "set"


def tables(markdown):
    """{first cell of the header: rows as lists of cells}"""
    found = collections.defaultdict(list)
    for block in markdown.split("\n\n"):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line[0] == "|"]
        if rows:
            found[rows[0][0]].append([rows[0], *rows[2:]])
    return found


def test_hours_and_pass_rates_are_those_of_the_rows(made):
    told = tables((made / "card.md").read_text())
    index = pyarrow.parquet.read_table(made / "index.parquet").to_pylist()
    rejected = pyarrow.parquet.read_table(made / "rejected.parquet").to_pylist()
    assert 0 < len(rejected) < 108 and len(index) + len(rejected) == 108
    header, *rows = told["language"][0]
    hours = {(row[0], name): float(cell) for row in rows for name, cell in zip(header[1:], row[1:], strict=True)}
    for language in ("en", "de", "all"):
        for emotion in ("happy", "neutral", "sad", "all"):
            seconds = [
                row["duration_s"]
                for row in index
                if language in (row["language"], "all") and emotion in (row["emotion"], "all")
            ]
            assert hours[language, emotion] == pytest.approx(sum(seconds) / 3600, abs=6e-4)
    voices = {row[0]: row for row in told["voice"][0][1:]}
    assert voices["toy/deep"][1:4] == ["female", "validation", "2"] and voices["toy/m1"][1:3] == ["male", "train"]
    share = sum(row["speaker"] == "m5ser:toy/m1" for row in index) / 36
    assert voices["toy/m1"][5] == f"{share:.1%}"
    cascade = {row[0]: row[1:] for row in told["filter"][0][1:]}
    rate = sum(row["reason"] == "rate" for row in rejected)
    assert rate == len(rejected) and cascade["duration"] == ["108", str(rate), f"{1 - rate / 108:.2%}", "rate"]
    assert (
        cascade["loudness"][:2] == [str(108 - rate), "0"] and "duplicates" not in cascade and "emotion" not in cascade
    )
    assert told["reason"][0][1][-1] == str(rate) and sum(map(int, told["reason"][0][1][1:-1])) == rate


def test_measures_licences_and_texts_are_told(made):
    told = tables((made / "card.md").read_text())
    provenance = pyarrow.parquet.read_table(made / "index.parquet")["provenance"].to_pylist()
    lufs = [json.loads(text)["measures"]["lufs"] for text in provenance]
    row = next(row for row in told["measure"][0] if row[0] == "lufs")
    assert float(row[4].replace("−", "-")) == pytest.approx(np.median(lufs), abs=0.02) and row[1] == str(len(lufs))
    assert told["texts"][0][1:] == [["tsv", "CC0", "12"]]
    assert told["engine and its voices"][0][1][0] == "toy" and "look up" in told["engine and its voices"][0][1][1]
    assert "CC0; spoken by toy" in told["utterances (`license` of the records)"][0][1][0]


def test_the_html_needs_no_other_file(made):
    page = (made / "card.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:") for source in sources)
    kinds = collections.Counter(source.partition(";")[0] for source in sources)
    assert kinds["data:image/png"] == 3 and kinds["data:audio/mpeg"] == 6, "two languages, three emotions"
    clip = base64.b64decode(next(s for s in sources if s.startswith("data:audio")).partition(",")[2])
    samples, rate = soundfile.read(io.BytesIO(clip))
    index = open_corpus(f"m5ser:{made}").index.to_pylist()
    said = re.search(r'<p class="said">de, toy/(\w+): ([^<]*)</p>', page)
    match = [r for r in index if r["transcript"] == said[2] and r["speaker"] == f"m5ser:toy/{said[1]}"]
    first = next(row for row in match if row["emotion"] == "happy")
    assert rate == 16_000 and len(samples) / rate == pytest.approx(first["duration_s"], abs=0.15), "an MP3 pads"


def test_what_markdown_refers_to_is_there(made):
    names = re.findall(r"\]\((card/[^)]*)\)", (made / "card.md").read_text())
    assert len(names) == 9
    assert {str(path.relative_to(made)) for path in (made / "card").iterdir()} == set(names)


def test_against_a_real_corpus(made, tmp_path, monkeypatch, capsys):
    """“Real” is noise here: no probe takes it for a hum."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    rng, rows = np.random.default_rng(0), []
    (tmp_path / "noise").mkdir()
    for number in range(24):
        name, emotion = f"{number}.wav", ("happy", "sad", "neutral")[number % 3]
        soundfile.write(tmp_path / "noise" / name, 0.1 * rng.standard_normal(16_000), 16_000)
        rows.append({"path": name, "language": "en", "emotion": emotion, "speaker": f"s{number // 3 % 4}"})
    (tmp_path / "noise" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert card.main([str(made), f"--real=speech_folder:{tmp_path / 'noise'}"]) == 0
    assert capsys.readouterr().out.strip() == str(made / "card.html")
    told = tables((made / "card.md").read_text())
    (probed,) = told["language"][2][1:]
    assert probed[0] == "en" and float(probed[1]) > 0.95 and probed[3:] == ["4", "3"]
    assert "real: pitch, semitones" in told["emotion"][0][0]


def test_no_such_set_is_one_line(tmp_path, capsys):
    assert card.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: m5ser: ") and len(error.splitlines()) == 1


def test_a_card_that_cannot_be_written_costs_no_data(made, tmp_path, monkeypatch, caplog):
    config = config_lib.from_dict(json.loads((made / "config.json").read_text()))
    config.card.real, config.limit = "no_such_corpus", "36 utterances"
    monkeypatch.setitem(engines.ENGINES, "toy", "toy_engine:ToyEngine")
    with caplog.at_level("INFO", logger="absl"):
        again = generate.run(config, str(tmp_path / "set"), HERE)
    pipeline.tools.cache_clear()
    assert len(open_corpus(f"m5ser:{tmp_path / 'set'}").index) == again["built"] > 0
    assert "python -m mser_jax.m5ser.card" in caplog.text and not (tmp_path / "set" / "card.html").exists()


def test_shifts_are_from_the_voices_own_neutral():
    rows = [
        ("a", "en", "neutral", 100.0, -20.0, 10.0), ("a", "en", "sad", 50.0, -26.0, 5.0),
        ("a", "de", "neutral", 200.0, -10.0, 20.0), ("a", "de", "sad", 200.0, -10.0, 30.0),
        ("b", "en", "sad", 300.0, -15.0, 8.0), ("b", "en", "happy", np.nan, -5.0, np.nan),
    ]  # fmt: skip
    names = ("speaker", "language", "emotion", "pitch_hz", "loudness_db", "rate")
    index = pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    found = card_prosody.shifts(index)
    np.testing.assert_allclose(found[:4], [[0, 0, 0], [-12, -6, -50], [0, 0, 0], [0, 0, 50]], atol=1e-9)
    np.testing.assert_allclose(found[4:, 1], [-5, 5], err_msg="a voice without neutral speech: its own median")
    assert found[4, 0] == found[4, 2] == 0 and np.isnan(found[5, [0, 2]]).all()
    middle = card_prosody.medians(index, found)
    np.testing.assert_allclose(middle["sad"], [0, -5, 0], atol=1e-9)
    assert list(middle) == ["happy", "neutral", "sad"] and np.isnan(middle["happy"][0])


def pool(rng, kind, shift, emotional=0.0):
    emotion = np.array(["happy", "sad"] * 60)
    features = rng.standard_normal((120, 80)) + shift
    features[:, 3] += emotional * (emotion == "sad")
    speakers = np.array([f"{kind}{i // 2 % 6}" for i in range(120)])
    return card_probe.Pool(features, np.array(["en"] * 120), emotion, speakers)


def test_the_probe_tells_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    same = card_probe.real_or_synthetic(pool(rng, "r", 0.0), pool(rng, "s", 0.0))["en"]
    other = card_probe.real_or_synthetic(pool(rng, "r", 0.0), pool(rng, "s", 1.0))["en"]
    assert abs(same["balanced_accuracy"] - 0.5) < 0.12 and other["balanced_accuracy"] > 0.97
    assert same["n"] == 240 and same["speakers"] == (6, 6)
    one = card_probe.Pool(*pool(rng, "r", 0.0).__dict__.values())
    one.speaker[:] = "r0"
    assert not card_probe.real_or_synthetic(one, pool(rng, "s", 0.0)), "one speaker: none that it has not heard"
    told = card_probe.emotion_transfer(pool(rng, "r", 0.0, 4.0), pool(rng, "s", 9.0, 4.0))
    assert min(told["real from synthetic"], told["synthetic from real"]) > 0.8 and told["chance"] == 0.5
    told = card_probe.emotion_transfer(pool(rng, "r", 0.0, 4.0), pool(rng, "s", 0.0, -4.0))
    assert told["real from synthetic"] < 0.2, "what is sad in one is happy in the other"


def test_what_is_written_is_escaped():
    blocks = [card_page.Paragraph("a < b"), card_page.Table(("x|y", "n"), [("<i>", "1,000"), ("p|q", "−2")])]
    page = card_page.to_html("A & B", blocks)
    assert "a &lt; b" in page and "&lt;i&gt;" in page and "<h1>A &amp; B</h1>" in page
    assert page.count('<td class="number">') == 2
    text, files = card_page.to_markdown("A & B", blocks)
    assert not files and "| p\\|q | −2 |" in text and "| --- | ---: |" in text
