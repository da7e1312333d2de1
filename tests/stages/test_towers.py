"""Towers from pretrained directories in a run: loaded, frozen or adapted, remembered; refused where they do not fit."""

import json
import shutil

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from configs import evaluate as evaluate_config
from mser_jax import config as config_lib
from mser_jax import evaluate, stages, state, train
from mser_jax.checkpoint import Checkpoints
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import alignment, towers

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FROZEN = {"optim.groups": ((r"^(speech|text)_encoder/(?!.*/lora/)", 0.0), (".*", 1.0))}


def starting_from(whisper, bert, **more):
    inits = {"speech_encoder.init": str(whisper), "text_encoder.init": str(bert), "text_encoder.tokenizer": "byt5"}
    return {**inits, **FROZEN, "train.budget": "2 steps", "evaluate.split": "validation", **more}


def params_of(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        for path, leaf in checkpoints.shapes(checkpoints.latest).items()
    }
    with jax.set_mesh(mesh):
        return jax.tree.map(np.asarray, checkpoints.restore_params(shapes))


@pytest.fixture(scope="module")
def trained(bases, tiny, tmp_path_factory):
    """(workdir, the directory its speech encoder came from) of a run on frozen towers with LoRA, on 8 devices."""
    workdir, copies = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("copies")
    whisper, bert = (shutil.copytree(folder, copies / folder.name) for folder in bases)
    more = {"lora.pattern": r"^speech_encoder/.*/query$", "mesh.data": 2, "mesh.fsdp": 4, "evaluate.probes": True}
    train.run(tiny(**starting_from(whisper, bert, **more)), str(workdir))
    return workdir, whisper


def test_frozen_towers_are_the_files_and_adapters_learn(trained):
    workdir, whisper = trained
    params, files = params_of(workdir), load_file(whisper / "model.safetensors")
    for layer in range(2):
        stored = files[f"model.encoder.layers.{layer}.self_attn.q_proj.weight"].T
        np.testing.assert_array_equal(params["speech_encoder/layers/attention/query/kernel"][layer], stored)
    assert np.abs(params["speech_encoder/layers/attention/query/lora/b"]).max() > 0, "b starts at zero"


def test_probes_see_every_language_and_speaker(trained):
    results = json.loads((trained[0] / "evaluations" / "probes" / "step_00000002" / "probes.json").read_text())
    assert results["language"]["classes"] == 4, "those that were held out, too"
    assert results["speaker"]["chance"] == 1 / results["speaker"]["classes"]
    assert all(0.0 <= results[name]["balanced_accuracy"] <= 1.0 for name in ("language", "speaker"))


def test_a_checkpoint_needs_no_weights_directory(trained, tmp_path):
    """Its architecture travels in its metadata: the directory that the weights came from may be gone."""
    workdir, whisper = trained
    hidden = whisper.rename(whisper.with_name("gone"))
    try:
        config = evaluate_config.get_config()
        config.checkpoint, config.evaluate.split = str(workdir), "validation"
        evaluate.run(config, str(tmp_path / "scores"))
    finally:
        hidden.rename(whisper)
    assert (tmp_path / "scores" / "results.json").exists()
    metadata = Checkpoints(workdir / "checkpoints").metadata()
    assert metadata["architecture"]["speech_encoder"]["width"] == 32, "the files' size, not the config's 48"
    assert metadata["pretrained"]["speech_encoder"] == str(whisper)


def test_architectures_survive_json(bases, tiny):
    config = tiny(**starting_from(*bases))
    made = towers.make(config)
    assert towers.make(tiny(), towers.describe(made)) == made
    assert made["speech_encoder"].width == made["text_encoder"].width == 32


def test_a_wav2vec2_tower_takes_a_step(bases, tiny, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (10, 8), "conv_stride": (5, 4)}
    config = transformers.Wav2Vec2Config(
        **sizes, **convolutions, num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2
    )
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path / "wav2vec2")
    config = tiny(**starting_from(tmp_path / "wav2vec2", bases[1], **{"train.batch_size": 2, "data.max_tokens": 32}))
    config.data.length_classes = (0.2,)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        stage = stages.make(config, None)
        program = train.build(config, mesh, stage=stage)
        given = stage.pretrained(program.abstract.params)
        before = state.create(program.init, program.abstract, given)
        batches = stage.batches(0, mesh)
        after, metrics = program.train_step(before, next(batches))
        batches.close()
    assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
    assert int(after.step) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speech_encoder.init": "/nowhere/whisper"}, "speech_encoder.init: /nowhere/whisper"),
        ({"speech_encoder.init": "BERT"}, "no speech model"),
        ({"text_encoder.sizes.num_layer": 2}, "no.*num_layer.*it has"),
        ({"text_encoder.family": "brt"}, "expected one of bert"),
        ({"text_encoder.init": "", "data.max_tokens": 600}, "ends at 512"),
        ({"text_encoder.tokenizer": ""}, "no tokenizer here .*Copy the tokenizer's files"),
        ({"model.layer_mix_init": (1.0, 2.0)}, "2 logits, but 3 hidden states"),
        ({"lora.pattern": "speech_encoder/.*/qury$"}, "lora.pattern.*Nearest"),
        ({"lora.pattern": "query", "lora.rank": 0}, "≥ 1"),
    ],
)
def test_towers_that_cannot_be_say_why(bases, tiny, changes, message):
    changes = {key: str(bases[1]) if value == "BERT" else value for key, value in changes.items()}
    if "text_encoder.sizes.num_layer" in changes or "text_encoder.family" in changes:
        changes["text_encoder.init"] = ""
    config = tiny(**starting_from(*bases))
    config.unlock()
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        node = config
        for name in section.split("."):
            node = node[name]
        node[last] = value
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh), pytest.raises(config_lib.ConfigError, match=f"(?s){message}"):
        train.build(config, mesh, stage=stages.make(config, alignment.SYNTHETIC))
