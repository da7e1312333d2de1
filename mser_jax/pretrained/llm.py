"""Decoder LLMs: Llama 3, Qwen 2.5, Qwen 3, Gemma 3 (text, also the text part of its multimodal files)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from absl import logging
from huggingface_hub.errors import StrictDataclassError

from mser_jax.models.llm import LLMConfig
from mser_jax.models.rope import KINDS, Rope
from mser_jax.pretrained.keymap import Entry, KeyMap, PretrainedError, embedding, linear, norm, raw

MODEL_TYPES = ("llama", "qwen2", "qwen3", "gemma3_text", "gemma3")

# What config.json does not say because the family is the answer.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma3_text": {"qk_norm": True, "sandwich_norms": True, "norm_cast_first": False, "scale_embeddings": True},
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
# Ours: theirs, of the same meaning.
_SAME = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
_ROPE = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_positions": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_positions": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
    },
}
# Keys of any kind of RoPE, and those that are read elsewhere or say how transformers finds the others.
_ROPE_KEYS = {theirs for options in _ROPE.values() for theirs in options.values()} | {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "mscale", "mscale_all_dim", "finetuned")
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Keys whose other values mean what is not implemented.
_REQUIRED = {
    "mlp_bias": (None, False),
    "use_bidirectional_attention": (None, False),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "quantization_config": (None,),
}


def config_from_hf(hf: Mapping[str, Any], **options: Any) -> LLMConfig:
    """Our config for a config.json; `options` (dropout, remat, …) are further fields of LLMConfig.

    Old and new spellings are read (rope_theta and rope_scaling as well as rope_parameters,
    sliding_window_pattern and max_window_layers as well as layer_types), by transformers' own config classes.
    Gemma 3's attn_logit_softcapping is *not* applied, with a warning: transformers does not apply it either,
    so weights trained there do not expect it. `attention_softcap=` as an option does.

    Raises:
        PretrainedError: the config is not valid, or says what is not implemented (key and value are named).
    """
    hf = _standard(hf)
    model_type = hf["model_type"]
    for key, allowed in _REQUIRED.items():
        if hf.get(key) not in allowed:
            raise _unsupported(key, hf[key], allowed)
    gemma, biased = model_type == "gemma3_text", bool(hf.get("attention_bias"))
    key = "hidden_activation" if gemma else "hidden_act"
    if hf[key] not in _ACTIVATIONS:
        raise _unsupported(key, hf[key], tuple(_ACTIVATIONS))
    if hf.get("attn_logit_softcapping"):
        logging.warning(
            "attn_logit_softcapping=%s is not applied, as in transformers; attention_softcap=%s would.",
            *(hf["attn_logit_softcapping"],) * 2,
        )

    fields = {ours: hf[theirs] for ours, theirs in _SAME.items()}
    fields |= {"qkv_bias": biased, "out_bias": biased} | _FAMILIES[model_type] | _layers(hf)
    head_dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    query_scale = hf.get("query_pre_attn_scalar", head_dim)
    fields |= {
        "model_type": model_type,
        "head_dim": head_dim,
        "query_scale": None if query_scale == head_dim else query_scale,
        "activation": _ACTIVATIONS[hf[key]],
        "logit_softcap": hf.get("final_logit_softcapping"),
    }
    try:
        return LLMConfig(**(fields | options))
    except ValueError as error:
        raise PretrainedError(f"config.json of {model_type}: {error}") from error


def config_to_hf(cfg: LLMConfig) -> dict[str, Any]:
    """The config.json with which transformers loads this model.

    Raises:
        PretrainedError: `cfg.model_type` has no words for some of the options (all are named).
    """
    if cfg.model_type not in _FAMILIES:
        raise _unsupported("model_type", cfg.model_type, tuple(_FAMILIES))
    gemma, local = cfg.model_type == "gemma3_text", any(cfg.local_layers)
    hf = {theirs: getattr(cfg, ours) for ours, theirs in _SAME.items()}
    hf |= {
        "model_type": cfg.model_type,
        "architectures": [_CLASSES[cfg.model_type]],
        # The tokenizer knows; transformers' defaults are those of some other vocabulary.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        "head_dim": cfg.head_dim,
        "attention_bias": cfg.out_bias,
        "hidden_activation" if gemma else "hidden_act": {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}[
            cfg.activation
        ],
        "rope_parameters": _rope_to_hf(cfg.rope),
    }
    if cfg.model_type != "llama":
        flags = cfg.local_layers or (False,) * cfg.num_layers
        hf["layer_types"] = ["sliding_attention" if flag else "full_attention" for flag in flags]
        hf["sliding_window"] = cfg.window
    if gemma:
        hf["query_pre_attn_scalar"] = cfg.query_scale or cfg.head_dim
        hf["final_logit_softcapping"] = cfg.logit_softcap
        hf["rope_parameters"] = {
            "full_attention": hf["rope_parameters"],
            "sliding_attention": _rope_to_hf(cfg.local_rope or cfg.rope),
        }
    elif cfg.model_type != "llama":
        hf["use_sliding_window"] = local
        hf["max_window_layers"] = cfg.local_layers.index(True) if local else cfg.num_layers

    read = config_from_hf(hf, dropout=cfg.dropout, remat=cfg.remat)
    lost = [f.name for f in dataclasses.fields(cfg) if getattr(cfg, f.name) != getattr(read, f.name)]
    if lost:
        values = ", ".join(f"{name}={getattr(cfg, name)!r} (read back: {getattr(read, name)!r})" for name in lost)
        raise PretrainedError(f"A config.json of {cfg.model_type} cannot say {values}; choose another model_type.")
    return hf


def key_map(cfg: LLMConfig) -> KeyMap:
    """The table. A head that is tied is no tensor, though some files hold it.

    Prefixes: a causal LM, the bare decoder, the text part of Gemma 3 with vision before and since transformers 4.52,
    and that part's decoder. A head stands outside of the decoder, which is then part of the name.
    """
    # Gemma's norms multiply by 1 + weight.
    rms = functools.partial(norm, bias=False, offset=1.0 if cfg.model_type == "gemma3_text" else 0.0)
    decoder = "" if cfg.tied else "model."
    layer, attention, mlp = (f"{decoder}layers.{{layer}}.{part}" for part in ("", "self_attn.", "mlp."))
    entries: tuple[Entry, ...] = (
        *embedding("tokens", f"{decoder}embed_tokens"),
        *rms("layers/attention_norm", f"{layer}input_layernorm"),
        *linear("layers/attention/query", f"{attention}q_proj", bias=cfg.qkv_bias),
        *linear("layers/attention/key", f"{attention}k_proj", bias=cfg.qkv_bias),
        *linear("layers/attention/value", f"{attention}v_proj", bias=cfg.qkv_bias),
        *linear("layers/attention/out", f"{attention}o_proj", bias=cfg.out_bias),
        *rms("layers/mlp_norm", f"{layer}{'pre_feedforward' if cfg.sandwich_norms else 'post_attention'}_layernorm"),
        *linear("layers/mlp/gate", f"{mlp}gate_proj", bias=False),
        *linear("layers/mlp/up", f"{mlp}up_proj", bias=False),
        *linear("layers/mlp/down", f"{mlp}down_proj", bias=False),
        *rms("final_norm", f"{decoder}norm"),
    )
    if cfg.qk_norm:
        entries += rms("layers/attention/query_norm", f"{attention}q_norm")
        entries += rms("layers/attention/key_norm", f"{attention}k_norm")
    if cfg.sandwich_norms:
        entries += rms("layers/attention_out_norm", f"{layer}post_attention_layernorm")
        entries += rms("layers/mlp_out_norm", f"{layer}post_feedforward_layernorm")
    if not cfg.tied:
        entries += raw("head/kernel", "lm_head.weight", (1, 0))
    return KeyMap(
        family=f"{cfg.model_type} LLM",
        prefixes=("model.", "", "language_model.model.", "model.language_model.", "language_model.")
        if cfg.tied
        else ("", "language_model."),
        entries=entries,
        ignored=(r"rotary_emb\.inv_freq$", r"(^|\.)(vision_tower|multi_modal_projector)\."),
        # transformers takes a head that is there and differs for the head, whatever config.json says.
        repeats=((r"(^|\.)lm_head\.weight$", "embed_tokens.weight"),) if cfg.tied else (),
        # So that of a bare decoder's files just the head is said to be missing.
        renames=() if cfg.tied else ((r"^(?=(embed_tokens|layers|norm)\.)", "model."),),
    )


def _unsupported(key: str, value: Any, allowed: tuple[Any, ...]) -> PretrainedError:
    return PretrainedError(f"config.json: {key}={value!r} is not implemented for LLMs; known: {allowed}")


def _standard(hf: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of a text model with all defaults filled in and today's spellings."""
    from transformers import AutoConfig  # takes seconds

    if hf.get("model_type") not in MODEL_TYPES:
        raise _unsupported("model_type", hf.get("model_type"), MODEL_TYPES)
    given = copy.deepcopy(dict(hf))  # transformers completes nested entries in place
    if given["model_type"] == "gemma3":
        outer = {key: given[key] for key in ("tie_word_embeddings",) if key in given}
        given = {**(given.get("text_config") or {}), **outer, "model_type": "gemma3_text"}
    try:
        return AutoConfig.for_model(**given).to_dict()
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise PretrainedError(f"config.json is no valid config of {given['model_type']}: {error}") from error


def _layers(hf: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE, window and the pattern of local layers."""
    ropes = hf["rope_parameters"]
    types = hf.get("layer_types") or ["full_attention"] * hf["num_hidden_layers"]
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise _unsupported("layer_types", kind, ("full_attention", "sliding_attention"))
    local = tuple(kind == "sliding_attention" for kind in types)
    if hf["model_type"] != "gemma3_text":
        ropes = {"full_attention": ropes, "sliding_attention": ropes}
    rope, local_rope = (_rope_from_hf(ropes[kind], hf) for kind in ("full_attention", "sliding_attention"))
    if not any(local):
        return {"rope": rope}
    return {
        "rope": rope,
        "local_rope": None if local_rope == rope else local_rope,
        "window": hf["sliding_window"],
        "local_layers": local,
    }


def _rope_from_hf(given: Mapping[str, Any], hf: Mapping[str, Any]) -> Rope:
    """One entry of rope_parameters; yarn's attention factor worked out as transformers does."""
    kind = given["rope_type"]
    if kind not in KINDS:
        raise _unsupported("rope_type", kind, KINDS)
    if given.get("partial_rotary_factor") not in (None, 1.0):
        raise _unsupported("partial_rotary_factor", given["partial_rotary_factor"], (None, 1.0))
    if unknown := sorted(key for key in set(given) - _ROPE_KEYS if given[key] is not None):
        raise _unsupported(f"rope_parameters.{unknown[0]}", given[unknown[0]], tuple(sorted(_ROPE_KEYS)))
    found = {ours: given[theirs] for ours, theirs in _ROPE[kind].items() if given.get(theirs) is not None}
    if kind == "yarn":
        found.setdefault("factor", hf["max_position_embeddings"] / found["original_positions"])
        found.setdefault("attention_factor", _yarn_attention_factor(found["factor"], given))
    return Rope(theta=float(given["rope_theta"]), kind=kind, **found)


def _yarn_attention_factor(factor: float, given: Mapping[str, Any]) -> float:
    """What sines and cosines are multiplied with (Peng et al. 2023, §3.4; with DeepSeek's two mscale)."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(given["mscale"]) / scale(given["mscale_all_dim"])
    return scale(1.0)


def _rope_to_hf(rope: Rope) -> dict[str, Any]:
    same = {theirs: getattr(rope, ours) for ours, theirs in _ROPE[rope.kind].items()}
    return {"rope_type": rope.kind, "rope_theta": rope.theta, **same}
