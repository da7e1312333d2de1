"""Command line → checked config: nearest names for typos, budgets in any unit, a hash, JSON in and out."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import math
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

# What runs a config, by its `task`.
PROGRAMS = {"train": "mser_jax.main", "evaluate": "mser_jax.main", "generate": "mser_jax.m5ser"}


class ConfigError(ValueError):
    """The config cannot be run as it is; the message says what to change."""


@contextlib.contextmanager
def blame(section: str) -> Iterator[None]:
    """What code below says is wrong with its arguments is wrong with this section of the config."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"--config.{section}: {error}") from error


def parse_flags(argv: Sequence[str], program: str = "mser_jax.main") -> list[str]:
    """`flags_parser` for absl: parses `argv`, a wrong `--config…` becomes one readable line and exit code 2.

    Args:
      program: the one of PROGRAMS that asks; configs that another runs are refused.
    """
    try:
        _check_overrides(argv, program)
        return flags.FLAGS(list(argv))
    except (ConfigError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _check_overrides(argv: Sequence[str], program: str) -> None:
    """Refuses a config that is missing or another program's, and overrides of keys that the config does not have."""
    pairs = [arg.lstrip("-").partition("=") for arg in argv[1:] if arg.startswith("-")]
    files = [value for key, _, value in pairs if key == "config" and value]
    if not files:
        raise ConfigError("--config=FILE is missing, e.g. --config=configs/stage1.py")
    config = load(files[-1])
    runner = PROGRAMS.get(config.get("task"), program)
    if runner != program:
        raise ConfigError(f"--config={files[-1]} is run by `python -m {runner}`, not by {program}")
    for key, _, _ in pairs:
        if key.startswith("config."):
            check_key(config, key.removeprefix("config."))


def load(spec: str, function: str = "get_config") -> Any:
    """The config of `FILE.py` or `FILE.py:arg`, by its `get_config`; or what another of its functions returns.

    Raises:
        ConfigError: there is no such file, or it refuses the argument.
    """
    name, _, arg = spec.partition(".py:")
    path = pathlib.Path(name if name.endswith(".py") else f"{name}.py")
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.py")], n=1)
        raise ConfigError(f"--config={spec}: no file {path}" + (f". Did you mean {near[0]}?" if near else ""))
    # Config files share `configs/common.py`: let them import it from any working directory.
    folders = path.resolve().parents
    root = str(next((folder.parent for folder in folders if folder.name == "configs"), folders[1]))
    if root not in sys.path:
        sys.path.insert(0, root)
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    try:
        return getattr(module, function)(arg or None)
    except ValueError as error:
        raise ConfigError(f"--config={spec}: {error}") from None


def check_key(config: ConfigDict, dotted: str) -> None:
    """Raises ConfigError with the nearest valid name when `dotted` is no key of `config`."""
    node: Any = config
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        part = re.sub(r"\[\d+\]$", "", part)
        if not isinstance(node, ConfigDict) or part not in node:
            near = difflib.get_close_matches(part, list(node) if isinstance(node, ConfigDict) else [], n=1)
            whole = [key for key, _ in leaves(config)]
            near = [".".join([*parts[:depth], *near, *parts[depth + 1 :]])] if near else []
            near = near or difflib.get_close_matches(dotted, whole, n=1)
            hint = f" Did you mean --config.{near[0]}?" if near else ""
            raise ConfigError(f"--config.{dotted}: the config has no {part!r} there.{hint}")
        node = node[part]


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('section.key', value) for every leaf, sorted."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> str:
    """One stable JSON text (sorted keys); `from_dict(json.loads(…))` is its inverse."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """A config from parsed JSON: lists come back as tuples, as configs write them."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(item) for key, item in value.items()}
        return tuple(tuples(item) for item in value) if isinstance(value, list) else value

    return ConfigDict(tuples(values))


def config_hash(config: ConfigDict) -> str:
    """Twelve hex digits that change with any value of the config."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def changes(before: ConfigDict, after: ConfigDict) -> list[str]:
    """'section.key: old → new' for every leaf that differs; a leaf that one side lacks counts as None."""
    old, new = dict(leaves(before)), dict(leaves(after))
    keys = sorted(old.keys() | new.keys())
    return [f"{key}: {old.get(key)!r} → {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def choice(config: ConfigDict, key: str, allowed: Sequence[Any]) -> None:
    """Raises ConfigError unless the value at dotted `key` is one of `allowed`; names the nearest."""
    value = config
    for part in key.split("."):
        value = value[part]
    if value not in allowed:
        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--config.{key}={value!r}: expected one of {', '.join(map(repr, allowed))}.{hint}")


def at_least(config: ConfigDict, key: str, low: float) -> None:
    """Raises ConfigError when the number at dotted `key` is NaN or below `low`."""
    value = config
    for part in key.split("."):
        value = value[part]
    if not value >= low:
        raise ConfigError(f"--config.{key}={value!r}: expected a number ≥ {low}")


@dataclasses.dataclass(frozen=True)
class DataSize:
    """What one pass over the training data holds; turns budgets into steps."""

    examples: int
    hours: float


_BUDGET = re.compile(r"^\s*([0-9.]+(?:e[0-9]+)?)\s*(steps?|examples?|epochs?|hours?)\s*$")


def steps(budget: str, batch_size: int, size: DataSize) -> int:
    """Steps in a budget such as '300 steps', '1e6 examples', '20 epochs' or '100 hours' (of audio); '' is 0.

    Rounds up to whole steps, so a budget that is not zero is at least one step.

    Raises:
        ConfigError: the text is no budget.
    """
    if not budget:
        return 0
    match = _BUDGET.match(budget)
    if not match:
        raise ConfigError(
            f"{budget!r} is no budget: expected e.g. '300 steps', '1e6 examples', '20 epochs', '100 hours'"
        )
    number, unit = float(match[1]), match[2].rstrip("s")
    if unit == "step":
        return math.ceil(number)
    per_unit = {"example": 1.0, "epoch": size.examples, "hour": size.examples / max(size.hours, 1e-9)}[unit]
    return math.ceil(number * per_unit / batch_size)
