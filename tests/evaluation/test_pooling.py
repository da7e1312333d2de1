"""Statistics of speakers: as good as their means where they say everything, as good as the corpus where they do not."""

import numpy as np
import pytest

from mser_jax.evaluation import pooling, zero_shot

LABELS = ("angry", "happy", "neutral", "sad")
DIM = 40


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def world(rng, speakers=24, each=24, offset=0.35):
    """Embeddings whose speakers lie apart also where emotions do, nuisance with a spectrum of 1/k; features alike.

    Every speaker says every emotion equally often.
    """
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    classes, spectrum = basis[:4] - basis[:4].mean(0), 1 / np.arange(1, DIM + 1)
    y, who = np.tile(np.arange(4), speakers * each // 4), np.repeat(np.arange(speakers), each)
    z = classes[y] + 0.8 * rng.normal(size=(len(y), DIM)) @ (spectrum**0.5 * basis.T).T * 0.6
    voices = rng.normal(size=(speakers, 4)) @ basis[:4] + rng.normal(size=(speakers, DIM)) @ (spectrum * basis.T).T
    z = z + offset * voices[who] + 0.6 * basis[5]
    turn = rng.normal(size=(DIM, 60)) / np.sqrt(DIM)
    features = (z + 0.3 * voices[who]) @ turn + 0.3 * rng.normal(size=(len(y), 60))
    prompts = {label: unit(c + 0.1 * rng.normal(size=(5, DIM))) for label, c in zip(LABELS, classes, strict=True)}
    return unit(z), features, prompts, y, who


def cut(rng, y, who):
    """The positions that are left of speakers with 3–8 utterances, most of them of one emotion or two."""
    kept = []
    for speaker in np.unique(who):
        mine = rng.permutation(np.flatnonzero(who == speaker))
        share = rng.dirichlet(np.full(4, 0.3)) + 1e-6
        order = np.argsort(rng.exponential(size=len(mine)) / share[y[mine]])
        kept.append(mine[order[: rng.integers(3, 9)]])
    return np.sort(np.concatenate(kept))


def scores(z, features, prompts, y, who):
    """{adaptation: UA}, and "mean": the speaker's own mean subtracted, as it is."""
    columns = {
        "corpus": np.full(len(y), "c"), "language": np.full(len(y), "pl"),
        "speaker": np.char.add("c:", who.astype(str)), "emotion": np.array(LABELS)[y],
    }  # fmt: skip
    names = ("none", "corpus", "speaker", "corpus_em", "speaker_em")
    found = zero_shot.answers(z, prompts, 6.0, columns, LABELS, adapt=names, features=features)
    means = np.stack([z[who == speaker].mean(0) for speaker in who])
    anchors = zero_shot.label_anchors(prompts, LABELS)
    moved = z - means
    plain = zero_shot.probabilities(unit(moved / moved.std(0)), unit(anchors - anchors.mean(0)), 6.0)
    said = {name: p for name, (p, _) in found.items()} | {"mean": plain}
    return {name: np.mean([(p.argmax(1)[y == k] == k).mean() for k in np.unique(y)]) for name, p in said.items()}


@pytest.fixture(scope="module")
def table():
    """{adaptation: mean UA} of whole and of cut corpora, over 12 draws."""
    whole, few = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        made = world(rng)
        z, features, prompts, y, who = made
        kept = cut(rng, y, who)
        whole.append(scores(*made))
        few.append(scores(z[kept], features[kept], prompts, y[kept], who[kept]))
    found = [{name: np.mean([draw[name] for draw in draws]) for name in draws[0]} for draws in (whole, few)]
    print(found)
    return found


def test_speakers_who_say_everything_lose_nothing(table):
    whole, _ = table
    assert whole["mean"] > whole["corpus"] + 0.03, "there is something to lose"
    assert whole["speaker"] > whole["mean"] - 0.01
    assert whole["speaker_em"] > whole["corpus_em"]


def test_few_and_one_sided_utterances_are_never_worse_than_the_corpus(table):
    _, few = table
    assert few["mean"] < few["corpus"] - 0.05, "the mean as it is does harm"
    assert few["speaker"] > few["corpus"] - 0.01
    assert few["speaker_em"] > few["corpus"] - 0.01 and few["speaker_em"] > few["corpus_em"] - 0.01


def test_one_sidedness_of_known_speakers():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 6)
    everything = np.eye(4)[np.tile([0, 1, 2, 3, 0, 2], 30)]
    one_each = np.eye(4)[np.repeat(rng.integers(0, 4, 30), 6)]
    assert pooling.one_sidedness(everything, owner) < 0.05 and pooling.one_sidedness(one_each, owner) > 0.95
    assert pooling.one_sidedness(everything[:6], owner[:6]) == 1.0 == pooling.one_sidedness(one_each[::6], owner[::6])


def test_the_mean_is_shrunk_by_what_is_known():
    """Of two speakers with one offset, who has more utterances keeps more of it; nobody keeps nothing."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(["a", "b", "c", "d", ""], [40, 40, 40, 4, 12])
    y = np.arange(len(speaker)) % 4
    classes, lies = np.eye(6)[:4], {"a": 1.0, "b": -1.0, "c": -0.5, "d": 1.0, "": 0.5}
    values = classes[y] + np.outer([lies[name] for name in speaker], np.eye(6)[0]) + 0.2 * rng.normal(size=(len(y), 6))
    centre, shrunk = pooling.speaker_means(values, np.eye(4)[y], speaker)
    kept = {name: 1 - shrunk[speaker == name][0] for name in lies}
    assert kept["a"] == kept["b"] == kept["c"] > kept["d"] > 0 == kept[""]
    assert kept["a"] > 0.9
    np.testing.assert_allclose(centre[speaker == ""], np.tile(values.mean(0), (12, 1)))
    assert centre[speaker == "a"][0, 0] - centre[speaker == "b"][0, 0] == pytest.approx(2, abs=0.3)
    alone, gone = pooling.speaker_means(values[:40], np.eye(4)[y[:40]], speaker[:40])
    np.testing.assert_allclose(alone, np.tile(values[:40].mean(0), (40, 1)))
    assert (gone == 1).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_hardly_any_utterances_and_constant_ones_stay_finite(n):
    for values in (np.ones((n, 3)), np.eye(5)[:n, :3]):
        for speaker in (np.arange(n).astype(str), np.full(n, "a"), np.array(["a", "b", "a", "b", ""])[:n]):
            centre, shrunk = pooling.speaker_means(values, np.full((n, 4), 0.25), speaker)
            assert np.isfinite(centre).all() and ((shrunk >= 0) & (shrunk <= 1)).all()
