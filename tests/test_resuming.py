"""What a run goes on with: the data and the model that it began with, or a line that says what is another."""

import json
import os
import signal
import time

import numpy as np
import pytest
import soundfile
import toy_stage
from toy_stage import ToyStage, toy_config

from mser_jax import compatibility, stages, train
from mser_jax.checkpoint import CheckpointMismatch, Checkpoints
from mser_jax.config import ConfigError
from mser_jax.data import fingerprint, sources
from mser_jax.parallel import preemption


class OnFolder(ToyStage):
    """Remembers what is in a corpus, as the stages that read one do."""

    def __init__(self, spec, data_dir, **options):
        super().__init__(**options)
        self.table = sources.load_table(spec, str(data_dir))

    def metadata(self):
        return {"fingerprints": fingerprint.of_table(self.table)}


@pytest.fixture
def run(monkeypatch):
    def go(workdir, stage=None, seed=0, **sections):
        stage = stage or ToyStage()
        monkeypatch.setattr(stages, "make", lambda config, metadata=None: stage)
        config = toy_config(**sections)
        config.seed = seed
        train.run(config, str(workdir))
        return stage

    return go


LABELS = ["angry", "sad", "happy", "neutral"] * 3


def write(folder, labels, *, silent=(), left_out=()):
    """A speech folder: a recording for each label, some of them half as loud, some not in the manifest."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number, label in enumerate(labels):
        rng = np.random.default_rng(number)
        loud = 0.05 if number in silent else 0.1
        soundfile.write(folder / f"{number}.wav", loud * rng.normal(size=16000 + 160 * number), 16_000)
        if number not in left_out:
            lines.append(json.dumps({"path": f"{number}.wav", "language": "de", "emotion": label, "speaker": "a"}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


# What changes below the same spec, and what is said of it. Two labels are swapped: their counts are as before.
CHANGES = {
    "swapped": ({"labels": [LABELS[1], LABELS[0], *LABELS[2:]]}, "12 records then, 12 now: about 2 have another label"),
    "fewer": ({"labels": LABELS, "left_out": [3, 7, 8]}, "12 records then, 9 now: about 3 removed"),
    "louder": ({"labels": LABELS, "silent": [5]}, "12 records then, 12 now: about 1 have other audio"),
    "more": ({"labels": [*LABELS, "sad"]}, "12 records then, 13 now: about 1 added"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_under_the_same_spec_are_refused_unless_allowed(run, tmp_path, change, caplog):
    folder, spec = tmp_path / "voices", f"speech_folder:{tmp_path / 'voices'}"
    write(folder, LABELS)
    run(tmp_path / "run", OnFolder(spec, tmp_path / "data"), train={"budget": "2 steps"})
    options, said = CHANGES[change]
    write(folder, **options)
    with pytest.raises(ConfigError, match=r"--config\.train\.allow_changed_data=True") as refused:
        run(tmp_path / "run", OnFolder(spec, tmp_path / "data"), train={"budget": "4 steps"})
    assert f"{spec}: {said}" in str(refused.value) and "\n" not in str(refused.value)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps == [2]
    if change != "swapped":
        return
    allowed = {"allow_changed_data": True}
    run(tmp_path / "run", OnFolder(spec, tmp_path / "data"), train={"budget": "4 steps", **allowed})
    assert said in caplog.text
    run(tmp_path / "run", OnFolder(spec, tmp_path / "data"), train={"budget": "6 steps"})
    write(folder, LABELS)
    with pytest.raises(ConfigError, match="about 2 have another label"):
        run(tmp_path / "run", OnFolder(spec, tmp_path / "data"), train={"budget": "8 steps"})


def test_another_corpus_and_runs_from_before_are_no_changed_data(run, tmp_path):
    write(tmp_path / "a", LABELS)
    write(tmp_path / "b", LABELS[:3])
    run(tmp_path / "run", ToyStage(), train={"budget": "2 steps"})
    one, two = (OnFolder(f"speech_folder:{tmp_path / name}", tmp_path / "data") for name in "ab")
    run(tmp_path / "run", one, train={"budget": "4 steps"})
    run(tmp_path / "run", two, train={"budget": "6 steps"})
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest == 6


def table(count, seed=0):
    rng = np.random.default_rng(seed)
    columns = {name: np.array([""] * count, object) for name in sources.TEXT_COLUMNS}
    columns["id"] = np.array([f"speaker/{number:06d}.wav" for number in range(count)], object)
    columns["emotion"] = rng.choice(np.array(["angry", "sad", "happy"], object), count)
    columns["speaker"] = np.array([f"s{number % 50}" for number in range(count)], object)
    columns |= {name: rng.normal(5, 1, count) for name in sources.NUMBER_COLUMNS}
    columns |= {"source": np.zeros(count, np.int32), "position": np.arange(count)}
    return sources.MixtureTable((sources.Source("x", "x", 1.0, "", None),), columns)


def rows(whole, chosen):
    return sources.MixtureTable(whole.sources, {name: values[chosen] for name, values in whole.columns.items()})


def test_fingerprints_of_many_records_are_quick_small_and_count_what_changed():
    count, rng = 100_000, np.random.default_rng(5)
    begin = time.process_time()
    before = fingerprint.of_table(table(count))
    assert time.process_time() - begin < 2.5, "half a second on an idle machine"
    assert len(json.dumps(before)) < 6000
    assert fingerprint.changes(before, fingerprint.of_table(rows(table(count), rng.permutation(count)))) == []
    other = table(count)
    chosen = rng.choice(count, 30, replace=False)
    other["speaker"][chosen] = "somebody else"
    other["loudness_db"][chosen[:1]] += 0.1
    (line,) = fingerprint.changes(before, fingerprint.of_table(other))
    number = int(line.partition("about ")[2].partition(" ")[0])
    assert 24 <= number <= 36 and "have another speaker" in line and "about 1 have other audio" in line
    (line,) = fingerprint.changes(before, fingerprint.of_table(table(count, seed=1)))
    assert "more than 1024 have another label" in line
    (line,) = fingerprint.changes(before, fingerprint.of_table(rows(other, np.arange(count) != chosen[0])))
    assert "about 1 removed" in line and "added" not in line


def test_one_record_among_many_is_always_noticed():
    whole = table(500)
    before = fingerprint.of_table(whole)
    for row in range(500):
        changed = rows(whole, np.arange(500))
        changed["emotion"][row] = "surprised"
        assert len(fingerprint.changes(before, fingerprint.of_table(changed))) == 1, row


def test_a_model_that_differs_names_the_keys_of_the_config_and_a_few_leaves(run, tmp_path, monkeypatch):
    frozen = (("^hidden/", 0.0), (".*", 1.0))
    run(tmp_path, train={"budget": "2 steps"})
    with pytest.raises(CheckpointMismatch) as error:
        run(tmp_path, optim={"groups": frozen, "learning_rate": 1e-4}, telemetry={"log_every": 7})
    first, *leaves = str(error.value).splitlines()
    assert "since this one was written: optim.groups: (('.*', 1.0),) → (('^hidden/', 0.0), ('.*', 1.0)). Set" in first
    assert "learning_rate" not in first and "log_every" not in first
    assert leaves[0] == "  left over in the checkpoint: optimizer/1/mu/hidden/bias (128,)" and len(leaves) <= 7
    monkeypatch.setattr(toy_stage, "CLASSES", 5)
    with pytest.raises(CheckpointMismatch, match="Neither config nor data decide otherwise on the leaves"):
        run(tmp_path)


def test_what_decides_the_leaves_may_be_behind_the_config():
    before = {
        "config": {"speech_encoder": {"init": "whisper", "remat": "none", "sizes": {"width": 8}}, "seed": 1},
        "architecture": {"speech_encoder": {"width": 8, "strides": [2, 2]}},
        "num_classes": {"speaker": 12, "language": 3},
    }
    after = json.loads(json.dumps(before))
    assert compatibility.deciding_changes(before, after) == []
    after["config"]["speech_encoder"]["remat"] = "full"
    after["architecture"]["speech_encoder"]["width"] = 16
    after["num_classes"]["speaker"] = 13
    assert compatibility.deciding_changes(before, after) == [
        "architecture.speech_encoder.width: 8 → 16",
        "number of classes, speaker: 12 → 13",
    ]
    after["config"]["speech_encoder"]["sizes"]["width"] = 16
    assert compatibility.deciding_changes(before, after)[0] == "speech_encoder.sizes.width: 8 → 16"
    assert len(compatibility.deciding_changes(before, after)) == 2, "told once"


def test_an_evaluation_that_a_stop_prevented_is_made_up_for_once(run, tmp_path):
    def stop_at(step, how):
        def on_batch(number):
            if number == step:
                how()

        return on_batch

    every = {"evaluate": {"every": "4 steps"}}
    stop = stop_at(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(preemption.Preempted):
        run(tmp_path, first := ToyStage(on_batch=stop), **every)
    assert first.events == [("evaluate", 4)] and Checkpoints(tmp_path / "checkpoints").latest == 8

    def killed():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, second := ToyStage(on_batch=stop_at(8, killed)), **every)
    assert second.events == [("evaluate", 8)]
    assert run(tmp_path, **every).events == [("evaluate", 12)], "8 is there by now"
    steps = [row["step"] for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
             if "toy/norm" in row]  # fmt: skip
    assert steps == [4, 8, 12]


def test_one_that_failed_is_tried_again_and_none_is_due_at_the_start_or_elsewhere(run, tmp_path):
    stop = ToyStage(
        broken_evaluator=True, on_batch=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None
    )
    with pytest.raises(preemption.Preempted):
        run(tmp_path, stop, evaluate={"every": "4 steps"})
    run(tmp_path, again := ToyStage(), train={"budget": "5 steps"}, evaluate={"every": "4 steps"})
    assert again.events == [("evaluate", 4), ("evaluate", 5)]
    assert run(tmp_path, train={"budget": "7 steps"}, evaluate={"every": "4 steps"}).events == [("evaluate", 7)]
