"""BERT, RoBERTa and XLM-R encoders (multilingual E5 is one of them) in transformers' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mser_jax.models.text_encoder import TextEncoderConfig
from mser_jax.pretrained.keymap import KeyMap, embedding, linear, norm, refuse

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")

# Ours: config.json's.
_FIELDS = {
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
}
_FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def config_from_hf(hf: Mapping[str, Any], *, dropout: float = 0.0, remat: str = "none") -> TextEncoderConfig:
    """Sizes out of config.json. RoBERTa's and XLM-R's positions begin after the row of the padding id.

    Raises:
        PretrainedError: it asks for what we do not implement, or lacks a size.
    """
    needed = [*_FIELDS.values(), *(() if hf["model_type"] == "bert" else ("pad_token_id",))]
    refuse(hf["model_type"], hf, _FIXED, needed)
    offset = 0 if hf["model_type"] == "bert" else hf["pad_token_id"] + 1
    sizes = {ours: hf[theirs] for ours, theirs in _FIELDS.items()}
    return TextEncoderConfig(**sizes, position_offset=offset, dropout=dropout, remat=remat)


def config_to_hf(cfg: TextEncoderConfig) -> dict[str, Any]:
    """A config.json that transformers' AutoModel loads, as BERT or, with an offset of positions, as XLM-R."""
    sizes = {theirs: getattr(cfg, ours) for ours, theirs in _FIELDS.items()}
    if not cfg.position_offset:
        return {"model_type": "bert", "architectures": ["BertModel"], **sizes, **_FIXED}
    padding = {"pad_token_id": cfg.position_offset - 1}
    return {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], **sizes, **_FIXED, **padding}


def key_map(cfg: TextEncoderConfig) -> KeyMap:
    """The table; the same whatever the sizes."""
    del cfg
    return KeyMap(
        family="BERT / XLM-R encoder",
        prefixes=("", "bert.", "roberta."),
        entries=(
            *embedding("tokens", "embeddings.word_embeddings"),
            *embedding("positions", "embeddings.position_embeddings"),
            *embedding("token_types", "embeddings.token_type_embeddings"),
            *norm("embedding_norm", "embeddings.LayerNorm"),
            *linear("layers/attention/query", "encoder.layer.{layer}.attention.self.query"),
            *linear("layers/attention/key", "encoder.layer.{layer}.attention.self.key"),
            *linear("layers/attention/value", "encoder.layer.{layer}.attention.self.value"),
            *linear("layers/attention/out", "encoder.layer.{layer}.attention.output.dense"),
            *norm("layers/attention_norm", "encoder.layer.{layer}.attention.output.LayerNorm"),
            *linear("layers/mlp_in", "encoder.layer.{layer}.intermediate.dense"),
            *linear("layers/mlp_out", "encoder.layer.{layer}.output.dense"),
            *norm("layers/mlp_norm", "encoder.layer.{layer}.output.LayerNorm"),
        ),
        # Pooler and task heads; position_ids were saved by older versions.
        ignored=(r"(^|\.)pooler\.", r"^(cls|lm_head|classifier|qa_outputs)\.", r"(^|\.)embeddings\.position_ids$"),
        renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    )
