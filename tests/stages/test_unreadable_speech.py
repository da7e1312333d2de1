"""What cannot be decoded or is not finite, in training and in evaluation, on corpora in memory without a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_corpora import cells, make_corpus

from mser_jax import config as config_lib
from mser_jax import stages
from mser_jax.data import sources, unreadable
from mser_jax.evaluation import finite, report
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import scoring

LABELS = ("angry", "fear", "happy", "neutral", "sad", "surprise")


@pytest.fixture
def speech(tiny, monkeypatch):
    """speech(broken, **overrides) -> (Evaluation, its data); `broken`: {row of 2 languages × 6 emotions × 9: bytes}."""

    def make(broken, **overrides):
        corpus = make_corpus("a", cells(["fa", "pl"], LABELS, 9))
        for row, content in broken.items():
            corpus.source[row]["audio"] = content
        monkeypatch.setattr(sources, "load_table", lambda *_: sources.join([(corpus, 1.0)]))
        kept = {"evaluate.batch_size": 8, "evaluate.dev_utterances": 0, "data.exclude_languages": ""}
        config = tiny(**{**kept, **overrides})
        data = stages.make(config)._data
        return scoring.Evaluation(config, data), data

    return make


def over(evaluation, data, function=None):
    """Probabilities of every utterance: certain of one label."""
    certain = function or (lambda params, batch: jax.nn.one_hot(batch["record"] % 6, 6))
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = {"w": jnp.ones(3), "n": jnp.ones(3, jnp.int32)}
        return scoring.over_table(certain, params, data, evaluation.table, mesh, "test")


def test_unreadable_utterances_stand_in_the_rows_and_in_the_table(speech, tmp_path):
    evaluation, data = speech({3: b"", 60: b"RIFF", 70: b""}, **{"data.max_unreadable": 0.05})
    probabilities, kept = over(evaluation, data)
    assert sorted(set(range(108)) - set(kept.tolist())) == [3, 60, 70]
    found = evaluation.rows(probabilities, kept)
    assert [(row["language"], row["n"], row["skipped"], row["unreadable"]) for row in found] == [
        ("fa", 53, 0, 1),
        ("pl", 52, 0, 2),
    ]
    assert found[1]["unreadable_reasons"] == {"unreadable": 1, "empty": 1}
    assert found[1]["unreadable_ids"] == ["a-0060", "a-0070"]
    results = evaluation.results(found, probabilities, kept, run=tmp_path, step=1, scoring="similarity")
    assert results["unreadable"] == 3 and report.read(report.write(results, tmp_path).parent) == results
    assert "not scored: 2 of a/pl (unreadable 1, empty 1): a-0060, a-0070\n" in report.format_table(results)


def test_a_language_of_which_nothing_can_be_decoded_has_its_row(speech):
    evaluation, data = speech(dict.fromkeys(range(54), b"RIFF"), **{"data.max_unreadable": 0.5})
    found = evaluation.rows(*over(evaluation, data))
    assert [(row["language"], row["n"], row["unreadable"], row["ua"] is None) for row in found] == [
        ("fa", 0, 54, True),
        ("pl", 54, 0, False),
    ]


@pytest.mark.parametrize("count", [2, 36])
def test_more_than_a_share_is_refused_in_evaluation(speech, count):
    evaluation, data = speech(dict.fromkeys(range(0, 3 * count, 3), b"RIFF"))
    with pytest.raises(unreadable.TooManyUnreadableError, match=rf"{count} of 108 .* \(unreadable {count}\): a-0000,"):
        over(evaluation, data)


def test_more_than_a_share_is_refused_in_training(speech):
    _, data = speech(dict.fromkeys(range(0, 108, 3), b"RIFF"), **{"data.pair_languages": False})
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    batches = data.batches(0, mesh)
    with pytest.raises(unreadable.TooManyUnreadableError, match=r"of 108 records of the training mix .*\(unreadable "):
        for _ in range(20):
            batches.check(next(batches))
    batches.close()
    _, data = speech({5: b"RIFF"}, **{"data.pair_languages": False})
    batches = data.batches(0, mesh)
    for _ in range(20):  # three passes
        batches.check(next(batches))
    batches.close()


def test_nan_is_refused_with_the_utterances(speech):
    evaluation, data = speech({})

    def broken(params, batch):
        return jnp.where(batch["record"][:, None] == 17, jnp.nan, 1 / 6) * jnp.ones((8, 6))

    with pytest.raises(finite.NotFiniteError, match=r"1 of 108 utterances \(test\) are not finite.* a-0017\. .*listen"):
        over(evaluation, data, broken)


def test_broken_parameters_are_told_from_broken_recordings():
    params = {"a/kernel": jnp.ones((2, 2)), "b/kernel": jnp.array([1.0, np.nan]), "c": jnp.ones(2, jnp.int32)}
    with pytest.raises(finite.NotFiniteError, match=r"1 of 2 parameters of the checkpoint .* b/kernel"):
        finite.check(np.array([[np.inf]]), "scores", ["x"], params)
    assert not finite.why_broken({"a": jnp.ones(2)})


def test_a_corpus_that_is_damaged_is_a_line(tiny, monkeypatch):
    def damaged(*_):
        raise RuntimeError("x is there without its index.parquet")

    monkeypatch.setattr(sources, "load_table", damaged)
    with pytest.raises(config_lib.ConfigError, match=r"^--config\.data\.corpora: x is there"):
        stages.make(tiny()).data_size()
