"""What is scored is what is shipped: predict, evaluation and a later evaluation say the same of the same recordings."""

import json

import numpy as np
import pytest
import soundfile

from configs import evaluate as evaluate_config
from mser_jax import evaluate, predict, train
from mser_jax.checkpoint import Checkpoints
from mser_jax.evaluation import calibration, predictions

pytestmark = pytest.mark.usefixtures("compiled_quickly")

EMOTIONS = ("angry", "happy", "neutral", "sad")
# Seconds; the longest class is 2: 2.5 times as long, just longer, just as long, and shorter.
SECONDS = (5.0, 2.01, 2.0, 0.7)
LONG = {"pl0-0", "pl0-1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 English speakers who train, two utterances each, and three Polish ones who do not."""
    folder, rng, rows = tmp_path_factory.mktemp("voices"), np.random.default_rng(4), []
    people = [("en", f"en{n}", (0.9, 1.2)) for n in range(40)] + [("pl", f"pl{n}", SECONDS) for n in range(3)]
    for number, (language, speaker, lengths) in enumerate(people):
        for take, seconds in enumerate(lengths):
            time = np.arange(round(seconds * 16_000)) / 16_000
            emotion = (number + take) % 4
            tone = np.sin(2 * np.pi * time * (120 + 7 * number + 80 * emotion) * (1 + 0.2 * np.sin(3 * time + take)))
            path = f"{speaker}-{take}.wav"
            soundfile.write(folder / path, 0.2 * tone + 0.01 * rng.normal(size=len(time)), 16_000, subtype="PCM_16")
            rows.append({"path": path, "language": language, "speaker": speaker, "emotion": EMOTIONS[emotion]})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def run(tiny, folder, tmp_path_factory):
    """A run whose protocol is none of the defaults."""
    workdir = tmp_path_factory.mktemp("shipped")
    config = tiny(
        **{"data.corpora": f"speech_folder:{folder}", "data.length_classes": (2.0,), "train.budget": "4 steps"}
    )
    config.evaluate.update(
        {"split": "", "label_space": "4", "closed_set": True, "adapt": "none,corpus", "prompt_languages": "de,es"}
    )
    train.run(config, str(workdir))
    return workdir


def newest(run):
    return run / "evaluations" / "zero_shot" / "step_00000004"


def rows_of(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


def answers(capsys, run, *arguments):
    """{id: line of predict}."""
    assert predict.main([f"--checkpoint={run}", *map(str, arguments)]) == 0
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return {line["file"].rpartition("/")[2].removesuffix(".wav"): line for line in lines}


def told(folder):
    """{id: probabilities} of an evaluation without adaptation."""
    found = predictions.read(folder)
    found = found.where(found["adapt"] == "none")
    return {
        name.rpartition("/")[2].removesuffix(".wav"): p
        for name, p in zip(found["id"], found.probabilities, strict=True)
    }


def test_those_who_calibrate_neither_train_nor_are_scored(run):
    metadata = Checkpoints(run / "checkpoints").metadata(4)
    away = {name.rpartition(":")[2] for name in metadata["held_back"]}
    assert len(away) == 2 and metadata["num_classes"]["speaker"] == 38
    found = calibration.stored(run, 4, "similarity")
    assert {name.rpartition("/")[2].partition("-")[0] for name in found.facts["utterances"]} == away
    assert found.facts["n"] == 4 and found.facts["languages"] == ["en"] and found.facts["split"] == "held back"
    results = json.loads((newest(run) / "results.json").read_text())
    assert results["calibration"]["temperature"] == found.temperature != 1
    assert {row["language"]: row["n"] for row in results["rows"]} == {"en": 76, "pl": 12}
    assert not {name.partition("-")[0] for name in told(newest(run))} & away


def test_predict_says_what_evaluation_scored(run, folder, capsys):
    found, scored = answers(capsys, run, *sorted(folder.glob("pl*.wav"))), told(newest(run))
    temperature = calibration.stored(run, 4, "similarity").temperature
    assert len(found) == 12 and found["pl0-0"]["windows"] == 3 and found["pl1-1"]["windows"] == 2
    for name, line in found.items():
        assert line["calibrated"] is True and line["temperature"] == pytest.approx(temperature, abs=1e-4)
        # Without the temperature, which is large as next to nothing was learned.
        ours, theirs = (temperature * np.log(p) for p in (list(line["probabilities"].values()), scored[name]))
        np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=name)
    assert temperature * np.ptp(np.log(list(scored.values())), axis=0).max() > 0.01, "they differ"


def test_a_later_evaluation_is_the_run_s_own_unless_told_otherwise(run, tmp_path):
    config = evaluate_config.get_config()
    config.checkpoint = str(run)
    evaluate.run(config, str(tmp_path / "same"))
    assert rows_of(tmp_path / "same") == rows_of(newest(run))
    # From kept features, of which a long recording has only its middle: the encoder hears all of it again.
    config.data.feature_cache = str(tmp_path / "features")
    config.evaluate.adapt, config.evaluate.dev_utterances, config.evaluate.include_languages = "none", 0, "pl"
    evaluate.run(config, str(tmp_path / "kept"))
    kept, scored = told(tmp_path / "kept"), told(newest(run))
    temperature = calibration.stored(run, 4, "similarity").temperature
    assert set(kept) == {name for name in scored if name.startswith("pl")}
    for name, p in kept.items():
        np.testing.assert_allclose(calibration.tempered(p[None], temperature)[0], scored[name], atol=2e-3, err_msg=name)


def test_other_labels_and_checkpoints_that_were_not_evaluated_say_so(run, folder, capsys):
    file = folder / "pl1-3.wav"
    (four,) = answers(capsys, run, file).values()
    (two,) = answers(capsys, run, file, "--labels=sad,Wut").values()
    (free,) = answers(capsys, run, file, "--labels=sad,furious").values()
    assert [x["calibrated"] for x in (four, two, free)] == [True, True, False]
    assert {x["temperature"] for x in (four, two, free)} == {four["temperature"]}
    odds = four["probabilities"]["sad"] / four["probabilities"]["angry"]
    assert two["probabilities"]["sad"] / two["probabilities"]["Wut"] == pytest.approx(odds, rel=1e-3)
    (before,) = answers(capsys, run, file, "--step=2").values()
    assert (before["calibrated"], before["temperature"]) == (False, 1.0)
    (run / calibration.FILE).rename(run / "aside.json")
    (run / calibration.FILE).write_text("{")
    assert predict.main([f"--checkpoint={run}", str(file)]) == 2
    assert "calibration.json is damaged" in capsys.readouterr().err
    (run / "aside.json").rename(run / calibration.FILE)


def test_a_run_that_starts_again_forgets_what_was_fitted(tmp_path):
    for step in (100, 200, 300):
        facts = {"label_space": ["a", "b"], "prompt_languages": ["en"], "utterances": []}
        calibration.store(tmp_path, step, "similarity", calibration.Calibration(step / 100, facts))
    calibration.store(tmp_path, 100, "label_likelihood", calibration.Calibration(0.5, facts))
    assert calibration.stored(tmp_path, 200, "similarity").temperature == 2
    fitted = calibration.stored(tmp_path, 100, "label_likelihood")
    assert fitted.fits(["b"], ["en"]) and not fitted.fits(["b"], ["en", "de"]) and not fitted.fits(["b", "c"], ["en"])
    assert calibration.stored(tmp_path, 150, "similarity") == calibration.Calibration()
    calibration.store(tmp_path, 200, "similarity", calibration.Calibration())
    assert calibration.stored(tmp_path, 200, "similarity").facts is None
    calibration.forget_after(tmp_path, 100)
    assert calibration.stored(tmp_path, 300, "similarity").facts is None
    assert calibration.stored(tmp_path, 100, "similarity").temperature == 1
    calibration.forget_after(tmp_path, -1)
    assert json.loads((tmp_path / calibration.FILE).read_text()) == {}
