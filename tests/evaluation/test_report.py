"""results.json there and back, its checks, the printed tables and the two pictures."""

import copy
import json

import numpy as np
import pytest
from matplotlib.image import imread

from mser_jax.evaluation import plots, report
from mser_jax.evaluation.rows import ADAPTATIONS, make_rows

LABELS = ("angry", "happy", "neutral", "sad")


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(3)
    n = 300
    emotion = np.array([*LABELS, "fear", ""])[rng.integers(0, 6, n)]
    language = np.array(["de", "it", "zh-CN"])[rng.integers(0, 3, n)]
    columns = {
        "emotion": emotion,
        "language": language,
        "corpus": np.char.add("corpus_", language),
        "speaker": np.char.add(language, rng.integers(0, 5, n).astype(str)),
    }
    return rng, columns


@pytest.fixture(scope="module")
def results(world):
    rng, columns = world
    trained = {"corpora": ["m5ser_mini"], "languages": ["zh", "en", "zh"]}
    rows = []
    for adapt in ADAPTATIONS:
        p = rng.dirichlet(np.ones(4), len(columns["emotion"]))
        fallback = columns["speaker"] == "de0"
        rows += make_rows(p, columns, LABELS, trained_on=trained, adapt=adapt, fallback=fallback)
    return report.build(
        stage="alignment",
        checkpoint="runs/1",
        step=300,
        label_space=LABELS,
        scoring="similarity",
        trained_on=trained,
        merges={"excited→happy": 12},
        rows=rows,
    )


def test_contract(results, world):
    wanted = {
        "stage",
        "checkpoint",
        "step",
        "label_space",
        "scoring",
        "trained_on",
        "merges",
        "rows",
        "macro",
    }
    assert wanted <= set(results)
    assert results["trained_on"] == {"corpora": ["m5ser_mini"], "languages": ["en", "zh"]}
    assert results["chance"] == 0.25
    figures = {"ua", "ua_ci95", "wa", "macro_f1", "weighted_f1", "ece"}
    row_keys = {"corpus", "language", "adapt", "n", "skipped", "zero_shot", "confusion"} | figures
    assert all(row_keys <= set(row) for row in results["rows"]) and len(results["rows"]) == 3 * len(ADAPTATIONS)
    assert figures <= set(results["macro"]["zero_shot"]) & set(results["macro"]["all"])
    assert set(results["macro"]["adapt"]) == set(ADAPTATIONS[1:])
    emotion = world[1]["emotion"]
    assert results["left_out"] == {"fear": (emotion == "fear").sum(), "unknown": (emotion == "").sum()}
    assert all(bool(row.get("why_not")) == (row["language"] == "zh-CN") for row in results["rows"])


def test_round_trip(results, tmp_path):
    path = report.write(results, tmp_path / "new" / "folder")
    assert path.name == "results.json"
    assert report.read(tmp_path / "new" / "folder") == results
    # Strict JSON, nothing left behind, and written over in place.
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in results.json"))
    report.write({**results, "step": 301}, tmp_path / "new" / "folder")
    assert report.read(tmp_path / "new" / "folder")["step"] == 301
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == ["results.json"]


def first_row(results):
    return results["rows"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r.pop("macro"), "macro: expected dict"),
        (lambda r: r.update(step=True), "step: expected int"),
        (lambda r: r.update(scoring="guess"), "scoring: expected one of"),
        (lambda r: r["rows"].append(copy.deepcopy(first_row(r))), "twice"),
        (lambda r: first_row(r).update(ua=1.5), r"ua: expected a number in \[0, 1\]"),
        (lambda r: first_row(r).update(ua=float("nan")), "ua: expected a number"),
        (lambda r: first_row(r).update(wa=None), "wa: expected a number"),
        (lambda r: first_row(r).update(n=7), "confusion: sums to"),
        (lambda r: first_row(r).update(confusion=[[1]]), "confusion: expected 4 × 4"),
        (lambda r: first_row(r).update(skipped=0), "left_out: sums to"),
        (lambda r: first_row(r).update(zero_shot=False), "why_not: must stand exactly where"),
        (lambda r: first_row(r).update(adapt="some"), "adapt: expected one of"),
        (lambda r: first_row(r).update(ua_ci95=0.5), "ua_ci95: expected"),
        (lambda r: r["macro"].pop("zero_shot"), "macro.zero_shot.ua"),
        (lambda r: r["macro"]["adapt"]["speaker"]["all"].update(ua=2.0), "macro.adapt.speaker.all.ua"),
    ],
)
def test_validation_names_the_place(results, tmp_path, spoil, message):
    spoiled = copy.deepcopy(results)
    spoil(spoiled)
    with pytest.raises(ValueError, match=message):
        report.write(spoiled, tmp_path)
    assert not list(tmp_path.iterdir())


def test_perfect_scores_stay_valid():
    """1/3 + 1/3 + 1/3 languages of UA 1 must not be found above 1."""
    languages = np.repeat([f"l{i}" for i in "abcdefg"], 8)
    emotion = np.tile(LABELS, 14)
    columns = {
        "emotion": emotion,
        "language": languages,
        "corpus": languages,
        "speaker": np.tile(["a", "b"], 28),
    }
    p = np.eye(4)[[LABELS.index(e) for e in emotion]]
    nothing = {"corpora": [], "languages": []}
    rows = make_rows(p, columns, LABELS, trained_on=nothing)
    options = {"stage": "s", "checkpoint": "c", "step": 0, "scoring": "generation:exact", "merges": {}}
    built = report.build(label_space=LABELS, trained_on=nothing, rows=rows, **options)
    assert built["macro"]["all"]["ua"] == pytest.approx(1.0)


def test_table_shows_what_is_needed(results):
    table = report.format_table(results)
    lines = table.splitlines()
    assert "chance UA .250" in lines[0]
    assert sum("95 % interval" in line for line in lines) == len(ADAPTATIONS)
    row = first_row(results)
    low, high = row["ua_ci95"]
    (line,) = [x for x in lines if x.split()[:2] == [row["corpus"], "de"]][:1]
    for cell in (str(row["n"]), str(row["skipped"]), f"{row['ua']:.3f}"[1:], "[" + f"{low:.3f}"[1:]):
        assert cell in line
    assert f"{high:.3f}"[1:] + "]" in line
    assert "mean of 2 languages" in table and "mean of 3 languages" in table
    assert "not zero-shot: corpus_zh-CN/zh-CN: language zh in training" in table
    assert "excited→happy 12" in table and "fear" in table
    assert "1 speakers have few or one-sided utterances" in table
    for block in table.split("\n\n")[1:4]:
        widths = {len(line) for line in block.splitlines()[1:8]}
        assert len(widths) == 1, "columns are not aligned"


def test_reference_rows_are_consistent():
    rows = report.reference_rows()
    assert len(rows) == 6
    for row in rows:
        assert sorted(row["ua"]) == ["de", "en", "es", "it", "pl", "zh"]
        assert np.mean(list(row["ua"].values())) == pytest.approx(row["mean"], abs=0.0011)
    assert [row["adapt"] for row in rows] == ["none"] * 4 + ["corpus", "speaker"]


def test_reference_table_puts_ours_beside():
    ours = {
        "ours": {"de": 0.5, "en": 0.4, "es": 0.3, "it": 0.4, "pl": 0.3, "zh-CN": 0.5},
        "part": {"de": 0.5},
    }
    lines = report.reference_table(ours).splitlines()
    assert next(x for x in lines if "eGeMAPS" in x).split()[-1] == ".536"
    assert next(x for x in lines if "ours" in x).split() == [
        "ours",
        ".500",
        ".400",
        ".300",
        ".400",
        ".300",
        ".500",
        ".400",
    ]
    assert next(x for x in lines if "part" in x).split()[-1] == "–"
    assert "ours" not in report.reference_table()


def test_confusion_picture(results, tmp_path):
    path = plots.save_confusions(results["rows"], LABELS, tmp_path / "a" / "confusion.png")
    image = imread(path)
    assert image.shape[0] > 300 and image.shape[1] > image.shape[0]
    only_adapted = [row for row in results["rows"] if row["adapt"] != "none"]
    with pytest.raises(ValueError, match="no confusion matrix"):
        plots.save_confusions(only_adapted, LABELS, tmp_path / "none.png")


def test_embedding_picture(world, tmp_path):
    rng, columns = world
    z = rng.normal(size=(300, 16))
    anchors = {label: rng.normal(size=16) for label in LABELS}
    path = plots.save_embeddings(z, columns, anchors, tmp_path / "embeddings.png", title="t")
    image = imread(path)
    assert image.shape[1] > 600
    # Every emotion's colour is really drawn, whoever else is around.
    pixels = {tuple(p) for p in (image[..., :3].reshape(-1, 3) * 255).round().astype(int)}
    for label in LABELS:
        colour = plots.STYLE[label][0]
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in pixels
    with pytest.raises(ValueError, match="at least 3"):
        plots.save_embeddings(z[:2], {k: v[:2] for k, v in columns.items()}, anchors, path)


def test_subsample_gives_every_language_its_share():
    language = np.array(["a"] * 5000 + ["b"] * 100 + ["c"] * 3000)
    chosen = plots._subsample(language, 0)
    names, counts = np.unique(language[chosen], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"a": 950, "b": 100, "c": 950}
    assert len(set(chosen)) == 2000
    np.testing.assert_array_equal(chosen, plots._subsample(language, 0))


def test_utterances_without_a_canonical_emotion_are_in_the_table_and_the_notes(results):
    entries = [
        {"corpus": "thai", "language": "th", "n": 480, "labels": {"xx": 400, "": 80}},
        {"corpus": "corpus_de", "language": "de", "n": 3, "labels": {"yy": 3}},
    ]
    told = report.format_table({**results, "unlabelled": entries})
    assert told.count("labels unknown") == len(ADAPTATIONS)  # German has a row of its own
    (line,) = [line for line in told.split("adapted by")[0].splitlines() if "labels unknown" in line]
    assert line.split() == ["thai", "th", "labels", "unknown", "0", "480"]
    assert "no canonical emotion, so in no row: thai/th 480 (xx 400, (empty) 80)" in told
    assert "corpus_de/de 3 (yy 3)" in told and "labels unknown" not in report.format_table(results)
