"""`python -m mser_jax.m5ser --config=configs/m5ser.py[:variant] --workdir=DIR [--config.key=value] [Beam's options]`.

Generates a data set of emotional speech, or goes on where it stopped; `m5ser:DIR` is then a corpus to train on.
"""

from __future__ import annotations

import errno
import logging as std_logging
import re
from collections.abc import Sequence

from absl import app, flags, logging

from mser_jax import config as config_lib
from mser_jax import storage
from mser_jax.m5ser import finish, generate
from mser_jax.m5ser.engine import UnsupportedSpeechError
from mser_jax.m5ser.engines import EngineUnavailableError

# What no flag of ours is called: Beam's own, in `main`.
_beam_args: list[str] = []


def define_flags() -> None:
    """Our flags: when run, not when imported: training has flags of these names too."""
    config_lib.define_flag()
    flags.DEFINE_string("workdir", "", "Where the data set is written: a folder or gs://…", allow_override=True)


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(ours, Beam's): flags that absl knows and --config.…, and all others. `--name value` stays together."""
    ours, others = [argv[0]], []
    target = ours
    for argument in argv[1:]:
        if argument.startswith("--"):
            name = argument.lstrip("-").partition("=")[0]
            is_ours = name.startswith("config.") or name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS
            target = ours if is_ours else others
        target.append(argument)
    return ours, others


def parse_flags(argv: Sequence[str]) -> list[str]:
    """`flags_parser` for absl: like config.parse_flags, but keeps Beam's options for `main`."""
    ours, others = split_flags(argv)
    _beam_args[:] = others
    return config_lib.parse_flags(ours, program=config_lib.PROGRAMS["generate"], usage=__doc__)


def main(argv: Sequence[str]) -> None:
    """Generates; errors that a person can mend end in one line, not in a trace."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments {list(argv[1:])}; write --config.section.key=value")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= std_logging.WARNING or "mser_jax" in record.pathname
    )
    try:
        report = generate.run(flags.FLAGS.config, flags.FLAGS.workdir, _beam_args)
        print(finish.summary(report))
        print(f"train on it: --config.data.corpora=m5ser:{flags.FLAGS.workdir}")
    except config_lib.ConfigError as error:
        raise SystemExit(f"error: {error}") from error
    except Exception as error:
        if told := storage.explain(error) or advice(error):
            raise SystemExit(f"error: {told}") from error
        raise


def advice(error: Exception) -> str:
    """One line for what an engine, filter or storage refuses (Beam tells it as text), and for a full disk; else ""."""
    if isinstance(error, UnsupportedSpeechError | EngineUnavailableError | FloatingPointError | storage.StorageError):
        return str(error)
    for line in reversed(str(error).splitlines()):
        if match := re.search(r"\b(UnsupportedSpeech|EngineUnavailable|NotFinite|Storage)Error: (.+)", line):
            return match[2]
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
    return f"{error}. Free some room: the same command then goes on with the chunks that are missing" if full else ""


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
