"""Command line → checked config: nearest names for typos, budgets in any unit, a hash, JSON in and out."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from mser_jax import ranges

# What runs a config, by its `task`.
PROGRAMS = {"train": "mser_jax.main", "evaluate": "mser_jax.main", "generate": "mser_jax.m5ser"}


class ConfigError(ValueError):
    """The config cannot be run as it is; the message says what to change."""


def check_output(option: str, folder: os.PathLike | str) -> None:
    """Raises ConfigError where nothing can be written to the folder of --`option`; makes it where it is missing."""
    from mser_jax import storage

    try:
        storage.check(folder)
    except (PermissionError, ValueError) as error:
        raise ConfigError(f"--{option}={os.fspath(folder)}: {error}") from error


@contextlib.contextmanager
def blame(section: str) -> Iterator[None]:
    """What code below says is wrong with its arguments is wrong with this section of the config."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, re.error, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"--config.{section}: {error}") from error


def define_flag() -> flags.FlagHolder:
    """Define --config; after `parse_flags` its value is the checked ConfigDict, overrides applied."""
    return flags.DEFINE_string("config", None, "FILE.py[:variant]", allow_override=True)


def parse_flags(argv: Sequence[str], program: str = "mser_jax.main", usage: str = "") -> list[str]:
    """`flags_parser` for absl: parses `argv`, a wrong `--config…` becomes one readable line and exit code 2.

    The last of several values for one key counts, whatever the key's type and wherever --config stands.

    Args:
      program: the one of PROGRAMS that asks; configs that another runs are refused.
      usage: what --help prints; it then exits with 0, and nothing is loaded.
    """
    if {"--help", "-help", "-h", "--helpfull", "--helpshort", "-?"} & set(argv[1:]):
        print(f"usage: {usage}".rstrip())
        raise SystemExit(0)
    try:
        spec, overrides, others = split_overrides(flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False))
        config = _load_for(program, spec)
        for key, text in overrides.items():
            set_value(config, key, text)
        check(config)
        left = flags.FLAGS(others)
    except (ConfigError, flags.Error) as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        raise SystemExit(2) from None
    flags.FLAGS.config = config.lock()
    return left


_OVERRIDE = re.compile(r"--?(no)?config(?:\.([^=]*))?(?:=(.*))?", re.DOTALL)


def split_overrides(argv: Sequence[str]) -> tuple[str, dict[str, str | bool], list[str]]:
    """Take what is said of the config out of a command line.

    Returns:
        The last --config ('' for none), the last text of each --config.KEY (a bool where --config.KEY or --noconfig.KEY
        stand alone), in order, and all other arguments.

    Raises:
        ConfigError: --config without a value.
    """
    spec, overrides, others = "", {}, list(argv[:1])
    rest = list(argv[1:])
    while rest:
        argument = rest.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if argument == "--" or not match:
            others.append(argument)
            if argument == "--":
                others += rest
                break
            continue
        no, key, text = match.groups()
        if text is None and not no and rest and not re.match("--|-[a-z]", rest[0].replace("-inf", "")):
            text = rest.pop(0)
        if key is None:
            if no or not text:
                raise ConfigError(f"{argument}: expected --config=FILE.py[:variant]")
            spec = text
        else:
            overrides.pop(key, None)
            overrides[key] = (not no) if text is None else text
    return spec, overrides, others


def _load_for(program: str, spec: str) -> ConfigDict:
    if not spec:
        raise ConfigError("--config=FILE is missing, e.g. --config=configs/stage1.py")
    config = load(spec)
    runner = PROGRAMS.get(config.get("task"), program)
    if runner != program:
        raise ConfigError(f"--config={spec} is run by `python -m {runner}`, not by {program}")
    return config


def set_value(config: ConfigDict, key: str, text: str | bool) -> None:
    """Set dotted `key` to what `text` says in the type of the value, or of the placeholder, that is there.

    Raises:
        ConfigError: there is no such key, it is a section, or the text is of another type.
    """
    check_key(config, key)
    *sections, last = key.split(".")
    for section in sections:
        config = config[section]
    old = config[last]
    if isinstance(old, ConfigDict):
        raise ConfigError(
            f"--config.{key}={_shown(text)}: a section; expected one of its keys: {', '.join(sorted(old))}"
        )
    kind = config.get_type(last)
    if isinstance(text, bool) and kind is not bool:
        raise ConfigError(f"--{'' if text else 'no'}config.{key}: a value is missing; expected --config.{key}=VALUE")
    name, read = _READERS.get(kind, (f"a {kind.__name__}", kind))
    try:
        config[last] = text if isinstance(text, bool) else read(text)
    except (ValueError, TypeError, SyntaxError, KeyError, MemoryError, RecursionError, OverflowError):
        raise ConfigError(f"--config.{key}={_shown(text)}: expected {name}, such as {old!r}") from None


def _shown(text: str | bool) -> str:
    """A text as it was given, on one line that is not endless."""
    text = str(text) if str(text).isprintable() else ascii(text)[1:-1]
    return text if len(text) < 200 else f"{text[:200]}…"


def _tuple(text: str) -> tuple:
    """'(1.0, 2.0)' or '[1.0, 2.0]'; a single number or text is a tuple of one."""

    def tuples(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(tuples, value))
        if not isinstance(value, str | int | float):
            raise ValueError(value)
        return value

    value = tuples(ast.literal_eval(text.strip()))
    return value if isinstance(value, tuple) else (value,)


_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    bool: ("True or False", lambda text: _BOOLS[text.strip().lower()]),
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("a text", str),
    tuple: ("a tuple", _tuple),
}


def load(spec: str, function: str = "get_config") -> Any:
    """The config of `FILE.py` or `FILE.py:arg`, by its `get_config`; or what another of its functions returns.

    Raises:
        ConfigError: there is no such file, or it refuses the argument.
    """
    name, _, arg = spec.partition(".py:")
    path = pathlib.Path(name if name.endswith(".py") else f"{name}.py")
    with contextlib.suppress(RuntimeError):  # "~x" where nobody is called x
        path = path.expanduser()
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
    try:
        module_spec.loader.exec_module(module)
        return getattr(module, function)(arg or None)
    except ValueError as error:
        raise ConfigError(f"--config={spec}: {error}") from None
    except Exception as error:
        # A config is code: say where in it.
        line = getattr(error, "lineno", None) or traceback.extract_tb(error.__traceback__)[-1].lineno
        raise ConfigError(f"--config={spec}: {type(error).__name__}: {error} ({path}, line {line})") from error


def check_key(config: ConfigDict, dotted: str) -> None:
    """Raises ConfigError with the nearest valid name when `dotted` is no key of `config`."""
    node: Any = config
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, ConfigDict) or part not in node:
            near = difflib.get_close_matches(part, list(node) if isinstance(node, ConfigDict) else [], n=1)
            whole = [key for key, _ in leaves(config)]
            near = [".".join([*parts[:depth], *near, *parts[depth + 1 :]])] if near else []
            near = near or difflib.get_close_matches(dotted, whole, n=1)
            hint = f" Did you mean --config.{near[0]}?" if near else ""
            raise ConfigError(f"--config.{_shown(dotted)}: the config has no {_shown(part)!r} there.{hint}")
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


# Keys that hold a path, a model's path or hub id, corpora.
_PATHS = r"init_from|checkpoint|filters\.emotion\.checkpoint|data\.(data_dir|feature_cache|labels)"
_MODELS = r"(speech_encoder|text_encoder|llm)\.(init|tokenizer)|filters\.intelligibility\.model"
_CORPORA = r"(data|evaluate)\.corpora"
_NO_PATHS = ("", "auto", "byt5")


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
    """Copy a config so that it means the same from any working directory; gs://…, hub ids and names stay."""
    from mser_jax import storage  # half a second, which a wrong command line need not wait for

    out = config.copy_and_resolve_references()
    for key, value in leaves(config):
        if not isinstance(value, str) or value in _NO_PATHS:
            continue
        is_path = re.fullmatch(_PATHS, key) or (
            re.fullmatch(_MODELS, key) and (value.startswith((".", "~", "/")) or pathlib.Path(value).is_dir())
        )
        if is_path:
            _set(out, key, os.fspath(storage.absolute(value)))
        elif re.fullmatch(_CORPORA, key):
            # A folder's name may have an @ in it; a weight is a number behind the last.
            _set(out, key, re.sub(
                r"((?:^|,)\s*(?:speech_folder|m5ser):)([^,]+?)((?:@[0-9.e+-]+)?\s*(?=,|$))",
                lambda found: f"{found[1]}{storage.absolute(found[2])}{found[3]}", value,
            ))  # fmt: skip
    return out


def _set(config: ConfigDict, key: str, value: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        config = config[section]
    config[last] = value


def config_hash(config: ConfigDict) -> str:
    """Twelve hex digits that change with any value of the config, but not with how a path is written."""
    return hashlib.sha256(to_json(with_absolute_paths(config)).encode()).hexdigest()[:12]


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


def check(config: ConfigDict) -> None:
    """Hold every number of a config against its range, and every budget against what a budget is.

    Raises:
        ConfigError: a line for each value that is wrong, with its key and what is expected.
    """
    flat = dict(leaves(config))
    lines = ranges.problems(flat)
    for key in ranges.BUDGETS:
        try:
            if flat.get(key):
                parse_budget(flat[key])
        except ConfigError as error:
            lines.append(f"--config.{key}: {error}")
    if config.get("task") == "generate":
        try:
            parse_limit(config.limit)
        except ConfigError as error:
            lines.append(str(error))
    if lines:
        raise ConfigError("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class DataSize:
    """What one pass over the training data holds; turns budgets into steps."""

    examples: int
    hours: float


_AMOUNT = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(e\+?[0-9]+)?\s*([a-z]+?)s?\s*")


def _amount(text: str, units: Sequence[str]) -> tuple[float, str] | None:
    """The number and the unit's singular of '20 hours'; None for any other text."""
    match = _AMOUNT.fullmatch(text)
    number = float(match[1] + (match[2] or "")) if match else math.inf
    return (number, match[3]) if match and match[3] in units and not math.isinf(number) else None


def parse_budget(budget: str) -> tuple[float, str]:
    """Read '300 steps', '1e6 examples', '20 epochs' or '100 hours': the number and its unit's singular.

    Raises:
        ConfigError: the text is no budget.
    """
    if found := _amount(budget, ("step", "example", "epoch", "hour")):
        return found
    raise ConfigError(f"{budget!r} is no budget: expected e.g. '300 steps', '1e6 examples', '20 epochs', '100 hours'")


def parse_limit(limit: str) -> tuple[float, str]:
    """Read `limit` of a config of mser_jax.m5ser, '600 utterances' or '20 hours', likewise.

    Raises:
        ConfigError: the text is neither, or 0 of them.
    """
    found = _amount(limit, ("utterance", "hour"))
    if not found or not 0 < found[0] < 1e12:
        raise ConfigError(f"--config.limit={_shown(limit)!r}: expected e.g. '600 utterances' or '20 hours'")
    return found


def steps(budget: str, batch_size: int, size: DataSize) -> int:
    """Steps in a budget such as '300 steps', '1e6 examples', '20 epochs' or '100 hours' (of audio); '' is 0.

    Rounds up to whole steps, so a budget that is not zero is at least one step.

    Raises:
        ConfigError: the text is no budget, or more steps than a counter of 32 bits counts.
    """
    if not budget:
        return 0
    number, unit = parse_budget(budget)
    if unit != "step":
        per_unit = {"example": 1.0, "epoch": size.examples, "hour": size.examples / max(size.hours, 1e-9)}[unit]
        number *= per_unit / batch_size
    if not number < 2**31:
        raise ConfigError(f"{budget!r} is a budget of {number:.0f} steps: expected fewer than {2**31}")
    return math.ceil(number)
