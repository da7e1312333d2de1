"""wav2vec 2.0, XLS-R, HuBERT and WavLM: config.json and tensors of `transformers.{Wav2Vec2,Hubert,WavLM}Model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mser_jax.models.wav2vec2 import Wav2Vec2Config
from mser_jax.pretrained.keymap import Entry, KeyMap, PretrainedError, conv1d, embedding, linear, norm, raw, refuse

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm")

# Ours: config.json's. Those that one model_type alone has follow.
_FIELDS = {
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "conv_dims": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_norm": "feat_extract_norm",
    "conv_bias": "conv_bias",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "norm_first": "do_stable_layer_norm",
    "norm_eps": "layer_norm_eps",
}
_OWN_FIELDS = {
    "wav2vec2": {},
    "hubert": {"projection_norm": "feat_proj_layer_norm"},
    "wavlm": {"relative_buckets": "num_buckets", "relative_max_distance": "max_bucket_distance"},
}
_ARCHITECTURES = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}
# What our encoder is, whatever its sizes.
_FIXED = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "add_adapter": False}
# Language adapters in every layer (MMS after its fine-tuning); HuBERT's batch norm before the positions.
_ABSENT = {"adapter_attn_dim": None, "conv_pos_batch_norm": False}
# Masking of frames in training is not ours: no `masked_spec_embed` is missing without it.
_NO_MASKING = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}


def config_from_hf(hf: Mapping[str, Any], *, dropout: float = 0.0, remat: str = "none") -> Wav2Vec2Config:
    """Sizes and switches out of config.json.

    `do_normalize`, which `load.read_config` takes from the front end's own file, says whether waveforms are
    normalised: false for WavLM-base, and true where nothing is said.

    Raises:
        PretrainedError: it asks for what we do not implement, lacks a size, or contradicts itself.
    """
    model_type = hf.get("model_type", "wav2vec2")
    fields = _FIELDS | _OWN_FIELDS[model_type]
    refuse(model_type, hf, _FIXED | _ABSENT, needed=fields.values())
    values = {ours: hf[theirs] for ours, theirs in fields.items()}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    values |= {"normalise": bool(hf.get("do_normalize", True)), "model_type": model_type}
    try:
        return Wav2Vec2Config(**values, dropout=dropout, remat=remat)
    except ValueError as error:
        raise PretrainedError(f"config.json of this {model_type} model: {error}") from None


def config_to_hf(cfg: Wav2Vec2Config) -> dict[str, Any]:
    """A config.json for {Wav2Vec2,Hubert,WavLM}Model. `do_normalize` in it is for `config_from_hf` alone.

    Raises:
        PretrainedError: an unknown model_type, or one that does not have what `cfg` asks for.
    """
    kind = cfg.model_type
    if kind not in MODEL_TYPES:
        raise PretrainedError(f"model_type={kind!r}: expected one of {MODEL_TYPES}")
    if bool(cfg.relative_buckets) != (kind == "wavlm"):
        raise PretrainedError(
            f"relative_buckets={cfg.relative_buckets} with model_type={kind!r}: "
            "'wavlm' has relative positions, always, and the others never"
        )
    if not cfg.projection_norm and kind != "hubert":
        raise PretrainedError(f"projection_norm=False with model_type={kind!r}: only 'hubert' can go without it")
    sizes = {theirs: getattr(cfg, ours) for ours, theirs in (_FIELDS | _OWN_FIELDS[kind]).items()}
    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()}
    sizes |= {"num_feat_extract_layers": len(cfg.conv_dims), "do_normalize": cfg.normalise}
    return {"model_type": kind, "architectures": [_ARCHITECTURES[kind]], **sizes, **_FIXED, **_NO_MASKING}


def _feature_extractor(cfg: Wav2Vec2Config) -> tuple[Entry, ...]:
    """The convolutions: each its own size, so not stacked."""
    entries: tuple[Entry, ...] = ()
    for i in range(len(cfg.conv_dims)):
        ours, theirs = f"feature_extractor/layers/{i}", f"feature_extractor.conv_layers.{i}"
        entries += conv1d(f"{ours}/conv", f"{theirs}.conv", bias=cfg.conv_bias)
        if cfg.conv_norm == "layer":
            entries += norm(f"{ours}/layer_norm", f"{theirs}.layer_norm")
        elif i == 0:
            entries += norm(f"{ours}/time_norm", f"{theirs}.layer_norm")
    return entries


def key_map(cfg: Wav2Vec2Config) -> KeyMap:
    """The table: our paths and transformers' names."""
    layer = "encoder.layers.{layer}"
    conv = "encoder.pos_conv_embed.conv"
    # fmt: off
    entries = (
        *_feature_extractor(cfg),
        *(norm("projection_norm",          "feature_projection.layer_norm") if cfg.projection_norm else ()),
        *linear("projection",              "feature_projection.projection"),
        *raw("positions/gain",             f"{conv}.parametrizations.weight.original0", (2, 1, 0)),
        *raw("positions/direction",        f"{conv}.parametrizations.weight.original1", (2, 1, 0)),
        *raw("positions/bias",             f"{conv}.bias"),
        *norm("encoder_norm",              "encoder.layer_norm"),
        *linear("layers/attention/query",  f"{layer}.attention.q_proj"),
        *linear("layers/attention/key",    f"{layer}.attention.k_proj"),
        *linear("layers/attention/value",  f"{layer}.attention.v_proj"),
        *linear("layers/attention/out",    f"{layer}.attention.out_proj"),
        *norm("layers/attention_norm",     f"{layer}.layer_norm"),
        *linear("layers/mlp_in",           f"{layer}.feed_forward.intermediate_dense"),
        *linear("layers/mlp_out",          f"{layer}.feed_forward.output_dense"),
        *norm("layers/mlp_norm",           f"{layer}.final_layer_norm"),
    )
    if cfg.relative_buckets:
        entries += (
            *embedding("relative/embedding",             "encoder.layers.0.attention.rel_attn_embed"),
            *linear("layers/attention/gate/projection",  f"{layer}.attention.gru_rel_pos_linear"),
            *raw("layers/attention/gate/constant",       f"{layer}.attention.gru_rel_pos_const"),
        )
    # fmt: on
    return KeyMap(
        family=f"{cfg.model_type} encoder",
        prefixes=("", f"{cfg.model_type}."),
        entries=entries,
        # What pretraining and the heads for CTC, classification and speaker verification have besides.
        ignored=(
            r"(^|\.)masked_spec_embed$",
            r"^(quantizer|project_hid|project_q|lm_head|projector|classifier|tdnn|objective)\.",
            r"^layer_weights$",
            r"^feature_extractor\.(weight|bias)$",
        ),
        renames=(
            (r"\.weight_g$", ".parametrizations.weight.original0"),
            (r"\.weight_v$", ".parametrizations.weight.original1"),
        ),
    )
