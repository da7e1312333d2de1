"""Pretrained towers: what `configs/stage1.py:NAME` (both frozen) and `configs/stage2.py:NAME` change.

`init` is a directory below $MSER_WEIGHTS where that is set, else the model's id on the Hugging Face hub. `sizes` are
those of the released models, for compiling without their weights (`--config.speech_encoder.init=`).
"""

import os
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

# The towers, but not the adapters that --config.lora.pattern may put on them.
FROZEN = (("^(speech|text)_encoder/(?!.*/lora/)", 0.0), (".*", 1.0))


def _weights(hub_id: str) -> str:
    folder = os.environ.get("MSER_WEIGHTS", "")
    return str(pathlib.Path(folder) / hub_id.rpartition("/")[2]) if folder else hub_id


def _tower(section: ConfigDict, hub_id: str, family: str, **sizes: object) -> None:
    section.init, section.family, section.sizes = _weights(hub_id), family, ConfigDict(sizes)


def _whisper(section: ConfigDict, name: str, layers: int, width: int, heads: int, num_mels: int = 80) -> None:
    sizes = {"num_layers": layers, "width": width, "num_heads": heads, "mlp_width": 4 * width}
    front = {"num_mels": num_mels, "conv_strides": (1, 2), "stored_positions": True}
    _tower(section, f"openai/whisper-{name}", "whisper", **sizes, **front)


def _xlm_r(section: ConfigDict, hub_id: str) -> None:
    sizes = {"num_layers": 24, "width": 1024, "num_heads": 16, "mlp_width": 4096, "vocab_size": 250_002}
    _tower(section, hub_id, "bert", **sizes, max_positions=514, position_offset=2, norm_eps=1e-5)


def _freeze(config: ConfigDict) -> None:
    config.optim.groups = FROZEN


def whisper_base_e5(config: ConfigDict) -> None:
    """Whisper-base and multilingual-E5-small: a laptop's."""
    _whisper(config.speech_encoder, "base", layers=6, width=512, heads=8)
    _tower(
        config.text_encoder, "intfloat/multilingual-e5-small", "bert",
        num_layers=12, width=384, num_heads=12, mlp_width=1536, vocab_size=250_037, max_positions=512, token_types=2,
    )  # fmt: skip
    _freeze(config)
    # For a few hours of speech: the layers' means carry the embedding; a small Q-Former on six frames a second learns
    # slowly beside them, or it learns the training speakers by heart. Captions name the emotion only.
    config.model.frame_pool = 8
    config.model.trailing_silence = 2.0
    config.model.layer_mix_init = (0.0, 0.0, 4.0, 4.0, 4.0, 0.0, 0.0)
    config.model.mean_head.update({"width": 256, "dropout": 0.5})
    config.model.qformer.update(
        {"num_layers": 1, "num_queries": 4, "width": 128, "num_heads": 4, "mlp_width": 256, "dropout": 0.2}
    )
    config.data.captions.update({"facts": 0.0, "acoustics": 0.0, "transcript_probability": 0.0})
    config.data.update({"max_tokens": 16, "length_classes": (4.5,), "pair_languages": False})
    config.train.update({"budget": "250 steps", "batch_size": 128})
    config.checkpointing.every = ""
    # Prompts lie close together in E5's space: their projection must first pull them apart.
    slow, fast = ("^(qformer|pool|speech_projection)/", 0.1), ("^text_projection/", 10.0)
    config.optim.groups = (FROZEN[0], slow, fast, FROZEN[1])
    config.optim.warmup = "20 steps"
    config.loss.positives = "multi_positive"
    config.loss.update({"supcon": 0.0, "adversary_language": 0.0, "adversary_speaker": 0.0})


def whisper_large_v3_xlmr_large(config: ConfigDict) -> None:
    """Whisper-large-v3 and XLM-R-large: an accelerator's."""
    _whisper(config.speech_encoder, "large-v3", layers=32, width=1280, heads=20, num_mels=128)
    _xlm_r(config.text_encoder, "FacebookAI/xlm-roberta-large")
    _large(config)


def _of_a_pod(config: ConfigDict, batch_size: int, parts: int) -> None:
    """Weights over 16 chips, a ring of a v5e or v5p slice; batches by all, the towers' in `parts`."""
    config.mesh.update({"data": -1, "fsdp": 16})
    config.train.update({"batch_size": batch_size, "encoder_microbatches": parts})


def whisper_large_v3_xlmr_large_32k(config: ConfigDict) -> None:
    """The same with 32,768 pairs to a batch: a pod's (on 256 chips 128 rows each, 32 at a time)."""
    whisper_large_v3_xlmr_large(config)
    _of_a_pod(config, 32_768, parts=4)


def whisper_large_v3_xlmr_large_262k(config: ConfigDict) -> None:
    """The same with 262,144 (on 256 chips 1,024 rows each, 32 at a time)."""
    whisper_large_v3_xlmr_large(config)
    _of_a_pod(config, 262_144, parts=32)


def xlsr_300m_e5_large(config: ConfigDict) -> None:
    """XLS-R-300M and multilingual-E5-large."""
    _wav2vec2(config.speech_encoder, "facebook/wav2vec2-xls-r-300m")
    _xlm_r(config.text_encoder, "intfloat/multilingual-e5-large")
    _large(config)


def wavlm_large_e5_large(config: ConfigDict) -> None:
    """WavLM-large and multilingual-E5-large."""
    _wav2vec2(config.speech_encoder, "microsoft/wavlm-large", model_type="wavlm", relative_buckets=320)
    config.speech_encoder.sizes.conv_bias = False
    _xlm_r(config.text_encoder, "intfloat/multilingual-e5-large")
    _large(config)


def _wav2vec2(section: ConfigDict, hub_id: str, **sizes: object) -> None:
    large = {"num_layers": 24, "width": 1024, "num_heads": 16, "mlp_width": 4096}
    layout = {"conv_norm": "layer", "conv_bias": True, "norm_first": True, "conv_dims": (512,) * 7}
    _tower(section, hub_id, "wav2vec2", **large, **layout, **sizes)


def _large(config: ConfigDict) -> None:
    _freeze(config)
    config.model.embed_dim = 768
    config.model.qformer.update({"num_layers": 4, "width": 768, "num_heads": 12, "mlp_width": 3072, "num_queries": 32})
    config.speech_encoder.remat = config.text_encoder.remat = config.model.qformer.remat = "dots"
    config.mesh.update({"data": 1, "fsdp": -1})
    config.train.batch_size = 256
    config.optim.learning_rate = 3e-4


_ALL = (
    whisper_base_e5,
    whisper_large_v3_xlmr_large,
    whisper_large_v3_xlmr_large_32k,
    whisper_large_v3_xlmr_large_262k,
    xlsr_300m_e5_large,
    wavlm_large_e5_large,
)
PRESETS: dict[str, Callable[[ConfigDict], None]] = {preset.__name__: preset for preset in _ALL}

# The LLM's linear layers, all of them, and what of the network then learns: adapters, Q-Former, layer mix, projection.
_LORA = r"^llm/layers/(attention/(query|key|value|out)|mlp/(gate|up|down))$"
_ADAPTED = (("^(speech_encoder|llm)/(?!.*/lora/)", 0.0), (".*", 1.0))


def _adapt(config: ConfigDict, rank: int) -> None:
    config.lora.update({"pattern": _LORA, "rank": rank, "alpha": 2.0 * rank})
    config.optim.groups = _ADAPTED
    config.checkpointing.content = "trainable"


def whisper_base_gemma(config: ConfigDict) -> None:
    """Gemma 3 270M with LoRA, after `stage1.py:whisper_base_e5`: a laptop's."""
    gemma = {"num_layers": 18, "width": 640, "num_heads": 4, "num_kv_heads": 1, "head_dim": 256, "mlp_width": 2048}
    options = {"qk_norm": True, "sandwich_norms": True, "norm_cast_first": False, "scale_embeddings": True}
    layers = {"window": 512, "local_layers": ((True,) * 5 + (False,)) * 3, "activation": "gelu_tanh", "tied": True}
    ropes = {"rope": {"theta": 1e6}, "local_rope": {"theta": 1e4}, "max_positions": 32_768}
    sizes = gemma | options | layers | ropes | {"model_type": "gemma3_text", "vocab_size": 262_144}
    _tower(config.llm, "google/gemma-3-270m", "llm", **sizes)
    _adapt(config, rank=8)
    # For a few hours of speech: one kind of question, in one language. Its rows of 20 tokens with answers of 2 cost a
    # third of what rows of 40 with 14 do, which all kinds and languages need.
    config.data.tasks.update({"language": 0.0, "acoustics": 0.0})
    config.data.question_languages = config.evaluate.prompt_languages = "en"
    config.data.sequences.update({"short": (20, 2), "long": (72, 48)})
    # The embedding stays nearly as stage 1 left it: 150 steps of full size can move each weight of its heads further
    # than it is from zero. Not 0.0: what learns is in the checkpoint, which then needs no run of stage 1 beside it.
    heard = ("^(layer_mix|mean_head/|pool/|speech_projection/)", 0.002)
    config.optim.groups = (_ADAPTED[0], heard, ("^qformer/", 0.1), ("/lora/", 0.3), _ADAPTED[1])
    config.optim.learning_rate = 2e-3
    config.optim.warmup = "20 steps"
    config.train.update({"budget": "150 steps", "batch_size": 16})


def _llama3(section: ConfigDict, name: str, layers: int, width: int, heads: int, mlp: int) -> None:
    sizes = {"num_layers": layers, "width": width, "num_heads": heads, "num_kv_heads": 8, "head_dim": 128}
    files = {"vocab_size": 128_256, "max_positions": 8192, "norm_eps": 1e-5, "rope": {"theta": 5e5}}
    _tower(section, f"meta-llama/Meta-Llama-3-{name}-Instruct", "llm", **sizes, mlp_width=mlp, **files)
    section.remat = "dots"


def _large_llm(config: ConfigDict, batch_size: int) -> None:
    config.data.sequences.update({"short": (96, 24), "long": (160, 96)})
    config.optim.learning_rate = 1e-4
    config.train.update({"budget": "2 epochs", "batch_size": batch_size})
    # Weights over one face of a torus: over all of it libtpu makes the gradients' reduce-scatters all-reduces.
    config.mesh.update({"data": -1, "fsdp": 16})


def whisper_large_v3_llama3_8b(config: ConfigDict) -> None:
    """Llama 3 8B with LoRA, after `stage1.py:whisper_large_v3_xlmr_large`: batch and mesh for 64 chips of v5p."""
    _llama3(config.llm, "8B", 32, 4096, 32, 14_336)
    _large_llm(config, batch_size=2048)
    _adapt(config, rank=16)


def whisper_large_v3_llama3_8b_full(config: ConfigDict) -> None:
    """The same, but all of the LLM learns: for 128 chips of v5p."""
    whisper_large_v3_llama3_8b(config)
    config.train.batch_size = 4096
    config.lora.pattern = ""
    config.optim.groups = (("^speech_encoder/", 0.0), (".*", 1.0))
    config.optim.learning_rate = 1e-5
    config.checkpointing.content = "all"


def whisper_large_v3_llama3_70b(config: ConfigDict) -> None:
    """Llama 3 70B with LoRA: for 128 chips of v5p."""
    _llama3(config.llm, "70B", 80, 8192, 64, 28_672)
    _large_llm(config, batch_size=4096)
    _adapt(config, rank=16)
    # Not accumulation, which gathers all weights once a part.
    config.llm.remat = "full"


_LARGE = (whisper_large_v3_llama3_8b, whisper_large_v3_llama3_8b_full, whisper_large_v3_llama3_70b)
# Name: (the variant of stage 1 that it comes after, what it changes).
STAGE2: dict[str, tuple[str, Callable[[ConfigDict], None]]] = {
    "whisper_base_gemma": ("whisper_base_e5", whisper_base_gemma),
    **{preset.__name__: ("whisper_large_v3_xlmr_large", preset) for preset in _LARGE},
}
# The same by the LLM's name: `stage2.py:llama3_8b`.
STAGE2 |= {name.removeprefix("whisper_large_v3_"): STAGE2[name] for name in STAGE2 if "llama" in name}
