import dataclasses
import math
import pickle

import jax
import numpy as np
import pytest
from fake_corpora import cells, make_corpus

from mser_jax.corpora.emotions import EMOTIONS
from mser_jax.data import sources
from mser_jax.losses.classification import cross_entropy


def test_join_keeps_order_and_values(two_corpora):
    table = two_corpora
    a, b = (source.data for source in table.sources)
    assert len(table) == len(a) + len(b)
    records = sources.RecordSource(table)
    assert len(records) == len(table)
    for row in (0, 5, len(a) - 1, len(a), len(table) - 1):
        example = records[row]
        assert example["id"] == table["id"][row] == records.name(row)
        assert records.audio(row) == example["audio"]
    assert [source.weight for source in table.sources] == [1.0, 2.0]
    assert set(table["primary"]) == {"en", "de", "zh"} and "en-GB" in set(table["language"])
    assert [EMOTIONS[i] for i in table["emotion_id"]] == table["emotion"].tolist()
    assert math.isclose(table.hours * 3600, table["duration_s"].sum())


def test_parallel_ids_are_of_one_corpus(two_corpora):
    table = two_corpora
    parallel = table["parallel"]
    assert (parallel[table["corpus"] == "b"] == -1).all()
    a = table["corpus"] == "a"
    assert (parallel[a] >= 0).all()
    for one in np.unique(table["parallel_id"][a]):
        assert len(set(parallel[a & (table["parallel_id"] == one)])) == 1
    again = make_corpus("c", cells(["en"], ["sad"], 3), parallel=True)
    other = sources.join([(again, 1.0)])
    assert set(again.index["parallel_id"].to_pylist()) & set(table["parallel_id"])
    assert not set(other["parallel"]) & set(parallel)


def test_labels_and_vocabularies(two_corpora):
    table = two_corpora
    names = table.vocabularies
    assert names.languages == ("de", "en", "zh") and names.domains == ("real",)
    assert names.speakers == tuple(sorted(set(table["speaker"])))
    labels = table.labels()
    assert all(ids.dtype == np.int32 for ids in labels.values())
    assert [names.languages[i] for i in labels["language"]] == table["primary"].tolist()
    assert [names.speakers[i] for i in labels["speaker"]] == table["speaker"].tolist()
    smaller = dataclasses.replace(names, languages=("en",), domains=("espeak",))
    unknown = table.labels(smaller)
    assert set(unknown["language"][table["primary"] == "en"]) == {0}
    assert set(unknown["language"][table["primary"] != "en"]) == {-1} == set(unknown["domain"])


def test_what_is_unknown_is_in_no_vocabulary():
    """No speaker, language or domain: −1, not one person, one language and one domain that a head learns to tell."""
    known = make_corpus("a", cells(["en", "de-AT"], ["sad"], 4))
    nobody = make_corpus("b", cells(["und", "", "en"], ["sad"], 4), speaker="", domain="")
    table = sources.join([(known, 1.0), (nobody, 1.0)])
    names, labels = table.vocabularies, table.labels()
    assert names.languages == ("de", "en") and names.domains == ("real",)
    assert names.speakers == ("a:0", "a:1", "a:2")
    unknown = np.isin(table["primary"], ["und", ""])
    np.testing.assert_array_equal(labels["language"] < 0, unknown)
    for name in ("speaker", "domain"):
        np.testing.assert_array_equal(labels[name] < 0, table["corpus"] == "b")
    logits = np.random.default_rng(0).normal(size=(len(table), 3)).astype(np.float32)
    valid = np.ones(len(table), bool)
    _, counted, _ = cross_entropy(logits, labels["speaker"], valid)
    assert counted == (table["corpus"] == "a").sum(), "nobody trains the adversary"
    assert not np.asarray(jax.grad(lambda x: cross_entropy(x, labels["speaker"], valid)[0])(logits))[8:].any()


def test_filters(two_corpora):
    table = two_corpora
    assert set(table.filter(include_languages="EN")["language"]) == {"en", "en-GB"}
    assert set(table.filter(include_languages="en-GB, zh")["language"]) == {"en-GB", "zh"}
    assert set(table.filter(exclude_languages="en")["language"]) == {"de", "zh"}
    assert set(table.filter(include_languages="e,z,d,en")["language"]) == {"en", "en-GB"}
    chosen = table.filter(include_languages="en,de", exclude_languages="de", emotions=("sad", "neutral"))
    assert set(chosen["emotion"]) == {"sad", "neutral"} and set(chosen["primary"]) == {"en"}
    assert sum(count for _, count in chosen.removed) == len(table) - len(chosen)
    assert sources.RecordSource(chosen)[len(chosen) - 1]["id"] == chosen["id"][-1]


def test_split_filter_keeps_corpora_without_splits():
    a = make_corpus("a", cells(["en"], ["sad"], 4), split="train")
    b = make_corpus("b", cells(["en"], ["sad"], 3), split="test")
    c = make_corpus("c", cells(["en"], ["sad"], 2))
    table = sources.join([(a, 1.0), (b, 1.0), (c, 1.0)])
    assert set(table.filter(split="train")["corpus"]) == {"a", "c"}
    assert set(table.filter(split="validation,test")["corpus"]) == {"b", "c"}
    assert len(table.filter(split="")) == 9


def test_unlabelled_records_go_unless_asked_for():
    table = sources.join([(make_corpus("a", cells(["en"], ["sad", ""], 4)), 1.0)])
    assert len(table.filter()) == 4 and set(table.filter()["emotion_id"]) == {EMOTIONS.index("sad")}
    assert len(table.filter(emotions=None)) == 8
    assert set(table["emotion_id"][table["emotion"] == ""]) == {-1}


def test_an_empty_result_says_which_filter_removed_what(two_corpora):
    with pytest.raises(ValueError, match=r"exclude_languages=en: removed (\d+)(.|\n)*emotions=sad: removed") as error:
        two_corpora.filter(exclude_languages="en", emotions=("sad",))
    assert "'de'" in str(error.value)
    with pytest.raises(ValueError, match="angr"):
        two_corpora.filter(emotions=("angr",))


def test_join_refuses_a_damaged_index():
    corpus = make_corpus("a", cells(["en"], ["sad"], 4))
    with pytest.raises(ValueError, match="pitch_hz"):
        sources.join([(dataclasses.replace(corpus, index=corpus.index.drop_columns("pitch_hz")), 1.0)])
    with pytest.raises(ValueError, match="4 rows"):
        sources.join([(dataclasses.replace(corpus, source=corpus.source[:3]), 1.0)])


def test_strings_are_shared_and_the_source_pickles(two_corpora):
    assert len({id(value) for value in two_corpora["corpus"]}) == 2
    records = pickle.loads(pickle.dumps(sources.RecordSource(two_corpora)))
    assert records.audio(7) == two_corpora.sources[0].data[7]["audio"]
