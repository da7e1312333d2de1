import collections
import math

import numpy as np
import pytest
from fake_corpora import cells, make_corpus

from mser_jax.corpora.emotions import EMOTIONS
from mser_jax.data import mixture, sources

CLASSES = (0.2, 0.4, 0.6)


def options(**kwargs):
    return mixture.MixtureOptions(**{"length_classes": CLASSES, **kwargs})


def plans(table, chosen, steps, **kwargs):
    dataset = mixture.training_plan(table, chosen, **{"batch_size": 16, "seed": 5, **kwargs})
    return [dataset[i] for i in range(steps)]


def rows_of(found):
    return np.concatenate([plan.rows for plan in found])


def expected_weights(table, temperature, balanced):
    """The configured weight of each (source, corpus, language, emotion), by counting dictionaries."""
    rows = list(zip(table["source"], table["corpus"], table["primary"], table["emotion_id"], strict=True))
    out = {}
    for key in set(rows):
        weight = 1.0
        for depth in range(4):
            siblings = collections.Counter(row[: depth + 1] for row in rows if row[:depth] == key[:depth])
            sizes = {k: n ** (1 / temperature) for k, n in siblings.items()}
            if depth == 0:
                sizes = {k: v * table.sources[k[0]].weight for k, v in sizes.items()}
            if depth == 3:
                sizes = {k: 1 if balanced else n for k, n in siblings.items()}
            weight *= sizes[key[: depth + 1]] / sum(sizes.values())
        out[key] = weight
    return out


@pytest.mark.parametrize("temperature", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("balanced", [True, False])
def test_draws_follow_the_configured_weights(two_corpora, temperature, balanced):
    table = two_corpora
    chosen = options(temperature=temperature, balance_emotions=balanced)
    expected = expected_weights(table, temperature, balanced)
    assert math.isclose(sum(expected.values()), 1)
    for stratum in mixture.strata(table, chosen):
        assert math.isclose(stratum.weight, expected[stratum.key], rel_tol=1e-9)
    rows = rows_of(plans(table, chosen, 800))
    keys = zip(
        table["source"][rows],
        table["corpus"][rows],
        table["primary"][rows],
        table["emotion_id"][rows],
        strict=True,
    )
    drawn = collections.Counter(keys)
    for key, weight in expected.items():
        assert abs(drawn[key] / len(rows) - weight) < 0.01 + 0.02 * weight, key


def test_temperature_flattens(two_corpora):
    """At T = inf corpora weigh as their specs say (1 : 2), languages inside alike, whatever their sizes."""
    table = two_corpora
    rows = rows_of(plans(table, options(temperature=math.inf), 600))
    assert abs((table["corpus"][rows] == "b").mean() - 2 / 3) < 0.01
    inside = rows[table["corpus"][rows] == "a"]
    assert abs((table["primary"][inside] == "de").mean() - 0.5) < 0.02


def test_every_record_of_a_stratum_is_drawn_equally_often_in_all_length_classes(two_corpora):
    table = two_corpora
    counts = np.bincount(rows_of(plans(table, options(), 1500)), minlength=len(table))
    for stratum in mixture.strata(table, options()):
        own = counts[stratum.rows]
        assert own.min() > 0.8 * own.mean() - 2 and own.max() < 1.2 * own.mean() + 2


def test_one_epoch_of_a_stratum_visits_each_once_before_any_twice():
    table = sources.join([(make_corpus("a", cells(["en"], ["sad"], 48)), 1.0)])
    rows = rows_of(plans(table, options(), 9, batch_size=16))
    epochs = rows.reshape(3, 48)
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert epochs[0].tolist() != sorted(epochs[0].tolist())


def test_batches_are_hierarchical(two_corpora):
    """A batch of enough rows holds every language of each corpus, and every emotion of those."""
    table = two_corpora.filter(include_languages="en,de", emotions=("angry", "happy"))
    for plan in plans(table, options(length_classes=(1.0,), temperature=math.inf), 20, batch_size=16):
        drawn = collections.Counter(zip(table["primary"][plan.rows], table["emotion"][plan.rows], strict=True))
        assert set(drawn.values()) == {4} and len(drawn) == 4


@pytest.mark.parametrize("pairs", [False, True])
def test_the_global_batch_is_the_same_set_for_any_number_of_processes(two_corpora, pairs):
    chosen = options(pair_languages=pairs)
    whole = plans(two_corpora, chosen, 30)
    assert len({plan.length_class for plan in whole}) == len(CLASSES)
    for count in (2, 4, 8):
        parts = [plans(two_corpora, chosen, 30, process_index=p, process_count=count) for p in range(count)]
        for step, plan in enumerate(whole):
            assert {part[step].length_class for part in parts} == {plan.length_class}
            together = [pair for part in parts for pair in zip(part[step].positions, part[step].rows, strict=True)]
            assert sorted(together) == sorted(zip(plan.positions, plan.rows, strict=True))
            assert all(len(part[step].rows) == 16 // count for part in parts)


def test_positions_are_consecutive_within_a_class_and_rows_belong_to_it(two_corpora):
    seen = collections.defaultdict(list)
    for plan in plans(two_corpora, options(), 40):
        seen[plan.length_class] += plan.positions.tolist()
        held = two_corpora["duration_s"][plan.rows]
        assert (held <= CLASSES[plan.length_class]).all() or plan.length_class == 2
        assert plan.length_class == 0 or (held > CLASSES[plan.length_class - 1]).all()
    for positions in seen.values():
        assert positions == list(range(len(positions)))


def test_seed_and_start(two_corpora):
    dataset = mixture.training_plan(two_corpora, options(), batch_size=16, seed=5)
    tail = dataset[37:]
    for i in range(10):
        np.testing.assert_array_equal(tail[i].rows, dataset[37 + i].rows)
        np.testing.assert_array_equal(tail[i].positions, dataset[37 + i].positions)
    other = mixture.training_plan(two_corpora, options(), batch_size=16, seed=6)
    assert any((other[i].rows != dataset[i].rows).any() for i in range(5))


def test_merge_small():
    def merged(counts, batch):
        out = mixture.merge_small(np.repeat(np.arange(len(counts)), counts), len(counts), batch)
        return np.bincount(out, minlength=len(counts)).tolist()

    assert merged([50, 60, 70], 40) == [50, 60, 70]
    assert merged([50, 10, 70], 40) == [50, 0, 80]
    assert merged([10, 10, 70], 40) == [0, 0, 90]
    assert merged([10, 35, 70], 40) == [0, 45, 70]
    assert merged([50, 60, 7], 40) == [50, 67, 0]
    assert merged([50, 3, 7], 40) == [60, 0, 0]
    assert merged([5, 3, 7], 40) == [0, 0, 15]


def test_length_class_of():
    out = mixture.length_class_of(np.array([0.1, 0.2, 0.2001, 0.4, 0.6, 0.61, 99]), CLASSES)
    assert out.tolist() == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_evaluation_loses_nothing_and_doubles_nothing(two_corpora, count):
    found = [
        mixture.evaluation_plan(two_corpora, options(), batch_size=12, process_index=p, process_count=count)
        for p in range(count)
    ]
    assert len({len(dataset) for dataset in found}) == 1
    every = [plan for dataset in found for plan in dataset]
    rows = rows_of(every)
    assert sorted(rows[rows >= 0].tolist()) == list(range(len(two_corpora)))
    assert (rows == -1).sum() < 12 * len(CLASSES)
    for step in range(len(found[0])):
        assert len({dataset[step].length_class for dataset in found}) == 1
        assert {len(dataset[step].rows) for dataset in found} == {12 // count}
    classes = [plan.length_class for plan in found[0]]
    assert classes == sorted(classes) and set(classes) == {0, 1, 2}


def paired(table, **kwargs):
    rows = rows_of(plans(table, options(pair_languages=True, **kwargs), 300)).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def test_pairs_are_the_same_words_and_emotion_in_another_language():
    # Every sentence is there twice in each language × emotion: a partner in the own language would be at hand.
    corpus = make_corpus("a", cells(["en", "de", "zh"], ["sad", "angry"], 8), parallel=True, sentences=4)
    table = sources.join([(corpus, 1.0)])
    first, second = paired(table)
    assert (table["parallel"][first] == table["parallel"][second]).all()
    assert (table["emotion_id"][first] == table["emotion_id"][second]).all()
    assert (table["primary"][first] != table["primary"][second]).all()
    # Neither side is tied to one language or to the same partner.
    assert len(set(table["primary"][first])) == len(set(table["primary"][second])) == 3
    assert len(set(zip(first.tolist(), second.tolist(), strict=True))) > 80
    drawn = np.bincount(first, minlength=len(table))
    assert drawn.max() <= 1.3 * drawn.mean()


def test_pairs_fall_back_to_the_emotion_then_to_anything():
    some = make_corpus("a", cells(["en", "de"], ["sad"], 8), parallel=True)
    plain = make_corpus("b", cells(["en", "de"], ["angry"], 8))
    alone = make_corpus("c", cells(["en"], ["happy"], 8))
    table = sources.join([(some, 1.0), (plain, 1.0), (alone, 1.0)])
    first, second = paired(table)
    emotion, language, parallel = table["emotion"], table["primary"], table["parallel"]
    for name, same_words in (("sad", True), ("angry", False)):
        mine = emotion[first] == name
        assert mine.sum() > 200
        assert (emotion[second[mine]] == name).all() and (language[first[mine]] != language[second[mine]]).all()
        assert ((parallel[first[mine]] == parallel[second[mine]]) & (parallel[first[mine]] >= 0)).all() == same_words
    mine = emotion[first] == "happy"
    assert len(set(emotion[second[mine]])) == 3


def test_an_unknown_language_is_nobodys_partner():
    """Of "und" it cannot be told that it is another language; its rows are drawn all the same."""
    corpus = make_corpus("a", cells(["und", "en", "de"], ["sad"], 20), parallel=True)
    table = sources.join([(corpus, 1.0)])
    first, second = paired(table)
    languages = table["primary"][first], table["primary"][second]
    told = languages[0] != "und"
    assert told.any() and not told.all()
    assert (languages[1][told] != "und").all() and (languages[0] != languages[1])[told].all()


def test_pair_partners_share_the_length_class(two_corpora):
    for plan in plans(two_corpora, options(pair_languages=True), 60):
        classes = mixture.length_class_of(two_corpora["duration_s"][plan.rows], CLASSES)
        assert set(classes) == {plan.length_class}
    first, second = paired(two_corpora)
    # All records but those of "sad", "neutral" and "surprise" (one language) have a partner in their class.
    can = np.isin(two_corpora["emotion"][first], ["angry", "happy"])
    assert (two_corpora["primary"][first] != two_corpora["primary"][second])[can].mean() > 0.95


def test_describe(two_corpora):
    text = mixture.describe(two_corpora.filter(exclude_languages="zh"), options())
    table = two_corpora.filter(exclude_languages="zh")
    assert "left out by exclude_languages=zh: 22" in text
    assert f"{len(table):,}" in text and "100.00%" in text and "angry 13, happy 13" in text
    assert "cropped" in text
    shares = [float(line.split("%")[0].split()[-1]) for line in text.splitlines()[1:4]]
    assert abs(sum(shares) - 100) < 0.05


def test_a_tiny_weight_among_many_strata_keeps_its_share():
    """Weights of 1 : 1000 and 7 languages × 7 emotions: the exact shares still come out."""
    table = sources.join(
        [
            (make_corpus("a", cells([f"l{i}" for i in range(7)], EMOTIONS, 2)), 1000.0),
            (make_corpus("b", cells(["en"], ["sad"], 2)), 1.0),
        ]
    )
    rows = rows_of(plans(table, options(temperature=math.inf), 700, batch_size=16))
    assert abs((table["corpus"][rows] == "b").mean() - 1 / 1001) < 0.0005


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 15, "process_count": 2}, "divides"),
        ({"process_count": 2, "process_index": 2}, "process 2 of 2"),
        ({"batch_size": 15}, "even"),
        ({"seed": -1}, "seed"),
    ],
)
def test_training_plan_refuses(two_corpora, kwargs, message):
    with pytest.raises(ValueError, match=message):
        mixture.training_plan(two_corpora, options(pair_languages=True), **{"batch_size": 16, "seed": 0, **kwargs})


@pytest.mark.parametrize("wrong", [{"length_classes": ()}, {"length_classes": (2.0, 2.0)}, {"temperature": 0.0}])
def test_mixture_options_refuse(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        mixture.MixtureOptions(**wrong)
