"""The range of every number of every config: a value outside fails late, or trains on nonsense without a word.

A new key needs a line here (tests/test_ranges.py walks over all configs). What depends on the model or on the data is
checked where these are known.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers; `but` is one more number with a meaning of its own."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    but: int | None = None

    def __contains__(self, number: float) -> bool:
        """Tell if a number lies within; NaN never does."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return (above and below) or number == self.but

    def __str__(self) -> str:
        low = f"{'>' if self.open_low else '≥'} {self.low:g}"
        high = "" if math.isinf(self.high) else f" and {'<' if self.open_high else '≤'} {self.high:.10g}"
        return low + high + ("" if self.but is None else f", or {self.but}")


_MANY = 2**31 - 1
_COUNT, _WHOLE = Range(1, _MANY), Range(0, _MANY)
_SHARE, _RATE = Range(0, 1), Range(0, 1, open_high=True)
_POSITIVE, _WEIGHT = Range(0, 1e6, open_low=True), Range(0, 1e6)
_TOWER = r"(speech_encoder|text_encoder|llm)"

# (regex that matches the whole key, range of the number or of each number of the tuple): the first match wins.
RANGES: tuple[tuple[str, Range], ...] = (
    ("seed", Range(0, 2**32 - 1)),
    (r"step|filters\.emotion\.step", Range(0, _MANY, but=-1)),
    (r"mesh\.(data|fsdp|tensor)", Range(1, _MANY, but=-1)),
    (r"mesh\.replicated_limit", _SHARE),
    (r"optim\.learning_rate", Range(0, 100, open_low=True)),
    (r"optim\.b[12]", _RATE),
    # Below it float32 loses eps beside the root of the second moment, and 0 / 0 is no update.
    (r"optim\.eps", Range(1e-16, 1)),
    (r"optim\.weight_decay", Range(0, 10)),
    (r"optim\.clip_norm", _WEIGHT),
    (r"optim\.groups", Range(0, 1e4)),
    (r"train\.(batch_size|accumulate|encoder_microbatches|max_skipped)", _COUNT),
    (r"checkpointing\.keep_latest", _COUNT),
    (r"telemetry\.log_every", _COUNT),
    (r"telemetry\.stall_seconds", Range(0, 1e7)),
    (r"distributed\.port", Range(1, 65_535)),
    (r"distributed\.\w+_timeout", Range(1, 10_000_000)),
    (r"lora\.rank", _COUNT),
    (r"lora\.alpha", _POSITIVE),
    (rf"({_TOWER}|model\..+)\.dropout", _RATE),
    (rf"{_TOWER}\.sizes\.(position_offset|relative_buckets|window)", _WHOLE),
    (rf"{_TOWER}\.sizes\.norm_eps", Range(0, 1, open_low=True)),
    (rf"{_TOWER}\.sizes\.(local_)?rope\.theta", Range(1, 1e12)),
    (rf"{_TOWER}\.sizes\..+", _COUNT),
    (r"model\.(mean_head\.width|spec_augment\.\w+)", _WHOLE),
    (r"model\.layer_mix_init", Range(-1e3, 1e3)),
    (r"model\.trailing_silence", Range(0, 600)),
    (r"model\.logit_scale_(init|max)", Range(1e-3, 1e6)),
    (r"model\.(qformer\.\w+|frame_pool|embed_dim)", _COUNT),
    (r"data\.length_classes", Range(0.1, 600)),
    (r"data\.temperature", Range(0, math.inf, open_low=True)),
    (r"data\.(num_workers|num_threads|prefetch)", Range(0, 4096)),
    (r"data\.max_unreadable", _SHARE),
    (r"data\.max_tokens|data\.sequences\.(short|long)", Range(1, 1_000_000)),
    (r"data\.augment\.speed", Range(0, 0.5)),
    (r"data\.augment\.gain_db", Range(0, 120)),
    (r"data\.augment\.noise_snr_db", Range(-120, 120)),
    (r"data\.(augment|captions)\.\w+_probability|data\.max_unreadable|evaluate\.max_unreadable", _SHARE),
    (r"data\.(captions|tasks)\.\w+", _WEIGHT),
    (r"loss\.supcon_temperature", Range(1e-3, 1e3)),
    (r"loss\.\w+", _WEIGHT),
    (r"evaluate\.(batch_size|bootstrap_samples|paraphrases)", Range(1, 10_000_000)),
    (r"evaluate\.dev_utterances", _WHOLE),
    ("chunk_utterances", Range(1, 10_000_000)),
    ("intensities", Range(0, 10)),
    (r"texts\.(min|max)_length", Range(1, 1_000_000)),
    (r"texts\.near_duplicates", _SHARE),
    (r"engines\.\w+\.options\.(sampling_rate|requests_per_minute)", _WEIGHT),
    (r"engines\.\w+\.options\.timeout_seconds", Range(0, 1e6, open_low=True)),
    (r"engines\.\w+\.options\.(threads|concurrency|attempts)", Range(1, 4096)),
    (r"filters\.duration\.\w+|filters\.silence\.max_edge_seconds", _WEIGHT),
    (r"filters\.silence\.below_db", Range(0, 200)),
    (r"filters\.silence\.floor_db|filters\.loudness\.(min|max)_lufs", Range(-200, 0)),
    (r"filters\.intelligibility\.batch_size", Range(1, 65_536)),
    (r"filters\.intelligibility\.max_cer", Range(0, 100)),
    (r"filters\.\w+\.(max_share|within|\w+_similarity|max_length_difference|min_probability)", _SHARE),
)
# Texts with a number in them, that config.parse_budget reads.
BUDGETS = ("train.budget", "checkpointing.every", "checkpointing.keep_every", "evaluate.every", "optim.warmup")

# The second is to be as large as the first.
_ORDERED = (
    ("model.logit_scale_init", "model.logit_scale_max"),
    ("texts.min_length", "texts.max_length"),
    ("filters.duration.min_seconds", "filters.duration.max_seconds"),
    ("filters.duration.min_letters_per_second", "filters.duration.max_letters_per_second"),
    ("filters.loudness.min_lufs", "filters.loudness.max_lufs"),
)


def range_of(key: str) -> Range | None:
    """Find the range of a dotted key, or None."""
    return next((found for pattern, found in RANGES if re.fullmatch(pattern, key)), None)


def problems(leaves: Mapping[str, Any]) -> list[str]:
    """Tell what is wrong with the numbers of {dotted key: value}: a line for each, which names key, value and range."""
    lines = []
    for key, value in leaves.items():
        expected = _tuple_problem(key, value) if isinstance(value, tuple) else _number_problem(key, value)
        if expected:
            shown = ascii(value) if len(ascii(value)) < 200 else f"{ascii(value)[:200]}…"
            lines.append(f"--config.{key}={shown}: expected {expected}")
    for low, high in _ORDERED:
        if low in leaves and high in leaves and leaves[low] > leaves[high]:
            lines.append(f"--config.{low}={leaves[low]!r}: expected at most {high}, which is {leaves[high]!r}")
    return lines


def _number_problem(key: str, value: Any) -> str:
    """What was expected in place of a number that is out of its range; '' for all else."""
    if not _is_number(value):
        return ""
    allowed = range_of(key)
    return "" if allowed is None or value in allowed else f"a number {allowed}"


def _tuple_problem(key: str, value: tuple) -> str:
    allowed = range_of(key)
    if key == "optim.groups":
        return _groups_problem(value, allowed)
    if allowed is None:
        return ""
    shape, fits = _SHAPES.get(key, ("numbers", lambda _: True))
    # Booleans are what some tuples of sizes hold.
    numbers = [item for item in value if not isinstance(item, bool)]
    right = all(_is_number(item) and item in allowed for item in numbers)
    return "" if right and fits(value) else f"{shape} {allowed}"


def _groups_problem(groups: tuple, allowed: Range | None) -> str:
    expected = f"(path regex, number {allowed}) pairs, such as (('^speech_encoder/', 0.0), ('.*', 1.0))"
    for pair in groups:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and _is_number(pair[1])):
            return expected
        if pair[1] not in allowed:
            return expected
        try:
            re.compile(pair[0])
        except re.error as error:
            return f"{expected}; {pair[0]!r} is not a regular expression ({error})"
    return "" if groups else expected


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _increasing(values: Iterable[float]) -> bool:
    values = list(values)
    return bool(values) and all(a < b for a, b in itertools.pairwise(values))


def _integers(values: tuple) -> bool:
    return all(isinstance(value, int) for value in values)


# Key: (what its tuple is, a test of it as a whole).
_SHAPES: dict[str, tuple[str, Callable[[tuple], bool]]] = {
    "data.length_classes": ("at least one number of seconds, increasing, each", _increasing),
    "data.augment.noise_snr_db": ("(low, high), each", lambda pair: len(pair) == 2 and pair[0] <= pair[1]),
    "intensities": ("at least one number, each", bool),
    **{
        f"data.sequences.{name}": (
            "(tokens of a row, tokens of its answer), the latter fewer, each",
            lambda pair: len(pair) == 2 and _integers(pair) and pair[1] < pair[0],
        )
        for name in ("short", "long")
    },
}
