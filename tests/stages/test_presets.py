"""The presets on released models: their networks have the sizes of those models, and their train steps compile."""

import jax
import numpy as np
import pytest

from mser_jax import config as config_lib
from mser_jax import train
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.stages import alignment

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
        compiled = program.train_step.lower(program.abstract, stage.batch_spec(mesh)).compile()
    frozen = program.abstract.frozen
    assert not any(path.startswith(("speech_encoder/", "text_encoder/")) for path in program.abstract.trainable)
    for tower, millions in zip(("speech_encoder/", "text_encoder/"), PRESETS[name], strict=True):
        count = sum(np.prod(leaf.shape) for path, leaf in frozen.items() if path.startswith(tower)) / 1e6
        assert count == pytest.approx(millions, rel=0.01), tower
    memory = compiled.memory_analysis()
    if mesh.shape["fsdp"] == 8:
        whole = sum(4 * np.prod(leaf.shape) for leaf in frozen.values())
        assert memory.argument_size_in_bytes < whole / 6, "the frozen towers are sharded too"
