"""Similarity scoring on made-up embeddings whose right answers, offsets and exposures are known."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from mser_jax.evaluation import calibration, pooling, zero_shot
from mser_jax.evaluation.rows import macro, make_rows, primary, why_not_zero_shot

LABELS = ("angry", "happy", "neutral", "sad")
NOTHING = {"corpora": [], "languages": []}
DIM = 24


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_columns(corpus, language, speaker, emotion):
    n = len(emotion)
    given = {"corpus": corpus, "language": language, "speaker": speaker, "emotion": emotion}
    return {k: np.full(n, v) if isinstance(v, str) else np.asarray(v) for k, v in given.items()}


def make_world(rng, speakers=8, each=20, speaker_offset=0.0, corpus_offset=0.0, noise=0.05):
    """Orthonormal label directions plus orthogonal-ish offsets: without offsets every answer is right."""
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    directions = basis[: len(LABELS)]
    ids = np.tile(np.arange(len(LABELS)), speakers * each // len(LABELS))
    who = np.repeat(np.arange(speakers), each)
    # Offsets along the label directions, as only those mislead.
    offsets = speaker_offset * unit(rng.normal(size=(speakers, len(LABELS)))) @ directions
    shift = corpus_offset * directions[0]
    z = directions[ids] + offsets[who] + shift + noise * rng.normal(size=(len(ids), DIM))
    columns = make_columns("c", "it", [f"c:{s}" for s in who], [LABELS[i] for i in ids])
    prompts = {label: unit(d + 0.2 * rng.normal(size=(5, DIM))) for label, d in zip(LABELS, directions, strict=True)}
    return unit(z), prompts, columns, ids


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_known_answers_give_a_known_score():
    """Three of four angry and one of two sad utterances lie on their anchor: UA = (3/4 + 1/2) / 2."""
    eye = np.eye(3)
    emotion = ["angry"] * 4 + ["sad"] * 2 + ["boredom", "", "fear"]
    embeddings = eye[[0, 0, 0, 1, 1, 0, 0, 0, 2]]
    prompts = {"angry": eye[[0, 0]], "sad": eye[[1]], "fear": eye[[2]]}
    columns = make_columns("emo", "de", [f"s{i % 3}" for i in range(9)], emotion)
    (row,) = zero_shot.score(embeddings, prompts, 10.0, columns, ("angry", "sad"), trained_on=NOTHING, adapt=("none",))
    assert (row["n"], row["skipped"], row["speakers"]) == (6, 3, 3)
    assert row["left_out"] == {"boredom": 1, "fear": 1, "unknown": 1}
    assert row["confusion"] == [[3, 1], [1, 1]]
    assert row["recall"] == [0.75, 0.5]
    assert row["ua"] == pytest.approx(0.625)
    assert row["wa"] == pytest.approx(4 / 6)
    assert row["ua_ci95"][0] <= 0.625 <= row["ua_ci95"][1]
    assert row["zero_shot"] is True and "why_not" not in row


def test_anchor_is_the_normalised_mean_of_normalised_prompts():
    anchors = zero_shot.label_anchors({"a": np.array([[2.0, 0], [0, 0.5]]), "b": np.array([[0, -3.0]])}, ("a", "b"))
    np.testing.assert_allclose(anchors, [[np.sqrt(0.5)] * 2, [0, -1]])


def test_probabilities_are_the_softmax_of_the_scaled_cosine(rng):
    z, anchors = unit(rng.normal(size=(6, 4))), unit(rng.normal(size=(3, 4)))
    ours = zero_shot.probabilities(z, anchors, 8.0)
    for i in range(6):
        powers = [np.exp(8.0 * sum(z[i] * anchors[c])) for c in range(3)]
        np.testing.assert_allclose(ours[i], np.array(powers) / sum(powers))
    assert np.isfinite(zero_shot.probabilities(z, anchors, 1e4)).all()


def by_adapt(rows):
    return {row["adapt"]: row for row in rows}


def test_without_offsets_every_adaptation_is_right(rng):
    z, prompts, columns, _ = make_world(rng)
    rows = by_adapt(zero_shot.score(z, prompts, 10.0, columns, LABELS, trained_on=NOTHING))
    assert {adapt: row["ua"] for adapt, row in rows.items()} == {"none": 1.0, "corpus": 1.0, "speaker": 1.0}


def test_speaker_statistics_repair_speaker_offsets(rng):
    # Much larger offsets are not undone whole: unit norms make an utterance's shift depend on its emotion.
    z, prompts, columns, _ = make_world(rng, speaker_offset=1.0)
    rows = by_adapt(zero_shot.score(z, prompts, 10.0, columns, LABELS, trained_on=NOTHING))
    assert rows["none"]["ua"] < 0.85 and rows["corpus"]["ua"] < 0.9
    assert rows["speaker"]["ua"] > 0.99
    assert rows["speaker"]["fallback_utterances"] == 0


def test_corpus_statistics_repair_a_corpus_offset(rng):
    z, prompts, columns, _ = make_world(rng, corpus_offset=3.0)
    rows = by_adapt(zero_shot.score(z, prompts, 10.0, columns, LABELS, trained_on=NOTHING))
    assert rows["none"]["ua"] == pytest.approx(0.25, abs=0.05)
    assert rows["corpus"]["ua"] > 0.99


def test_speakers_with_few_utterances_use_the_corpus(rng):
    z, prompts, columns, _ = make_world(rng, speakers=8, each=20)
    speaker = columns["speaker"].copy()
    speaker[:3], speaker[3:10] = "c:rare", ""
    columns = {**columns, "speaker": speaker}
    anchors = zero_shot.label_anchors(prompts, LABELS)
    answers = zero_shot.probabilities(z, anchors, 10.0)
    by_speaker, _, fallback = zero_shot.adapted(z, anchors, columns, "speaker", answers)
    assert fallback[3:10].all(), "nobody has a mean"
    rows = by_adapt(zero_shot.score(z, prompts, 10.0, columns, LABELS, trained_on=NOTHING))
    assert rows["speaker"]["fallback_utterances"] >= 7 and rows["speaker"]["fallback_speakers"] >= 1
    assert "fallback_speakers" not in rows["corpus"]
    np.testing.assert_allclose(np.linalg.norm(by_speaker, axis=-1), 1)


def test_adaptation_by_hand(rng):
    """Two speakers far apart: each one's mean goes, then each dimension's spread around those means over the corpus."""
    z = unit(rng.normal(size=(30, 5)) + np.repeat([[0.0] * 5, [3.0, 0, 0, 0, 0]], 15, axis=0))
    anchors = unit(rng.normal(size=(3, 5)))
    columns = make_columns("c", "de", ["a"] * 15 + ["b"] * 15, ["angry"] * 30)
    # Both say everything alike, so nothing of their means is emotion.
    answers = np.tile(np.eye(3), (10, 1))
    ours, moved_anchors, _ = zero_shot.adapted(z, anchors, columns, "speaker", answers)
    centre, shrunk = pooling.speaker_means(z, answers, columns["speaker"])
    residual = z.copy()
    for part in (slice(0, 15), slice(15, 30)):
        kept = 1 - shrunk[part][:, None]
        np.testing.assert_allclose(centre[part], z.mean(0) + kept * (z[part].mean(0) - z.mean(0)))
        # Thirty utterances are a small corpus: 30⁴ / (30⁴ + 50⁴) of the distance is believed.
        residual[part] -= z.mean(0) + 30**4 / (30**4 + 50**4) * (centre[part] - z.mean(0))
    np.testing.assert_allclose(ours, unit(residual / np.sqrt((residual**2).mean(0))))
    np.testing.assert_allclose(moved_anchors, unit(anchors - anchors.mean(0)))
    ours, _, _ = zero_shot.adapted(z, anchors, columns, "corpus")
    np.testing.assert_allclose(ours, unit((z - z.mean(0)) / z.std(0)))


def test_statistics_never_cross_corpora_or_languages(rng):
    z, prompts, columns, _ = make_world(rng, speaker_offset=1.0)
    alone = by_adapt(zero_shot.score(z, prompts, 10.0, columns, LABELS, trained_on=NOTHING))
    other, _, more, _ = make_world(rng, corpus_offset=2.0)
    more = {**more, "language": np.full(len(other), "pl")}
    both = {k: np.concatenate([columns[k], more[k]]) for k in columns}
    together = zero_shot.score(np.concatenate([z, other]), prompts, 10.0, both, LABELS, trained_on=NOTHING)
    assert len(together) == 6
    assert by_adapt([row for row in together if row["language"] == "it"]) == alone


def test_one_utterance_and_constant_embeddings_stay_finite():
    z = np.ones((5, 4)) / 2
    columns = make_columns(["a", "b", "b", "b", "b"], "de", "s", ["angry", *LABELS])
    prompts = {label: np.eye(4)[[i]] for i, label in enumerate(LABELS)}
    rows = zero_shot.score(z, prompts, 10.0, columns, LABELS, trained_on=NOTHING)
    assert len(rows) == 6
    for row in rows:
        assert 0 <= row["ua"] <= 1 and row["ua_ci95"] is None and row["ua_se"] is None


def test_a_corpus_without_scorable_utterances_keeps_a_row():
    columns = make_columns("c", "de", "s", ["fear", "fear"])
    rows = make_rows(np.full((2, 4), 0.25), columns, LABELS, trained_on=NOTHING)
    assert rows[0]["n"] == 0 and rows[0]["skipped"] == 2 and rows[0]["ua"] is None
    assert macro(rows)["all"]["ua"] is None and macro(rows)["all"]["languages"] == []


@pytest.mark.parametrize(
    ("corpus", "language", "reason"),
    [
        ("emovo", "it", ""),
        ("EmoDB", "pl", "corpus EmoDB in training"),
        ("other", "de-AT", "language de in training"),
        ("casia", "cmn-Hans", "language zh-CN in training"),
        ("tess", "en", "language en in pretraining of whisper"),
        ("ravdess", "pl", "corpus ravdess in pretraining of whisper"),
        ("x", "", "language is unknown"),
        ("x", "und", "language is unknown"),
    ],
)
def test_zero_shot_only_where_nothing_was_seen(corpus, language, reason):
    trained = {"corpora": ["emodb"], "languages": ["de", "zh-CN"]}
    seen = {"whisper": {"corpora": ["RAVDESS"], "languages": ["en"]}}
    why = why_not_zero_shot(corpus, language, trained, seen)
    assert (reason in why) if reason else why == ""


def test_unknown_training_speech_spoils_every_claim():
    assert "unknown language" in why_not_zero_shot("c", "it", {"corpora": [], "languages": ["de", ""]})


def test_primary_subtag():
    tags = ["zh-CN", "cmn", "PT_br", "nb-NO", "de", "und", "", "mul"]
    assert [primary(tag) for tag in tags] == ["zh", "zh", "pt", "no", "de", "", "", ""]


def test_macro_averages_languages_and_keeps_settings_apart(rng):
    n = 400
    emotion = np.array(LABELS)[rng.integers(0, 4, n)]
    corpus = np.array(["a", "b", "c", "d"])[rng.integers(0, 4, n)]
    language = np.array([{"a": "it", "b": "it-CH", "c": "pl", "d": "de"}[c] for c in corpus])
    columns = make_columns(corpus, language, [f"{c}:{i % 5}" for i, c in enumerate(corpus)], emotion)
    trained = {"corpora": [], "languages": ["de"]}
    plain, adapted = rng.dirichlet(np.ones(4), n), rng.dirichlet(np.ones(4), n)
    rows = make_rows(plain, columns, LABELS, trained_on=trained)
    rows += make_rows(adapted, columns, LABELS, trained_on=trained, adapt="corpus")
    result = macro(rows)

    def ua(probabilities, name):
        mine = corpus == name
        return balanced_accuracy_score(emotion[mine], np.array(LABELS)[probabilities[mine].argmax(-1)])

    def expected(p):
        italian = (ua(p, "a") + ua(p, "b")) / 2
        return (italian + ua(p, "c")) / 2, (italian + ua(p, "c") + ua(p, "d")) / 3

    for p, group in ((plain, result), (adapted, result["adapt"]["corpus"])):
        zero, everything = expected(p)
        assert group["zero_shot"]["ua"] == pytest.approx(zero)
        assert group["all"]["ua"] == pytest.approx(everything)
        assert group["zero_shot"]["languages"] == ["it", "pl"] and group["all"]["rows"] == 4
    assert list(result["adapt"]) == ["corpus"]
    # Independent rows: variances add with the squared weights 1/4, 1/4, 1/2.
    errors = [row["ua_se"] for row in rows[:4] if row["zero_shot"]]
    weights = [0.25 if row["language"].startswith("it") else 0.5 for row in rows[:4] if row["zero_shot"]]
    error = np.sqrt(sum((w * e) ** 2 for w, e in zip(weights, errors, strict=True)))
    low, high = result["zero_shot"]["ua_ci95"]
    assert result["zero_shot"]["ua_se"] == pytest.approx(error, rel=0.1)
    assert low < result["zero_shot"]["ua"] < high and (high - low) / 3.92 == pytest.approx(error, rel=0.12)


def test_nan_is_no_answer(rng):
    z, prompts, columns, _ = make_world(rng)
    z[4, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"1 of 160 embeddings are not finite.*the first: row 4\."):
        zero_shot.score(z, prompts, 10.0, columns, LABELS, trained_on=NOTHING)
    p = np.full((160, len(LABELS)), 1 / len(LABELS))
    p[[7, 9]] = np.nan
    with pytest.raises(FloatingPointError, match=r"2 of 160 probabilities .* row 7, row 9"):
        make_rows(p, columns, LABELS, trained_on=NOTHING)
    with pytest.raises(FloatingPointError, match="to fit a temperature on"):
        calibration.fit_temperature(p, np.zeros(160, int))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapt": ("strict",)}, "expected some of"),
        ({"label_space": ("angry", "fear")}, r"no prompt embeddings for \['fear'\]"),
        ({"columns": {"corpus": np.array(["c"])}}, "missing"),
    ],
)
def test_refusals_say_what_is_wrong(rng, change, message):
    z, prompts, columns, _ = make_world(rng)
    arguments = {"embeddings": z, "columns": columns, "label_space": LABELS, "adapt": ("none",)} | change
    with pytest.raises(ValueError, match=message):
        zero_shot.score(prompt_embeddings=prompts, logit_scale=10.0, trained_on=NOTHING, **arguments)
