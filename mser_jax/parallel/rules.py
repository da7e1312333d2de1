"""Which dimension of which parameter goes over which mesh axis: an ordered table of path regexes a model family.

A row is (regex found in the path, axes of the trailing dimensions). Layer stacks add dimensions in front, which stay
whole: a scan takes one layer at a time. Optimiser moments have their parameter's path at the end of theirs, so one row
serves both.

`fsdp` is put on the input features of a kernel: slices of the first dimension lie together in memory, so gathering
them moves no element within a device, and 16 or more rows of each stay whole TPU tiles. `tensor` is put on heads
and on the hidden units of MLPs: the output features of what leads there, the input features of what leads back
(Shoeybi et al. 2019).
"""

from __future__ import annotations

Axes = str | tuple[str, ...] | None
Rule = tuple[str, tuple[Axes, ...] | None]

# Whole on every device: an all-gather costs more than the bytes it saves.
WHOLE: tuple[Axes, ...] = ()
# The largest dimension that fsdp divides.
LARGEST = None

# Kernels [in, out] towards and from heads or hidden units, and the bias of the former.
_TOWARDS = ("fsdp", "tensor")
_FROM = (("tensor", "fsdp"), None)
_BIAS = ("tensor",)


def _family(prefix: str, *rules: Rule) -> tuple[Rule, ...]:
    return tuple((rf"(^|/){prefix}/{pattern}", axes) for pattern, axes in rules)


def _adapters(towards: str, back: str) -> tuple[Rule, ...]:
    """LoRA's a [in, rank] and b [rank, out] beside such kernels."""
    return (
        (rf"layers/{towards}/lora/a$", ("fsdp", None)),
        (rf"layers/{towards}/lora/b$", (None, ("tensor", "fsdp"))),
        (rf"layers/{back}/lora/a$", (("tensor", "fsdp"), None)),
        (rf"layers/{back}/lora/b$", (None, "fsdp")),
    )


# The blocks of models/attention.py: Whisper, wav2vec2, text towers and Q-Former.
_ATTENTION = r"(attention|cross_attention)/"
_BLOCKS: tuple[Rule, ...] = (
    (rf"layers/{_ATTENTION}(query|key|value)/kernel$", _TOWARDS),
    (rf"layers/{_ATTENTION}(query|key|value)/bias$", _BIAS),
    (rf"layers/{_ATTENTION}out/kernel$", _FROM),
    (r"layers/mlp_in/kernel$", _TOWARDS),
    (r"layers/mlp_in/bias$", _BIAS),
    (r"layers/mlp_out/kernel$", _FROM),
    (rf"layers/({_ATTENTION}out|mlp_out)/bias$", WHOLE),
    (r"layers/\w+_norm/(scale|bias)$", WHOLE),
    *_adapters(rf"({_ATTENTION}(query|key|value)|mlp_in)", rf"({_ATTENTION}out|mlp_out)"),
)

LLM = _family(
    "llm",
    (r"layers/attention/(query|key|value)/kernel$", _TOWARDS),
    (r"layers/attention/(query|key|value)/bias$", _BIAS),
    (r"layers/attention/out/kernel$", _FROM),
    (r"layers/attention/out/bias$", WHOLE),
    (r"layers/mlp/(gate|up)/kernel$", _TOWARDS),
    (r"layers/mlp/down/kernel$", _FROM),
    (r"layers/(\w+_norm|attention/\w+_norm)/scale$", WHOLE),
    *_adapters(r"(attention/(query|key|value)|mlp/(gate|up))", r"(attention/out|mlp/down)"),
    (r"tokens/table$", (None, "fsdp")),
    (r"head/kernel$", (("fsdp", "tensor"), None)),
    (r"final_norm/scale$", WHOLE),
)

WHISPER = _family(
    "speech_encoder",
    *_BLOCKS,
    (r"conv[12]/kernel$", (None, None, "fsdp")),
    (r"conv[12]/bias$", WHOLE),
    (r"positions$", (None, "fsdp")),
    (r"final_norm/(scale|bias)$", WHOLE),
)

WAV2VEC2 = _family(
    "speech_encoder",
    (r"feature_extractor/layers/\d+/conv/kernel$", (None, None, "fsdp")),
    (r"feature_extractor/layers/\d+/(conv|layer_norm|time_norm)/(scale|bias)$", WHOLE),
    (r"projection/kernel$", ("fsdp", None)),
    (r"projection/lora/(a|b)$", LARGEST),
    (r"(projection|projection_norm|encoder_norm)/(scale|bias)$", WHOLE),
    (r"positions/direction$", (None, None, "fsdp")),
    (r"positions/(gain|bias)$", WHOLE),
    (r"layers/attention/gate/(constant|projection/(kernel|bias))$", WHOLE),
    (r"relative/embedding/table$", WHOLE),
)

TEXT = _family(
    "text_encoder",
    *_BLOCKS,
    (r"(tokens|positions|token_types)/table$", (None, "fsdp")),
    (r"embedding_norm/(scale|bias)$", WHOLE),
)

QFORMER = _family(
    "qformer",
    *_BLOCKS,
    (r"queries$", WHOLE),
    (r"(memory_norm|final_norm)/(scale|bias)$", WHOLE),
)

# Linear layers and norms that belong to no tower, and scalars.
HEADS: tuple[Rule, ...] = (
    (r"^(?!.*(^|/)(llm|speech_encoder|text_encoder|qformer)/).*/kernel$", LARGEST),
    (r"^(?!.*(^|/)(llm|speech_encoder|text_encoder|qformer)/).*/(scale|bias)$", WHOLE),
    (r"(^|/)(layer_mix|log_logit_scale)$", WHOLE),
)

# Of the train state: its counters and its key.
STATE: tuple[Rule, ...] = ((r"(^|/)(step|rng|count)$", WHOLE),)

RULES: tuple[Rule, ...] = (*LLM, *WAV2VEC2, *WHISPER, *TEXT, *QFORMER, *HEADS, *STATE)
