"""A run → transformers' and peft's directories that give the same outputs, and the rest described."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from transformers.models.whisper.modeling_whisper import WhisperEncoder as TorchWhisperEncoder

from mser_jax import stages, state, train
from mser_jax.checkpoint import Checkpoints
from mser_jax.config import from_dict
from mser_jax.models import lora
from mser_jax.pretrained.keymap import PretrainedError
from mser_jax.stages import alignment
from tools import export_hf

pytestmark = pytest.mark.usefixtures("compiled_quickly")

ROOT = Path(__file__).parents[2]
# Of the trained step: large enough that the adapters are seen in every output.
LORA = {
    "lora.pattern": r"^(speech|text)_encoder/.*/(query|value|mlp_in)$|^qformer/.*/query$",
    "lora.rank": 2,
    "lora.alpha": 4.0,
    "optim.groups": (("/lora/", 100.0), (r"^(speech|text)_encoder/", 0.0), (".*", 1.0)),
}


@pytest.fixture(scope="module")
def adapted(bases, tiny, tmp_path_factory):
    """The workdir of a run of 2 steps: pretrained frozen towers with LoRA, the real thing."""
    workdir = tmp_path_factory.mktemp("adapted")
    whisper, bert = map(str, bases)
    inits = {"speech_encoder.init": whisper, "text_encoder.init": bert, "text_encoder.tokenizer": "byt5"}
    train.run(tiny(**inits, **LORA, **{"evaluate.split": "validation", "train.budget": "2 steps"}), str(workdir))
    return workdir


@pytest.fixture
def scratch(tiny, tmp_path):
    """scratch(**changes) -> the workdir of a checkpoint of random parameters, without any data."""

    def make(**changes):
        config = tiny(**changes)
        stage = stages.make(config, alignment.SYNTHETIC)
        definition = state.define(stage.build)
        params = state.initial_params(definition, jax.random.key(0))
        fresh = state.TrainState(jnp.int32(7), params, {}, (), jax.random.key(0))
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
        checkpoints.save(fresh, {"config": config.to_dict(), **stage.metadata()})
        checkpoints.close()
        return tmp_path / "run"

    return make


def model_of(workdir):
    """(our network as evaluation rebuilds it, its parameters)."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    metadata = checkpoints.metadata()
    stage = stages.make(from_dict(metadata["config"]), metadata)
    definition = state.define(stage.build)
    params = checkpoints.restore_params(definition.abstract)
    return definition.merge(params), params


def speech_features():
    """30 s of log-mel [1, 3000, 80]: what transformers takes."""
    return np.random.default_rng(0).standard_normal((1, 3000, 80)).astype(np.float32)


def our_speech(model):
    out = model.speech_encoder(jnp.asarray(speech_features()), jnp.ones((1, 3000), bool), collect=True)
    return np.asarray(out.hidden_states)


def their_speech(encoder):
    with torch.no_grad():
        out = encoder(torch.tensor(speech_features().transpose(0, 2, 1)), output_hidden_states=True)
    return np.stack([state.numpy() for state in out.hidden_states])


def text_inputs():
    tokens = np.random.default_rng(0).integers(3, 300, (2, 9))
    return tokens, np.arange(9)[None] < np.array([[9], [6]])


def our_text(model):
    tokens, mask = text_inputs()
    return np.asarray(model.text_encoder(jnp.asarray(tokens), jnp.asarray(mask)))[mask]


def their_text(encoder):
    tokens, mask = text_inputs()
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask.astype(int))}
        return encoder(**inputs).last_hidden_state.numpy()[mask]


def test_adapted_towers_merge_into_what_transformers_loads(adapted, bases, tmp_path):
    """Every hidden state; tolerance 1e-5 maximal absolute difference, f32. By the command line."""
    command = [sys.executable, "tools/export_hf.py", str(adapted), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "speech_encoder loads as WhisperForConditionalGeneration; LoRA: merged" in done.stdout
    model, _ = model_of(adapted)

    whole = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "out" / "speech_encoder").eval()
    before = transformers.WhisperForConditionalGeneration.from_pretrained(bases[0]).eval()
    out = their_speech(whole.model.encoder)
    np.testing.assert_allclose(our_speech(model), out, atol=1e-5, rtol=0)
    assert np.abs(out - their_speech(before.model.encoder)).max() > 1e-3, "the adapters learned"
    for name, value in before.model.decoder.state_dict().items():
        torch.testing.assert_close(whole.model.decoder.state_dict()[name], value, rtol=0, atol=0)

    bert = transformers.AutoModel.from_pretrained(tmp_path / "out" / "text_encoder").eval()
    np.testing.assert_allclose(our_text(model), their_text(bert), atol=1e-5, rtol=0)
    assert np.abs(their_text(bert) - their_text(transformers.AutoModel.from_pretrained(bases[1]).eval())).max() > 1e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "text_encoder")
    assert tokenizer("zły")["input_ids"] == [byte + 3 for byte in "zły".encode()] + [1]


def test_adapters_alone_where_the_base_is_untouched(adapted, bases, tmp_path):
    """Tolerance 1e-5 maximal absolute difference, f32."""
    content = export_hf.export_run(str(adapted), tmp_path / "out", as_adapters=True)
    there = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert there == ["mser_jax.json", "mser_jax.safetensors", "speech_encoder_adapter", "text_encoder_adapter"]
    assert content["towers"]["text_encoder"] == {
        "class": "BertModel",
        "base": str(bases[1]),
        "lora": "text_encoder_adapter",
    }
    model, _ = model_of(adapted)
    whisper = transformers.WhisperForConditionalGeneration.from_pretrained(bases[0])
    whisper = peft.PeftModel.from_pretrained(whisper, tmp_path / "out" / "speech_encoder_adapter").eval()
    np.testing.assert_allclose(
        our_speech(model), their_speech(whisper.base_model.model.model.encoder), atol=1e-5, rtol=0
    )
    bert = transformers.AutoModel.from_pretrained(bases[1])
    bert = peft.PeftModel.from_pretrained(bert, tmp_path / "out" / "text_encoder_adapter").eval()
    np.testing.assert_allclose(our_text(model), their_text(bert), atol=1e-5, rtol=0)


def test_the_rest_holds_every_other_parameter_and_says_what_it_is(adapted, tmp_path):
    export_hf.export_run(str(adapted), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "mser_jax.json").read_text())
    tensors = load_file(tmp_path / "out" / "mser_jax.safetensors")
    _, params = model_of(adapted)
    merged = lora.merge(params, 4.0)
    assert set(tensors) == {path for path in merged if not path.startswith(("speech_encoder/", "text_encoder/"))}
    assert set(tensors) == set(content["tensors"])
    for path, value in tensors.items():
        np.testing.assert_array_equal(value, merged[path], err_msg=path)
        said = content["tensors"][path]
        assert (tuple(said["shape"]), said["dtype"]) == (value.shape, "float32")
        assert said["what"] and "a parameter of the network" not in said["what"], path
    assert np.abs(
        merged["qformer/layers/attention/query/kernel"] - params["qformer/layers/attention/query/kernel"]
    ).max()
    query = content["tensors"]["qformer/layers/attention/query/kernel"]["what"]
    assert "[in, out]" in query and query.endswith("leading axis: layers")
    assert content["step"] == 2 and content["config"]["lora"]["rank"] == 2
    assert content["architecture"]["speech_encoder"]["width"] == 32
    assert content["versions"]["trained"]["jax"] == content["versions"]["exported"]["jax"] == jax.__version__


def test_towers_from_scratch_of_any_size(scratch, tmp_path):
    """Tolerance 1e-5 maximal absolute difference, f32."""
    workdir = scratch(**{"speech_encoder.sizes.conv_strides": (1, 2)})
    content = export_hf.export_run(str(workdir), tmp_path / "out")
    assert content["towers"]["speech_encoder"]["class"] == "WhisperEncoder" and content["step"] == 7
    model, _ = model_of(workdir)
    encoder = TorchWhisperEncoder.from_pretrained(tmp_path / "out" / "speech_encoder").eval()
    np.testing.assert_allclose(our_speech(model), their_speech(encoder), atol=1e-5, rtol=0)
    bert = transformers.AutoModel.from_pretrained(tmp_path / "out" / "text_encoder").eval()
    np.testing.assert_allclose(our_text(model), their_text(bert), atol=1e-5, rtol=0)


def test_adapters_of_a_base_that_is_nowhere_else(scratch, tmp_path):
    """The base is written too, without them, and the adapter names it."""
    changes = {"speech_encoder.sizes.conv_strides": (1, 2), "lora.pattern": "text_encoder/.*query$", "lora.alpha": 8.0}
    workdir = scratch(**changes)
    export_hf.export_run(str(workdir), tmp_path / "out", as_adapters=True)
    config = json.loads((tmp_path / "out" / "text_encoder_adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out" / "text_encoder") and config["r"] == 8
    _, params = model_of(workdir)
    kernel = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    np.testing.assert_array_equal(
        kernel["encoder.layer.0.attention.self.query.weight"], params["text_encoder/layers/attention/query/kernel"][0].T
    )


def test_a_tower_that_transformers_cannot_express_is_among_the_rest(scratch, tmp_path):
    """The default speech encoder: strides (2, 2)."""
    workdir = scratch(**{"lora.pattern": "speech_encoder/.*query$"})
    done = subprocess.run(
        [sys.executable, "tools/export_hf.py", str(workdir), str(tmp_path / "out"), "--adapters", "--step=7"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "speech_encoder: not a model of transformers (conv_strides=(2, 2)" in done.stdout
    assert not (tmp_path / "out" / "speech_encoder").exists()
    tensors = load_file(tmp_path / "out" / "mser_jax.safetensors")
    _, params = model_of(workdir)
    speech = {path for path in lora.split(params)[0] if path.startswith("speech_encoder/")}
    assert speech and speech == {path for path in tensors if path.startswith("speech_encoder/")}
    said = json.loads((tmp_path / "out" / "mser_jax.json").read_text())
    assert "strides" in said["towers"]["speech_encoder"]["not_expressible"]
    assert "no class" in said["tensors"]["speech_encoder/conv1/kernel"]["what"]


def test_errors_say_what_to_do(adapted, tmp_path):
    command = [sys.executable, "tools/export_hf.py", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Expected the workdir of a training run" in done.stderr
    (tmp_path / "full" / "x").mkdir(parents=True)
    with pytest.raises(PretrainedError, match="not empty"):
        export_hf.export_run(str(adapted), tmp_path / "full")
    with pytest.raises(PretrainedError, match="no such directory"):
        export_hf.export_run(str(adapted), tmp_path / "out", bases={"speech_encoder": "/nowhere"})
    with pytest.raises(PretrainedError, match=r"no tower \['speech'\]; there are"):
        export_hf.export_run(str(adapted), tmp_path / "out", bases={"speech": "x"})
