"""The presets on released models: their networks have the sizes of those models, and their train steps compile."""

import jax
import numpy as np
import pytest

from mser_jax import config as config_lib
from mser_jax import train
from mser_jax.models import lora
from mser_jax.models.speech_reader import SpeechReader
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import alignment, finetuning

# A compile takes 20 s, so one of each family of encoders; the others are traced.
COMPILED = ("whisper_large_v3_xlmr_large", "wavlm_large_e5_large")
# Millions of parameters of the encoder, of the text model without its pooler (published figures, rounded).
PRESETS = {
    "whisper_base_e5": (20.6, 117.5),
    "whisper_large_v3_xlmr_large": (636.8, 558.8),
    "xlsr_300m_e5_large": (315.4, 558.8),
    "wavlm_large_e5_large": (315.5, 558.8),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_compiles_without_weights(name):
    """On 8 devices, parameters over fsdp where the preset says so; nothing is allocated."""
    config = config_lib.load(f"configs/stage1.py:{name}")
    assert config.speech_encoder.init and config.text_encoder.init
    config.speech_encoder.init = config.text_encoder.init = ""
    mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, mode=config.mesh.mode)
    with jax.set_mesh(mesh):
        stage = alignment.Alignment(config, alignment.SYNTHETIC)
        program = train.build(config, mesh, stage=stage)
        lowered = program.train_step.lower(program.abstract, stage.batch_spec(mesh))
    frozen = program.abstract.frozen
    assert not any(path.startswith(("speech_encoder/", "text_encoder/")) for path in program.abstract.trainable)
    for tower, millions in zip(("speech_encoder/", "text_encoder/"), PRESETS[name], strict=True):
        count = sum(np.prod(leaf.shape) for path, leaf in frozen.items() if path.startswith(tower)) / 1e6
        assert count == pytest.approx(millions, rel=0.01), tower
    if name in COMPILED:
        memory = lowered.compile().memory_analysis()
        assert mesh.shape["fsdp"] == 8
        whole = sum(4 * np.prod(leaf.shape) for leaf in frozen.values())
        assert memory.argument_size_in_bytes < whole / 6, "the frozen towers are sharded too"


# Millions of parameters of the encoder, of the LLM (published figures, rounded), and of the LLM's adapters.
STAGE2 = {
    "whisper_base_gemma": (20.6, 268.1, 1.9),
    "whisper_large_v3_llama3_8b": (636.8, 8030.3, 41.9),
    "whisper_large_v3_llama3_8b_full": (636.8, 8030.3, 0.0),
    "whisper_large_v3_llama3_70b": (636.8, 70553.7, 207.1),
}


@pytest.mark.parametrize("name", STAGE2)
def test_stage2_preset_is_traced_without_weights(name):
    """Network, step and shardings on 8 devices; not compiled, which takes 20 s each."""
    config = config_lib.load(f"configs/stage2.py:{name}")
    assert config.speech_encoder.init and config.llm.init
    config.speech_encoder.init = config.llm.init = ""
    # Bytes stand in for the tokenizer that comes with the weights, and are more.
    config.data.sequences.update({"short": (140, 48), "long": (200, 100)})
    # Pods' presets shard over 16 chips or more; tests have 8.
    fsdp = min(config.mesh.fsdp, jax.device_count())
    mesh = mesh_lib.make_mesh(config.mesh.data, fsdp, config.mesh.tensor, mode=config.mesh.mode)
    with jax.set_mesh(mesh):
        stage = finetuning.Finetuning(config, alignment.SYNTHETIC)
        program = train.build(config, mesh, stage=stage)
        program.train_step.lower(program.abstract, stage.batch_spec(mesh))
    params = program.abstract.params

    def millions(chosen):
        return sum(np.prod(leaf.shape) for path, leaf in params.items() if chosen(path)) / 1e6

    found = (
        millions(lambda path: path.startswith("speech_encoder/")),
        millions(lambda path: path.startswith("llm/") and not lora.is_adapter(path)),
        millions(lora.is_adapter),
    )
    assert found == pytest.approx(STAGE2[name], rel=0.01)
    learns = {path.partition("/")[0] for path in program.abstract.trainable if not lora.is_adapter(path)}
    full = {"llm"} if name.endswith("full") else set()
    heard = set(SpeechReader.PARTS) - {"speech_encoder"} - (set() if config.model.mean_head.width else {"mean_head"})
    assert learns == heard | {"embedding_projection", "soft_projection", "soft_norm"} | full
