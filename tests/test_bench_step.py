"""The step's bench runs, and its network in PyTorch has the size of ours."""

import functools

import jax
import pytest

from mser_jax.parallel import mesh as mesh_lib
from tools import bench_step, bench_step_torch_llm

TINY = """
from configs import stage2

def get_config(arg):
    config = stage2.get_config("whisper_base_gemma")
    for sizes in (config.speech_encoder.sizes, config.llm.sizes, config.model.qformer):
        sizes.update({"num_layers": 2, "width": 16, "num_heads": 2, "mlp_width": 32})
    config.llm.sizes.update({"num_kv_heads": 1, "head_dim": 8, "local_layers": (True, False), "vocab_size": 400})
    config.model.layer_mix_init = ()
    config.mesh.replicated_limit = 1.0
    return config
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.delenv("MSER_WEIGHTS", raising=False)
    one_device = functools.partial(mesh_lib.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(mesh_lib, "make_mesh", one_device)
    (tmp_path / "tiny.py").write_text(TINY)
    return bench_step.beside_config(str(tmp_path / "tiny.py"))


def test_stage_2_beside_torch_is_the_same_network(config):
    ours = bench_step.measure(config, 1, bench_step.LENGTHS[2])
    assert ours["utterances_per_second"] > 0 and ours["gflops_per_second"] > 0
    for arguments in (["--seconds=30", "--logits=all"], ["--seconds=4", "--logits=answers"]):
        theirs = bench_step_torch_llm.measure(bench_step_torch_llm.parse([*arguments, "--steps=1"]), config)
        assert theirs["learning_parameters"] == ours["learning_parameters"] > 1000
        assert theirs["utterances_per_second"] > 0
        assert (theirs["tokens"], theirs["targets"]) == (8 * bench_step.ROW, 8 * bench_step.ANSWER)
