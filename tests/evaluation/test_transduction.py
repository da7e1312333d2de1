"""Clusters of unlabelled utterances: against EM written out with scipy's Gaussian, and worlds whose truth is known."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mser_jax.evaluation import transduction, zero_shot

LABELS = ("angry", "happy", "neutral", "sad")
NOTHING = {"corpora": [], "languages": []}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def blobs(rng, n=400, dim=12, apart=3.0):
    """Features [n, dim] around four means with one covariance that is not round, and which of them each is of."""
    ids = np.arange(n) % 4
    means = apart * rng.normal(size=(4, dim)) / np.sqrt(dim)
    noise = rng.normal(size=(n, dim)) @ (0.3 * rng.normal(size=(dim, dim)) / np.sqrt(dim) + 0.3 * np.eye(dim))
    return means[ids] + noise, ids


def weak_answers(rng, ids, right=0.5, favourite=1):
    """Probabilities [n, 4] that are right for a share, and otherwise mostly say `favourite`: a corpus's offset."""
    says = np.where(rng.random(len(ids)) < right, ids, favourite)
    logits = 1.5 * np.eye(4)[says] + 0.3 * rng.normal(size=(len(ids), 4))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_equals_expectation_maximisation_written_out(rng):
    """To 1e-6: a prior an utterance, one covariance with a ridge, 50 rounds or until nothing moves by 1e-3."""
    features, ids = blobs(rng)
    answers = weak_answers(rng, ids)
    x = transduction.directions(features)
    assert x.shape == (400, 12)
    p = answers
    for _ in range(50):
        means = [sum(p[i, k] * x[i] for i in range(400)) / p[:, k].sum() for k in range(4)]
        cov = sum(p[i, k] * np.outer(x[i] - means[k], x[i] - means[k]) for i in range(400) for k in range(4)) / 400
        density = [multivariate_normal.pdf(x, mean, cov + 0.1 * np.eye(12)) for mean in means]
        before, p = p, answers**0.5 * np.stack(density, 1)
        p /= p.sum(1, keepdims=True)
        if np.abs(p - before).max() < 1e-3:
            break
    np.testing.assert_allclose(transduction.transduce(answers, features), p, atol=1e-6)


def test_directions_are_principal_components(rng):
    """Their scalar products are those of the centred features, up to the factor that makes their mean variance 1."""
    features = rng.normal(size=(50, 9)) * np.arange(1, 10) + 3
    centred = features - features.mean(0)
    found = transduction.directions(features)
    factor = centred.var(0).mean()
    np.testing.assert_allclose(found @ found.T, centred @ centred.T / factor, atol=1e-8)
    assert transduction.directions(rng.normal(size=(50, 400))).shape == (50, 25)
    assert transduction.directions(rng.normal(size=(500, 400))).shape == (500, 60)


def test_clusters_correct_answers_that_an_offset_misled(rng):
    features, ids = blobs(rng)
    answers = weak_answers(rng, ids)
    before, after = (np.mean(p.argmax(1) == ids) for p in (answers, transduction.transduce(answers, features)))
    assert before < 0.65 and after > 0.98


def test_scale_place_and_rotation_of_the_features_do_not_matter(rng):
    features, ids = blobs(rng)
    answers = weak_answers(rng, ids)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    np.testing.assert_allclose(
        transduction.transduce(answers, features),
        transduction.transduce(answers, 1e-3 * features @ turn + 5),
        atol=1e-6,
    )


@pytest.mark.parametrize("n", [0, 1, 15])
def test_few_utterances_keep_their_own_answers(rng, n):
    answers = rng.dirichlet(np.ones(4), n)
    np.testing.assert_allclose(transduction.transduce(answers, rng.normal(size=(n, 5))), answers)


def test_features_that_are_alike_keep_the_answers_and_sure_answers_stay_finite(rng):
    answers = np.eye(4)[np.arange(40) % 4]
    np.testing.assert_allclose(transduction.transduce(answers, np.ones((40, 6))), answers, atol=1e-30)
    found = transduction.transduce(answers, rng.normal(size=(40, 6)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1)


def world(rng):
    """Two languages whose clusters lie apart, speakers further off than emotions, answers that an offset misleads."""
    parts = [blobs(rng) for _ in range(2)]
    ids = np.concatenate([part[1] for part in parts])
    features = np.concatenate([part[0] + 10 * i for i, part in enumerate(parts)])
    speaker = np.arange(800) // 40
    features = features + 6 * rng.normal(size=(20, 12))[speaker]
    columns = {
        "corpus": np.full(800, "c"),
        "language": np.repeat(["de", "pl"], 400),
        "speaker": speaker.astype(str),
        "emotion": np.array(LABELS)[ids],
    }
    # Embeddings that say what `weak_answers` says: along its labels' anchors.
    embeddings = np.log(weak_answers(rng, ids))
    prompts = {label: np.eye(4)[[i]] for i, label in enumerate(LABELS)}
    return embeddings, prompts, columns, features


def test_rows_that_were_answered_together(rng):
    embeddings, prompts, columns, features = world(rng)
    names = ("none", "speaker", "corpus_em", "speaker_em")
    given = (embeddings, prompts, 3.0, columns, LABELS)
    rows = zero_shot.score(*given, trained_on=NOTHING, adapt=names, features=features, resamples=10)
    ua = {(row["adapt"], row["language"]): row["ua"] for row in rows}
    assert [row["adapt"] for row in rows] == [name for name in names for _ in "12"]
    for language in ("de", "pl"):
        assert ua["speaker_em", language] > 0.98 > 0.9 > max(ua["none", language], ua["corpus_em", language])
    assert all(row["fallback_speakers"] == 0 for row in rows if row["adapt"] == "speaker_em")
    # A language is alone with itself.
    here = columns["language"] == "de"
    alone = zero_shot.score(
        embeddings[here], prompts, 3.0, {name: value[here] for name, value in columns.items()}, LABELS,
        trained_on=NOTHING, adapt=("speaker_em",), features=features[here], resamples=10,
    )  # fmt: skip
    assert alone == [row for row in rows if (row["adapt"], row["language"]) == ("speaker_em", "de")]


def test_missing_and_broken_features_are_refused(rng):
    embeddings, prompts, columns, features = world(rng)
    given = {"trained_on": NOTHING, "adapt": ("corpus_em",)}
    with pytest.raises(ValueError, match="corpus_em: there are no features"):
        zero_shot.score(embeddings, prompts, 3.0, columns, LABELS, **given)
    features[3, 2] = np.nan
    with pytest.raises(FloatingPointError, match=r"1 of 800 features are not finite .* the first: row 3\."):
        zero_shot.score(embeddings, prompts, 3.0, columns, LABELS, **given, features=features)
