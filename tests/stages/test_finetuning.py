"""Stage 2 from stage 1's checkpoint to its own: what starts where, what is saved, resumed and refused."""

import json
import logging
import os
import signal

import jax
import numpy as np
import pytest
import torch
import transformers

from mser_jax import config as config_lib
from mser_jax import evaluate, stages, state, train
from mser_jax.checkpoint import CheckpointMismatch, Checkpoints
from mser_jax.corpora import emotions
from mser_jax.data import prompts
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import preemption
from mser_jax.stages.finetuning import Finetuning
from mser_jax.stages.stage1_run import Stage1Run, is_taken

pytestmark = pytest.mark.usefixtures("compiled_quickly")

# Adapters on the decoder, whose base and the speech encoder are frozen; only what learns is written.
STEPS = {"data.augment.random_crop": False}
ADAPTED = {
    "lora.pattern": r"^llm/.*/(query|value|up)$",
    "lora.rank": 2,
    "optim.groups": (("^(speech_encoder|llm)/(?!.*/lora/)", 0.0), (".*", 1.0)),
    "optim.learning_rate": 5e-3,
    "checkpointing.content": "trainable",
    "data.tasks.transcript": 0.3,
    "data.sequences.short": (88, 36),
    "data.sequences.long": (96, 48),
}


def small_mesh():
    return mesh_lib.make_mesh(1, 2, devices=jax.devices()[:2])


def write_stage1(config, workdir):
    """A stage 1 checkpoint of step 0; returns its parameters."""
    mesh = small_mesh()
    with jax.set_mesh(mesh):
        program = train.build(config, mesh)
        given = program.stage.pretrained(program.abstract.params)
        train_state = state.create(program.init, program.abstract, given)
        checkpoints = Checkpoints(workdir / "checkpoints", content=config.checkpointing.content)
        checkpoints.save(train_state, {"config": config.to_dict(), **program.stage.metadata()})
        checkpoints.close()
        return jax.tree.map(np.asarray, train_state.params)


@pytest.fixture(scope="module")
def stage1_run(tiny, tmp_path_factory):
    """(workdir, parameters) of a stage 1 run that also heard Polish."""
    workdir = tmp_path_factory.mktemp("stage1")
    return workdir, write_stage1(tiny(**{"data.exclude_languages": "fa", "data.split": "", "seed": 7}), workdir)


def start(config):
    """(stage, what is given of its parameters, shapes of all of them) before step 0."""
    mesh = small_mesh()
    with jax.set_mesh(mesh):
        program = train.build(config, mesh)
        given = program.stage.pretrained(program.abstract.params)
    return program.stage, jax.tree.map(np.asarray, given), program.abstract.params


def test_starts_from_stage_1(tiny2, stage1_run, caplog):
    workdir, before = stage1_run
    with caplog.at_level(logging.INFO, "absl"):
        stage, given, shapes = start(tiny2(init_from=str(workdir)))
    assert set(given) == {path for path in before if is_taken(path)} and len(given) > 40
    for path in given:
        np.testing.assert_array_equal(given[path], before[path], err_msg=path)
    (told,) = [record for record in caplog.records if "from scratch" in record.getMessage()]
    assert told.levelno == logging.INFO
    assert {line.split()[0] for line in told.getMessage().splitlines()[1:]} == set(shapes) - set(given)
    metadata = stage.metadata()
    assert metadata["trained_on"]["languages"] == ["de", "en", "pl"], "what stage 1 heard is no zero-shot language"
    assert metadata["stage1"] == {"run": str(workdir), "step": 0}


def test_without_stage_1_every_leaf_that_starts_from_scratch_is_named(tiny2, caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        _, given, shapes = start(tiny2())
    (warned,) = [record.getMessage() for record in caplog.records if "No init_from" in record.getMessage()]
    assert {line.split()[0] for line in warned.splitlines()[1:]} == set(shapes) and not given


def test_the_encoder_is_that_of_stage_1(tiny2, stage1_run):
    stage, _, shapes = start(tiny2(init_from=str(stage1_run[0]), **{"speech_encoder.sizes.num_layers": 3}))
    assert shapes["layer_mix"].shape == (2,)
    assert stage.metadata()["architecture"]["speech_encoder"]["num_layers"] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.qformer.mlp_width": 80}, r"mlp_width: 80 here, 96(.|\n)*qformer/layers/mlp_in/kernel: model has"),
        ({"model.qformer.num_layers": 2}, r"num_layers: 2 here, 1 in(.|\n)*has \(2, 48\)(.|\n)*and \d\d more"),
        ({"model.qformer.num_heads": 4}, "num_heads: 4 here, 2 in stage 1"),
        ({"model.frame_pool": 2}, "frame_pool: 2 here, 1 in stage 1"),
        ({"init_from": "/nowhere/run"}, "init_from=/nowhere/run: no checkpoint below"),
        ({"data.sequences.short": (60, 30)}, "its questions and answers need"),
        ({"data.tasks.emotion": -1.0}, "expected a number ≥ 0"),
        ({"data.question_languages": "en,xx"}, "expected some of"),
        ({"llm.sizes.vocab_size": 200}, "of a table of 200 rows"),
        ({"llm.sizes.num_layer": 2}, "it has model_type"),
        ({"model.layer_mix_init": (1.0, 2.0, 3.0)}, "3 logits, but 2 hidden states"),
        ({"train.accumulate": 3}, r"times train.accumulate = 3"),
        ({"lora.pattern": "llm/.*/qery$"}, "Nearest"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(tiny2, stage1_run, overrides, message):
    config = tiny2(init_from=str(stage1_run[0]))
    config.unlock()
    for key, value in overrides.items():
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[last] = value
    with pytest.raises(config_lib.ConfigError, match=message):
        start(config)


def test_a_stage_1_run_of_adapters_is_completed(tiny, tiny2, bases, tmp_path):
    """Its frozen encoder is not in its checkpoint: it comes from where stage 1 took it."""
    pattern = "^speech_encoder/.*/query$"
    lora = {"lora.pattern": pattern, "lora.rank": 2, "speech_encoder.init": str(bases[0])}
    frozen = ("^speech_encoder/(?!.*/lora/)", 0.0)
    config = tiny(**lora, **{"optim.groups": (frozen, (".*", 1.0)), "checkpointing.content": "trainable"})
    before = write_stage1(config, tmp_path)
    _, given, _ = start(tiny2(init_from=str(tmp_path), **{"lora.pattern": pattern, "lora.rank": 2}))
    assert any("/lora/" in path for path in given)
    assert set(given) == {path for path in before if is_taken(path)}
    for path in given:
        np.testing.assert_array_equal(given[path], before[path], err_msg=path)
    for other, (theirs, ours) in {"lora.alpha": (8.0, 4.0), "lora.rank": (8.0, 4.0)}.items():
        changed = {"lora.pattern": pattern, "lora.rank": 2, other: 8.0 if other == "lora.alpha" else 4}
        with pytest.raises(config_lib.ConfigError, match=rf"lora.alpha / lora.rank: {ours} here, {theirs} in stage 1"):
            start(tiny2(init_from=str(tmp_path), **changed))
    with pytest.raises(config_lib.ConfigError, match=r"left over(.|\n)*lora.pattern must match them too"):
        start(tiny2(init_from=str(tmp_path)))


def losses_of(config, steps=3):
    """Loss, gradient norm and audio of the first steps."""
    mesh = small_mesh()
    with jax.set_mesh(mesh):
        program = train.build(config, mesh)
        given = program.stage.pretrained(program.abstract.params)
        train_state = state.create(program.init, program.abstract, given)
        program.stage.prepare(train_state.params, mesh, lambda: False)
        batches, out = program.stage.batches(0, mesh), []
        for _ in range(steps):
            train_state, metrics = program.train_step(train_state, next(batches))
            out.append([float(metrics[name]) for name in ("loss", "grad_norm", "token_accuracy", "answer_tokens")])
        batches.close()
    return np.array(out)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"train.accumulate": 4}, 1e-5), ({"data.feature_cache": "FOLDER", "data.feature_dtype": "float32"}, 1e-4)],
    ids=["accumulated", "kept features"],
)
def test_parts_and_kept_features_are_training_as_it_was(tiny2, stage1_run, plain_losses, tmp_path, changes, tolerance):
    """Three steps; relative tolerances."""
    changes = {key: str(tmp_path) if value == "FOLDER" else value for key, value in changes.items()}
    found = losses_of(tiny2(init_from=str(stage1_run[0]), **STEPS, **changes))
    np.testing.assert_allclose(found, plain_losses, rtol=tolerance)
    assert len(set(plain_losses[:, 3])) == 3, "batches differ in their number of targets"


@pytest.fixture(scope="module")
def plain_losses(tiny2, stage1_run):
    return losses_of(tiny2(init_from=str(stage1_run[0]), **STEPS))


@pytest.fixture(scope="module")
def adapted(tiny2, stage1_run, tmp_path_factory):
    """(config, workdir) of four steps with adapters, unscored."""
    workdir = tmp_path_factory.mktemp("adapted")
    config = tiny2(init_from=str(stage1_run[0]), **ADAPTED, **{"train.batch_size": 8, "checkpointing.every": ""})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finetuning, "evaluators", lambda self, mesh: [])
        train.run(config, str(workdir))
        yield config, workdir


def metrics_of(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "train/loss" in row]


def test_adapters_alone_are_written_and_learn(adapted):
    workdir = adapted[1]
    saved = Checkpoints(workdir / "checkpoints").shapes()
    assert not [path for path in saved if path.startswith("speech_encoder/")]
    assert {path.rsplit("/", 2)[-2] for path in saved if path.startswith("llm/")} == {"lora"}
    assert {"layer_mix", "soft_projection/kernel", "qformer/queries"} <= saved.keys()
    opened = evaluate.open_checkpoint(str(workdir), -1, lambda trained: trained)
    learned = [np.abs(value).max() for path, value in opened.params.items() if path.endswith("/lora/b")]
    assert len(learned) == 3 and min(learned) > 0, "they start at zero"
    (row,) = metrics_of(workdir)
    assert row["train/examples"] == 8 and 0 <= row["train/token_accuracy"] <= 1 and row["train/answers_cut"] >= 0


def test_resume_is_bit_for_bit(tiny2, stage1_run, adapted, tmp_path, monkeypatch):
    config, whole = adapted
    log = train.Loop._log

    def stop_after_two(self, number, metrics, batch):
        log(self, number, metrics, batch)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.Loop, "_log", stop_after_two)
    with pytest.raises(preemption.Preempted):
        train.run(config, str(tmp_path))
    monkeypatch.setattr(train.Loop, "_log", log)
    assert 0 < Checkpoints(tmp_path / "checkpoints").latest < 4
    train.run(config, str(tmp_path))
    found = [
        evaluate.open_checkpoint(str(workdir), -1, lambda trained: trained).params for workdir in (whole, tmp_path)
    ]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 60
    for path in found[0]:
        np.testing.assert_array_equal(found[0][path], found[1][path], err_msg=path)


def test_a_checkpoint_is_opened_whole_and_not_on_another_base(tiny, stage1_run, adapted, tmp_path):
    workdir = adapted[1]
    opened = evaluate.open_checkpoint(str(workdir), -1, lambda trained: trained)
    for path, value in stage1_run[1].items():
        if path.startswith("speech_encoder/"):
            np.testing.assert_array_equal(opened.params[path], value, err_msg=path)
    write_stage1(tiny(seed=8), tmp_path)

    def elsewhere(trained):
        trained.init_from = str(tmp_path)
        return trained

    with pytest.raises(CheckpointMismatch, match=r"other frozen parameters(.|\n)*init_from"):
        evaluate.open_checkpoint(str(workdir), -1, elsewhere)


def test_batch_spec_and_flops_describe_the_batches(tiny2, stage1_run):
    mesh = small_mesh()
    overrides = {"data.tasks.transcript": 100.0, "optim.groups": ((".*", 1.0),)}
    with jax.set_mesh(mesh):
        stage = stages.make(tiny2(**overrides))
        batches = stage.batches(0, mesh)
        longest, spec = (
            max((next(batches) for _ in range(3)), key=lambda b: b["tokens"].shape[1]),
            stage.batch_spec(mesh),
        )
        batches.close()
        assert {name: (x.shape, x.dtype) for name, x in longest.items()} == {
            name: (x.shape, x.dtype) for name, x in spec.items()
        }
        frozen = stages.make(tiny2(**{"optim.groups": (("^speech_encoder/", 0.0), (".*", 1.0))}))
        encoder = 16 * stage._towers["speech_encoder"].flops(48_000)
        assert stage.flops(spec) - frozen.flops(spec) == pytest.approx(2 * encoder)


def test_the_embedding_starts_where_the_llm_has_the_words(tiny2, stage1_run, tmp_path):
    """What stage 1's text tower makes of an emotion's prompts is projected nearest to that emotion's own word."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = transformers.LlamaConfig(**sizes, vocab_size=384, num_key_value_heads=1)
    transformers.LlamaForCausalLM(llama).save_pretrained(tmp_path)
    config = tiny2(
        init_from=str(stage1_run[0]),
        **{"llm.init": str(tmp_path), "llm.tokenizer": "byt5", "data.question_languages": "en,de"},
    )
    _, given, _ = start(config)
    mesh = small_mesh()
    with jax.set_mesh(mesh):
        anchors = Stage1Run(str(stage1_run[0])).anchors(emotions.EMOTIONS, ("en", "de"), mesh)
    np.testing.assert_allclose(np.linalg.norm(anchors, axis=1), 1, rtol=1e-6)
    table = given["llm/tokens/table"].astype(np.float64)
    spelled = [" ".join(["", *(prompts.label_word(name, x) for x in ("en", "de"))]) for name in emotions.EMOTIONS]
    # Bytes are ids 3 and up in ByT5's vocabulary.
    words = np.stack([table[np.frombuffer(text.encode(), np.uint8) + 3].mean(0) for text in spelled])
    found = anchors @ given["embedding_projection/kernel"] + given["embedding_projection/bias"]
    found, words = found - found.mean(0), words - words.mean(0)
    likeness = found @ words.T / np.linalg.norm(found, axis=1)[:, None] / np.linalg.norm(words, axis=1)
    np.testing.assert_array_equal(likeness.argmax(1), np.arange(len(words)))
    assert np.diag(likeness).mean() > 0.7
