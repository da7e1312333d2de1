"""Whisper's encoder, all sizes (tiny … large-v3), in transformers' files; the decoder is left alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mser_jax.models.whisper import MAX_MEL_FRAMES, WhisperConfig, sinusoids
from mser_jax.pretrained.keymap import KeyMap, PretrainedError, conv1d, linear, norm, raw, refuse

MODEL_TYPES = ("whisper",)

# Ours: config.json's.
_FIELDS = {
    "num_layers": "encoder_layers",
    "width": "d_model",
    "num_heads": "encoder_attention_heads",
    "mlp_width": "encoder_ffn_dim",
    "num_mels": "num_mel_bins",
}
# What our encoder is, whatever its sizes. Two convolutions halve the frame rate once.
_FIXED = {"activation_function": "gelu", "max_source_positions": MAX_MEL_FRAMES // 2}


def config_from_hf(hf: Mapping[str, Any], *, dropout: float = 0.0, remat: str = "none") -> WhisperConfig:
    """Sizes out of config.json.

    Raises:
        PretrainedError: it asks for what we do not implement, or lacks a size.
    """
    refuse("whisper", hf, _FIXED, needed=_FIELDS.values())
    sizes = {ours: hf[theirs] for ours, theirs in _FIELDS.items()}
    return WhisperConfig(**sizes, stored_positions=True, dropout=dropout, remat=remat)


def config_to_hf(cfg: WhisperConfig) -> dict[str, Any]:
    """A config.json for the encoder by itself, to be loaded by transformers' WhisperEncoder.from_pretrained.

    (`transformers.models.whisper.modeling_whisper.WhisperEncoder`: the classes that AutoModel knows have a decoder.)

    Raises:
        PretrainedError: conv_strides are not Whisper's.
    """
    if cfg.conv_strides != (1, 2):
        raise PretrainedError(f"conv_strides={cfg.conv_strides}: transformers' Whisper has (1, 2) only")
    sizes = {theirs: getattr(cfg, ours) for ours, theirs in _FIELDS.items()}
    return {"model_type": "whisper", "architectures": ["WhisperEncoder"], **sizes, **_FIXED}


def key_map(cfg: WhisperConfig) -> KeyMap:
    """The table. Positions that are no parameter of ours are computed, and written for transformers all the same."""
    computed = {"embed_positions.weight": sinusoids(MAX_MEL_FRAMES // 2, cfg.width)}
    return KeyMap(
        family="Whisper encoder",
        prefixes=("", "encoder.", "model.encoder."),
        entries=(
            *conv1d("conv1", "conv1"),
            *conv1d("conv2", "conv2"),
            *(raw("positions", "embed_positions.weight") if cfg.stored_positions else ()),
            *norm("layers/attention_norm", "layers.{layer}.self_attn_layer_norm"),
            *linear("layers/attention/query", "layers.{layer}.self_attn.q_proj"),
            *linear("layers/attention/key", "layers.{layer}.self_attn.k_proj", bias=False),
            *linear("layers/attention/value", "layers.{layer}.self_attn.v_proj"),
            *linear("layers/attention/out", "layers.{layer}.self_attn.out_proj"),
            *norm("layers/mlp_norm", "layers.{layer}.final_layer_norm"),
            *linear("layers/mlp_in", "layers.{layer}.fc1"),
            *linear("layers/mlp_out", "layers.{layer}.fc2"),
            *norm("final_norm", "layer_norm"),
        ),
        constants={} if cfg.stored_positions else computed,
        # The decoder, its head, and what WhisperForAudioClassification adds.
        ignored=(r"^(model\.)?decoder\.", r"^proj_out\.", r"^(projector|classifier)\.", r"^layer_weights$"),
    )
