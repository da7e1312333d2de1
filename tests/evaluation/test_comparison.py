"""Joint and paired intervals against simulations whose true variance is known; what cannot be paired is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from mser_jax.evaluation import comparison, metrics, predictions, rows

LABELS = ("angry", "happy", "neutral", "sad")
NOTHING = {"corpora": [], "languages": []}


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    return np.random.default_rng(seed)


def recording(rng, voices, languages, each=4, *, shared, spread=0.25):
    """Columns, and ids of references, of voices that speak every label in every language.

    `skill` [n]: how often an utterance of a voice is answered right, in all of its languages alike.
    """
    ids = np.tile(np.arange(4), voices * len(languages) * each)
    who = np.tile(np.repeat(np.arange(voices), 4 * each), len(languages))
    language = np.repeat(languages, voices * 4 * each)
    persons = voices if shared else voices * len(languages)
    of_person = rng.uniform(0.6 - spread, 0.6 + spread, persons)
    person = who if shared else who + voices * np.searchsorted(languages, language)
    columns = {
        "corpus": np.full(len(ids), "c"),
        "language": language,
        "speaker": np.char.add("c:", person.astype(str)),
        "emotion": np.array(LABELS)[ids],
        "id": np.char.add("u", np.arange(len(ids)).astype(str)),
    }
    return columns, ids, of_person[person]


def answered(rng, ids, skill):
    """Probabilities that are right so often, else any other label."""
    right = rng.random(len(ids)) < skill
    return np.eye(4)[np.where(right, ids, (ids + rng.integers(1, 4, len(ids))) % 4)]


def macro(columns, probabilities, resamples=200):
    return rows.macro(rows.make_rows(probabilities, columns, LABELS, trained_on=NOTHING, resamples=20), resamples)[
        "all"
    ]


def test_macro_intervals_hold_the_truth_where_voices_are_shared_and_where_they_are_not():
    """True UA .6. Two languages of 24 voices: shared, their errors go together, so the interval is √2 as wide."""
    rng = np.random.default_rng(0)
    told = {}
    for shared in (True, False):
        means, errors, held = [], [], 0
        for _ in range(150):
            columns, ids, skill = recording(rng, 24, ["de", "pl"], each=3, shared=shared)
            found = macro(columns, answered(rng, ids, skill))
            means.append(found["ua"])
            errors.append(found["ua_se"])
            held += found["ua_ci95"][0] <= 0.6 <= found["ua_ci95"][1]
        told[shared] = np.mean(errors)
        assert told[shared] == pytest.approx(np.std(means), rel=0.15), f"shared={shared}"
        assert 0.89 <= held / 150 <= 0.985, f"shared={shared}: {held} of 150 hold the truth"
    assert told[True] > 1.2 * told[False]


def test_speakers_are_drawn_once_for_all_rows_that_they_are_in(rng):
    """Three rows, the second shares a voice with the first, the third none: against draws made one by one."""
    speakers = [["a", "b", "c"], ["c", "d"], ["e", "f", "g"]]
    times = metrics.joint_draws(speakers, 4000, seed=3)
    assert [t.shape for t in times] == [(4000, 3), (4000, 2), (4000, 3)]
    np.testing.assert_array_equal(times[0][:, 2], times[1][:, 0])
    assert (times[0][:, :2].sum(1) + times[1].sum(1) == 4).all() and (times[2].sum(1) == 3).all()
    assert abs(np.corrcoef(times[0][:, 0], times[2][:, 0])[0, 1]) < 0.06
    # The same names give the same draws, whatever else is drawn.
    np.testing.assert_array_equal(times[2], metrics.joint_draws(speakers[2:], 4000, seed=3)[0])
    # A voice that joins rows which were found apart makes them one population.
    joined = metrics.joint_draws([["a", "b"], ["c", "d"], ["b", "c"]], 500)
    assert (joined[0].sum(1) + joined[1].sum(1) == 4).all()
    assert metrics.joint_draws([[]], 5)[0].shape == (5, 0)


def test_the_draws_are_those_of_utterances(rng):
    columns, ids, skill = recording(rng, 5, ["de", "it", "pl"], each=2, shared=True)
    p = answered(rng, ids, skill)
    made = rows.make_rows(p, columns, LABELS, trained_on=NOTHING)
    names = list(made[0][rows.BY_SPEAKER])
    (times,) = metrics.joint_draws([names], 3)
    draws = rows.ua_draws([row[rows.BY_SPEAKER] for row in made], 3)
    for draw in range(3):
        each = []
        for language in ("de", "it", "pl"):
            chosen = np.concatenate(
                [
                    np.flatnonzero((columns["language"] == language) & (columns["speaker"] == name))
                    for name, count in zip(names, times[draw], strict=True)
                    for _ in range(count)
                ]
            )
            each.append(balanced_accuracy_score(ids[chosen], p[chosen].argmax(-1)))
        assert draws[:, draw].mean() == pytest.approx(np.mean(each))


def test_unknown_speakers_of_two_rows_are_not_one_person(rng):
    columns, ids, skill = recording(rng, 6, ["de", "pl"], shared=True)
    columns["speaker"] = np.where(columns["speaker"] == "c:0", "", columns["speaker"])
    first, second = rows.make_rows(answered(rng, ids, skill), columns, LABELS, trained_on=NOTHING, resamples=20)
    assert first["speakers"] == second["speakers"] == 6
    assert len(first[rows.BY_SPEAKER].keys() & second[rows.BY_SPEAKER].keys()) == 5
    alone = {**columns, "speaker": np.full(len(ids), "")}
    assert macro(alone, answered(rng, ids, skill))["ua_ci95"] is None


def written(folder, columns, answers, labels=LABELS, **facts):
    told = {"label_space": list(labels), "scoring": "similarity", "checkpoint": "run", "step": 3, **facts}
    predictions.write(folder, answers, columns, told)
    return predictions.read(folder)


def test_predictions_come_back(rng, tmp_path):
    columns, ids, _ = recording(rng, 3, ["zh"], shared=True)
    columns["emotion"][0] = ""
    columns["speaker"][1] = "c:Ödön 李"
    p = rng.dirichlet(np.ones(4), len(ids))
    p[2] = 0
    found = written(tmp_path / "new", columns, {"none": p, "corpus": p[:, ::-1]})
    assert found.facts["label_space"] == list(LABELS) and len(found["id"]) == 2 * len(ids)
    strict = found.where(found["adapt"] == "none")
    np.testing.assert_allclose(strict.probabilities, p, atol=1e-7)
    for name, column in (("id", "id"), ("speaker", "speaker"), ("reference", "emotion")):
        np.testing.assert_array_equal(strict[name], columns[column])
    assert strict["answer"][2] == "" and strict["answer"][5] == LABELS[p[5].argmax()]
    with pytest.raises(ValueError, match=r"predictions.parquet is not there"):
        predictions.read(tmp_path)
    (tmp_path / predictions.FILE).write_bytes(b"PAR1 not at all")
    with pytest.raises(ValueError, match="of an evaluation"):
        predictions.read(tmp_path)


def simulated(rng, better, folder, voices=16):
    """Two runs with the same voices and mostly the same errors, B right more often by `better`."""
    columns, ids, skill = recording(rng, voices, ["de", "pl"], each=3, shared=True, spread=0.3)
    right_a = rng.random(len(ids)) < skill
    # B is asked anew where the two disagree; what it gains differs from voice to voice.
    of_voice = dict(zip(np.unique(columns["speaker"]), rng.normal(better, 0.08, voices), strict=True))
    gain = np.array([of_voice[name] for name in columns["speaker"]])
    anew = rng.random(len(ids)) < 0.3
    right_b = np.where(anew, rng.random(len(ids)) < np.clip(skill + gain / 0.3, 0, 1), right_a)
    sides = [np.eye(4)[np.where(right, ids, (ids + 1) % 4)] for right in (right_a, right_b)]
    return [written(folder / name, columns, {"none": p}) for name, p in zip("ab", sides, strict=True)]


def test_a_paired_difference_has_the_interval_and_the_p_that_it_says(tmp_path):
    """Under no difference p is below .05 as often as it says; intervals hold a difference that there is."""
    rng = np.random.default_rng(1)
    false, held, errors, differences = 0, 0, [], []
    for _ in range(150):
        mean = comparison.compare(*simulated(rng, 0.0, tmp_path), resamples=300)[-1]
        false += mean["p"] < 0.05
        held += mean["ci95"][0] <= 0 <= mean["ci95"][1]
        errors.append(np.ptp(mean["ci95"]) / 3.92)
        differences.append(mean["difference"])
    assert false <= 21 and held >= 129, (false, held)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.15)
    apart = [macro_of(side) for side in simulated(rng, 0.0, tmp_path)]
    assert np.mean(errors) < 0.7 * np.hypot(*apart), "pairing is worth it"
    better = comparison.compare(*simulated(rng, 0.12, tmp_path), resamples=2000)
    assert [row["language"] for row in better] == ["de", "pl", ""] and better[-1]["p"] < 0.05
    assert better[-1]["ci95"][0] > 0 and better[-1]["difference"] == pytest.approx(0.12, abs=0.08)


def macro_of(side):
    columns = {name: side[name] for name in ("corpus", "language", "speaker")} | {"emotion": side["reference"]}
    return macro(columns, side.probabilities)["ua_se"]


def test_order_and_names_of_labels_do_not_matter_and_a_run_equals_itself(rng, tmp_path):
    a, b = simulated(rng, 0.1, tmp_path)
    order = rng.permutation(len(b["id"]))
    turned = predictions.Predictions(
        {name: values[order] for name, values in b.columns.items()}, b.probabilities[order][:, ::-1],
        {**b.facts, "label_space": list(LABELS[::-1])},
    )  # fmt: skip
    assert comparison.compare(a, turned, resamples=100) == comparison.compare(a, b, resamples=100)
    same = comparison.compare(a, a, resamples=100)[-1]
    assert (same["difference"], same["ci95"], same["p"]) == (0.0, [0.0, 0.0], 1.0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c, f: c["id"].__setitem__(0, "other"), "1 only in the first, 1 only in the second, such as c/de/"),
        (lambda c, f: c["emotion"].__setitem__(0, "happy"), "reference of 1 utterances differs, such as u0"),
        (lambda c, f: c["speaker"].__setitem__(0, "c:x"), "speaker of 1 utterances differs"),
        (lambda c, f: c["id"].__setitem__(0, "u1"), "1 utterances twice"),
        (lambda c, f: f.update(labels=("angry", "happy", "neutral", "fear")), "label spaces differ: angry"),
        (lambda c, f: f.update(adapt="corpus"), "no scored utterance with adapt=none; there are corpus"),
    ],
)
def test_what_cannot_be_paired_is_refused(rng, tmp_path, spoil, message):
    columns, ids, skill = recording(rng, 3, ["de"], shared=True)
    columns = {name: values.astype(object) for name, values in columns.items()}
    p, options = answered(rng, ids, skill), {}
    a = written(tmp_path / "a", columns, {"none": p})
    spoil(columns, options)
    b = written(tmp_path / "b", columns, {options.pop("adapt", "none"): p}, **options)
    with pytest.raises(ValueError, match=message):
        comparison.compare(a, b)


def test_the_command_compares_the_newest_evaluations_of_two_runs(rng, tmp_path):
    simulated(rng, 0.15, tmp_path / "new")
    for run, step in (("a", 10), ("a", 20), ("b", 5)):
        folder = tmp_path / run / "evaluations" / "zero_shot" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        if step != 10:
            (tmp_path / "new" / run / predictions.FILE).rename(folder / predictions.FILE)
    simulated(rng, 0.0, tmp_path / "folder")

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "tools/compare_runs.py", *map(str, arguments)],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."},
        )  # fmt: skip

    done = command(tmp_path / "a", tmp_path / "b", "--resamples=500")
    assert done.returncode == 0, done.stderr
    assert "step_00000020" in done.stdout and done.stdout.splitlines()[-1].startswith("mean of languages")
    assert "utterances differ" not in command(tmp_path / "folder" / "a", tmp_path / "folder" / "b").stderr
    refused = command(tmp_path / "a", tmp_path / "nowhere")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and "no such folder" in refused.stderr
    assert "expected one of" in command(tmp_path / "a", tmp_path / "b", "--adapt=none,spekaer").stderr
