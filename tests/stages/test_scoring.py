"""What is scored and what calibrates never meet; the temperature comes from the latter and reaches the figures."""

import json

import numpy as np
import pytest
import soundfile
from absl import flags
from matplotlib.image import imread
from ml_collections import config_flags
from scipy.special import softmax

from configs import evaluate as evaluate_config
from configs import stage1 as stage1_config
from mser_jax import config as config_lib
from mser_jax import evaluate as checkpoint_evaluation
from mser_jax import stages
from mser_jax.evaluation import calibration, incongruence, report
from mser_jax.stages import scoring, speech_data


@pytest.fixture(scope="module")
def evaluate(tiny):
    """evaluate(**overrides of config.evaluate) -> Evaluation over two conflicting and four plain sentences."""
    corpus = tiny().data.corpora.replace("emotional_sentences=0", "emotional_sentences=2")
    made = {}

    def make(**overrides):
        key = tuple(sorted(overrides.items()))
        if key not in made:
            changed = {f"evaluate.{name}": value for name, value in overrides.items()}
            config = tiny(**{"data.corpora": corpus, **changed})
            made[key] = scoring.Evaluation(config, stages.make(config)._data)
        return made[key]

    return make


def ids(table):
    return set(table["id"])


def test_dev_utterances_are_never_scored(evaluate):
    """Validation voices of the languages that train; where those are scored nobody is left of four voices."""
    found = evaluate(split="auto", dev_utterances=60)
    assert set(found.table["split"]) == {"test"}
    assert len(found.dev_table) == 60 and not ids(found.dev_table) & ids(found.table)
    assert set(found.dev_table["split"]) == {"validation"} and set(found.dev_table["language"]) == {"en", "de"}
    assert set(found.dev_table["speaker"]) == {"m5ser_mini:m6"} and set(found.dev_table["emotion"]) == set(found.labels)
    assert found.trained_on["languages"] == ["de", "en"] and not found._data.held_back
    everything = evaluate(split="auto", dev_utterances=10**6).dev_table
    assert len(everything) > 60 and not ids(everything) & ids(found.table)
    assert evaluate(split="validation,test", dev_utterances=60).dev_table is None
    assert evaluate(split="auto", dev_utterances=0).dev_table is None
    assert set(evaluate(split="auto", label_space="angry,sad").dev_table["emotion"]) == {"angry", "sad"}


def test_without_anybody_to_calibrate_it_says_so(evaluate, tmp_path, caplog):
    found = evaluate(split="validation,test", dev_utterances=60)
    calibration.store(tmp_path, 3, "similarity", calibration.Calibration(2.0, {"label_space": []}))
    with caplog.at_level("WARNING"):
        told = found.calibrate(None, tmp_path, 3, "similarity", ("en",))
    assert told == calibration.Calibration() and "Not calibrated: no known speaker is left" in caplog.text
    assert calibration.stored(tmp_path, 3, "similarity").facts is None, "what stood there was of other parameters"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"include_languages": "xx"},
            "include_languages=xx: no record is in xx; languages there: de, en, fa, pl",
        ),
        ({"include_languages": "pl,plx"}, "no record is in plx"),
        ({"exclude_languages": "xx,pl"}, "evaluate: exclude_languages=xx,pl: no record is in xx"),
        ({"split": "tset"}, "evaluate: split=tset: no record is in tset; splits there: test, train, validation"),
        ({"corpora": "speech_folder:nowhere/at/all"}, "nowhere/at/all"),
        ({"label_space": "8"}, "label space 8"),
        ({"include_languages": "pl", "exclude_languages": "pl"}, "No records left"),
        ({"label_space": "disgust,disappointed"}, "disappointed|no utterance that is scored has a label"),
    ],
)
def test_an_evaluation_that_cannot_be_is_told_when_it_is_made(evaluate, overrides, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        evaluate(**overrides)


def test_what_is_excluded_is_somewhere_in_the_run(tiny):
    """Of what is trained on or of what is scored; the two languages that stage 1's config excludes need not be."""
    held_out = "train_languages=en+de;test_languages=fa+pl"
    german = tiny().data.corpora.replace(held_out, "train_languages=de;test_languages=en")

    def table(**overrides):
        return stages.make(tiny(**{"data.corpora": german, **overrides}))._data.table

    assert stage1_config.get_config().data.exclude_languages == speech_data.USUALLY_EXCLUDED
    assert set(table()["primary"]) == {"de"}, "no Persian and no Polish there"
    with pytest.raises(config_lib.ConfigError, match="data: exclude_languages=fa: no record is in fa"):
        table(**{"data.exclude_languages": "fa"})
    assert len(table(**{"data.exclude_languages": "fa", "evaluate.corpora": tiny().data.corpora}))
    with pytest.raises(config_lib.ConfigError, match="no record is in xx"):
        table(**{"data.exclude_languages": "fa,xx", "evaluate.corpora": tiny().data.corpora})


def sure(references, classes, sharpness, right, rng):
    """Probabilities that are sure of themselves and right so often."""
    answers = np.where(rng.random(len(references)) < right, references, rng.integers(0, classes, len(references)))
    return softmax(sharpness * np.eye(classes)[answers] + rng.normal(size=(len(references), classes)), -1)


def test_overconfidence_is_mended_and_written(evaluate, tmp_path):
    rng = np.random.default_rng(1)
    found = evaluate(split="auto", dev_utterances=10**6)
    kept, dev_kept = np.arange(len(found.table)), np.arange(len(found.dev_table))
    p = sure(found.references(found.table, kept), 6, 8.0, 0.5, rng)
    dev = sure(found.references(found.dev_table, dev_kept), 6, 8.0, 0.5, rng)
    calibrated = found.calibrate(lambda table: (dev, dev_kept), tmp_path, 3, "similarity", ("en",))
    assert calibrated.temperature == calibration.fit_temperature(dev, found.references(found.dev_table, dev_kept)) > 1.5
    assert calibrated.facts["protocols"] == ["in_corpus"] and calibrated.facts["n"] == len(dev_kept)
    assert calibration.stored(tmp_path, 3, "similarity") == calibrated
    tempered = calibration.tempered(p, calibrated.temperature)
    facts = {"run": tmp_path, "step": 3, "scoring": "label_likelihood"}
    results = found.results(
        found.rows(tempered, kept), p, kept, calibrated=calibrated, tempered=tempered, facts={"x": 1}, **facts
    )
    before, after = (results["calibration"]["ece"][when] for when in ("before", "after"))
    assert after < before - 0.1 and results["calibration"]["x"] == 1
    assert [row["ua"] for row in results["rows"]] == [row["ua"] for row in found.rows(p, kept)]
    words = [incongruence.content_emotion(name) for name in found.table["id"]]
    conflict = [w not in ("neutral", e) for w, e in zip(words, found.table["emotion"], strict=True)]
    assert results["incongruence"]["conflicting_words"]["all"]["n"] == sum(conflict) > 50
    values = dict(scoring.summary(results))
    assert values["ece/after"] == after and "incongruence/neutral_words/by_voice" in values
    paths = found.write(results, tmp_path / "out", p, kept, calibrated, tempered, answers={"none": tempered})
    assert {path.name for path in paths} == {"results.json", "predictions.parquet", "confusion.png", "reliability.png"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["calibration"]["temperature"] > 1
    assert min(imread(tmp_path / "out" / "reliability.png").shape[:2]) > 300


def test_answers_without_confidence_have_no_calibration_error(evaluate, tmp_path):
    found = evaluate(dev_utterances=100)
    kept = np.arange(len(found.table))
    chosen = np.eye(6)[found.references(found.table, kept)]
    chosen[::4] = 0
    rows = [{**row, "ece": None} for row in found.rows(chosen, kept)]
    results = found.results(rows, chosen, kept, run=tmp_path, step=3, scoring="generation:exact")
    assert sum(row["unparseable"] for row in results["rows"]) == len(kept[::4])
    assert results["macro"]["all"]["wa"] == pytest.approx(0.75, abs=0.02) and results["macro"]["all"]["ece"] is None
    assert "calibration" not in results
    for kind in incongruence.KINDS:
        assert results["incongruence"][kind]["all"]["by_words"] == 0
    assert len(found.write(results, tmp_path, chosen, kept, answers={"none": chosen})) == 3


def test_utterances_without_a_canonical_emotion_are_in_the_results(evaluate, tiny, tmp_path):
    rng = np.random.default_rng(2)
    lines = []
    for i, native in enumerate(("kwisti", "kwisti", "")):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(4000), 16_000)
        lines.append(json.dumps({"path": f"{i}.wav", "language": "mt", "emotion": native}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    mixed = f"{tiny().data.corpora},speech_folder:{tmp_path}"
    found = evaluate(corpora=mixed)
    kept = np.arange(len(found.table))
    p = np.full((len(kept), 6), 1 / 6)
    results = found.results(found.rows(p, kept), p, kept, run=tmp_path, step=3, scoring="similarity")
    (entry,) = results["unlabelled"]
    assert (entry["language"], entry["n"], entry["labels"]) == ("mt", 3, {"kwisti": 2, "": 1})
    assert "kwisti 2" in report.format_table(results)
    # A run's own map makes them utterances like any other.
    (tmp_path / "mine.toml").write_text('[labels]\nkwisti = "sad"\n')
    config = tiny(**{"evaluate.corpora": mixed, "data.labels": str(tmp_path / "mine.toml")})
    mapped = scoring.Evaluation(config, stages.make(config)._data)
    assert list(mapped.table["emotion"][mapped.table["language"] == "mt"]) == ["sad", "sad"]


def test_labels():
    spelled = scoring.canonical_labels(["Wut", "furious", "joy", "happy", "bored", "traurig"])
    assert spelled == {
        "Wut": "angry", "furious": "furious", "joy": "joy", "happy": "happy", "bored": "bored", "traurig": "sad"
    }  # fmt: skip
    assert scoring.check_labels([" a", "b "]) == ("a", "b")
    for wrong in (["a"], ["a", ""], ["a", "a "]):
        with pytest.raises(config_lib.ConfigError, match="at least two"):
            scoring.check_labels(wrong)


def test_once_for_the_same_parameters():
    calls = []
    once = scoring.OnceFor(lambda params: calls.append(params) or len(calls))
    first, second = {"a": 1}, {"a": 1}
    assert [once(first), once(first), once(second), once(second), once(first)] == [1, 1, 2, 2, 3]


def test_a_checkpoint_is_asked_the_questions_of_its_run(tiny):
    """An LLM that was asked in one language has no answers in others; what is said at evaluation goes first."""
    trained = tiny(**{"evaluate.prompt_languages": "it", "evaluate.prior": "content_free"})
    config = evaluate_config.get_config()
    merged = checkpoint_evaluation.merged_config(config, trained).evaluate
    assert (merged.prompt_languages, merged.prior) == ("it", "content_free")
    assert (merged.label_space, merged.adapt) == (trained.evaluate.label_space, "none")
    config.evaluate.prompt_languages, config.evaluate.prior = "de,es", "none"
    merged = checkpoint_evaluation.merged_config(config, trained).evaluate
    assert (merged.prompt_languages, merged.prior) == ("de,es", "none")


def test_an_evaluation_takes_over_every_key_of_a_run_and_gives_way_to_every_override(tiny):
    """Each key of the protocol, changed in the run to what is no default, and then given on a command line."""
    changed = {bool: lambda x: not x, int: lambda x: x + 1, float: lambda x: x + 0.5, str: lambda x: f"{x}x"}
    trained = tiny()
    for key, value in trained.evaluate.items():
        trained.evaluate[key] = changed[type(value)](value)
    trained.data.feature_cache, trained.precision.compute = "kept", "bfloat16"
    config = evaluate_config.get_config()
    merged = checkpoint_evaluation.merged_config(config, trained)
    assert merged.evaluate.to_dict() == trained.evaluate.to_dict()
    assert (merged.data.feature_cache, merged.precision.compute) == ("kept", "bfloat16")
    for key in config.evaluate:
        given = {bool: "False", int: "3", float: "3.0", str: "given"}[type(trained.evaluate[key])]
        holder = flags.FlagValues()
        line = ["evaluate", f"--config.evaluate.{key}={given}"]
        config_flags.DEFINE_config_dict("config", evaluate_config.get_config(), flag_values=holder, sys_argv=line)
        holder(line)
        merged = checkpoint_evaluation.merged_config(holder.config, trained).evaluate.to_dict()
        assert merged.pop(key) == type(trained.evaluate[key])({"False": 0}.get(given, given))
        assert merged == {name: value for name, value in trained.evaluate.items() if name != key}
    config.evaluate.include_languages = config.data.feature_cache = ""
    merged = checkpoint_evaluation.merged_config(config, trained)
    assert merged.evaluate.include_languages == merged.data.feature_cache == "", "nothing is a filter too"
    for key in ("adapt", "closed_set", "dev_utterances"):
        del trained.evaluate[key]
    merged = checkpoint_evaluation.merged_config(config, trained).evaluate
    assert (merged.adapt, merged.closed_set, merged.dev_utterances) == ("none", False, 0), "a run of an older version"
