"""Who calibrates: never anybody who trains or is scored, the same people each time, and not many."""

import numpy as np
import pytest

from mser_jax.data import held_back
from mser_jax.data.sources import MixtureTable, Source


def table(cells, folder="here", split="train"):
    """A table of {(corpus, language): (speakers, utterances each)}; speakers are named by their corpus."""
    rows = [
        (corpus, language, f"{corpus}:{number:03}")
        for (corpus, language), (speakers, each) in cells.items()
        for number in range(speakers)
        for _ in range(each)
    ]
    names = ("corpus", "primary", "speaker")
    columns = {name: np.array(column, object) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    columns |= {"source": np.zeros(len(rows), np.int32), "position": np.arange(len(rows))}
    columns["split"] = np.full(len(rows), split, object)
    return MixtureTable((Source("c", "c", 1.0, folder, None),), columns)


def share(mix, chosen):
    return np.isin(mix["speaker"], chosen).mean()


def test_a_few_of_many_and_of_every_corpus_at_most_an_eighth():
    mix = table({("a", "en"): (91, 6), ("b", "en"): (24, 14), ("c", "de"): (10, 50), ("d", "zh"): (4, 150)})
    chosen = held_back.choose(mix, 256)
    assert 3 <= len(chosen) <= 129 // 20 and chosen == tuple(sorted(chosen))
    corpora = [name.split(":")[0] for name in chosen]
    assert {"a", "b", "c"} == set(corpora) and corpora.count("c") == 1, "the four of d are all needed"
    assert share(mix, chosen) < 0.08
    assert held_back.choose(mix, 256) == chosen
    # What else is in the mix changes nothing for a speaker whose turn comes first.
    assert set(held_back.choose(table({("a", "en"): (91, 6)}), 6)) <= set(
        held_back.choose(table({("a", "en"): (91, 6)}), 99)
    )


def test_many_utterances_are_enough():
    mix = table({("a", "en"): (4000, 30)})
    assert len(held_back.choose(mix, 256)) == 9
    assert len(held_back.choose(mix, 10**9)) == 200


@pytest.mark.parametrize("cells", [{("a", "en"): (19, 5)}, {(c, "en"): (7, 5) for c in "abcdef"}])
def test_where_there_are_few_all_train(cells):
    assert held_back.choose(table(cells), 256) == ()


def test_unknown_speakers_are_nobody():
    mix = table({("a", "en"): (30, 3)})
    mix.columns["speaker"][:] = ""
    assert held_back.choose(mix, 256) == ()


def test_a_voice_that_speaks_two_languages_is_missed_in_both():
    mix = table({("a", "en"): (16, 3), ("a", "de"): (16, 3), ("b", "en"): (40, 3)})
    chosen = held_back.choose(mix, 10**6)
    assert len(chosen) == 2 and any(name.startswith("a:") for name in chosen)


def test_nobody_who_trains_or_is_scored_calibrates():
    training = table({("a", "en"): (3, 4)})
    candidates = table({("a", "en"): (6, 4), ("b", "de"): (3, 4)}, split="validation")
    candidates.columns["speaker"][-1] = ""
    scored = table({("b", "de"): (1, 2)}, folder="elsewhere")
    found = held_back.unseen(candidates, training, scored)
    assert set(found["speaker"]) == {"a:003", "a:004", "a:005", "b:001", "b:002"} and len(found) == 19
    # The same record under another filter; the same voice in another language may be scored.
    records = held_back.select(candidates, np.arange(len(candidates)) < 13)
    assert set(held_back.unseen(candidates, training, records)["speaker"]) == {
        "a:004",
        "a:005",
        "b:000",
        "b:001",
        "b:002",
    }
    other = table({("a", "fa"): (9, 4)}, folder="elsewhere")
    assert len(held_back.unseen(candidates, training, other)) == 23
