"""Stage 1 on pretrained towers, both frozen: what `configs/stage1.py:NAME` changes.

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
    # For a few hours of speech: a small Q-Former on six frames a second, and captions that name the emotion only.
    config.model.frame_pool = 8
    config.model.layer_mix_init = (0.0, 0.0, 4.0, 4.0, 4.0, 0.0, 0.0)
    config.model.qformer.update(
        {"num_layers": 1, "num_queries": 4, "width": 128, "num_heads": 4, "mlp_width": 256, "dropout": 0.2}
    )
    config.data.captions.update({"facts": 0.0, "acoustics": 0.0, "transcript_probability": 0.0})
    config.data.update({"max_tokens": 16, "length_classes": (4.5,)})
    config.train.update({"budget": "250 steps", "batch_size": 64})
    config.checkpointing.every = ""
    # Prompts lie close together in E5's space: their projection must first pull them apart.
    config.optim.groups = (FROZEN[0], ("^text_projection", 10.0), FROZEN[1])
    config.optim.warmup = "20 steps"
    config.loss.update({"supcon": 0.0, "adversary_language": 0.0, "adversary_speaker": 0.0})


def whisper_large_v3_xlmr_large(config: ConfigDict) -> None:
    """Whisper-large-v3 and XLM-R-large: an accelerator's."""
    _whisper(config.speech_encoder, "large-v3", layers=32, width=1280, heads=20, num_mels=128)
    _xlm_r(config.text_encoder, "FacebookAI/xlm-roberta-large")
    _large(config)


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


_ALL = (whisper_base_e5, whisper_large_v3_xlmr_large, xlsr_300m_e5_large, wavlm_large_e5_large)
PRESETS: dict[str, Callable[[ConfigDict], None]] = {preset.__name__: preset for preset in _ALL}
