"""From a config to a finished data set: texts and voices, the plan, its chunks, index and report."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import storage
from mser_jax.config import ConfigError
from mser_jax.corpora import builder
from mser_jax.corpora.build_lock import build_lock
from mser_jax.m5ser import chunks, finish, pipeline, plan, text_filters, text_readers
from mser_jax.m5ser.engine import Engine
from mser_jax.m5ser.engines import fingerprint

CONFIG_FILE = "config.json"
# Sections of the config that may change from run to run in a folder: what is there stays right.
_MAY_CHANGE = ("limit", "card")


def run(config: ConfigDict, workdir: str, beam_args: Sequence[str] = ()) -> dict[str, Any]:
    """Generates what the config says into `workdir` (local or gs://), or goes on with it; returns the report.

    Args:
      beam_args: Beam's own pipeline options, such as --runner=DataflowRunner. Without a runner it runs here, in as
        many processes as this one may use cores.

    Raises:
      ConfigError: the config cannot be run, or `workdir` holds something else.
    """
    if not workdir:
        raise ConfigError("--workdir=DIR is missing: where the data set is written, a folder or gs://…")
    pipeline.check_args(beam_args)
    folder = storage.absolute(workdir)
    config_lib.check_output("workdir", workdir)
    with build_lock(folder):
        return _run(config, folder, beam_args)


def _run(config: ConfigDict, folder: epath.Path, beam_args: Sequence[str]) -> dict[str, Any]:
    _check_same(config, folder)
    settings = worker_settings(config)
    tools = pipeline.tools(settings)
    whole = make_plan(config, tools.engines)
    before = plan.load(folder) if (folder / plan.PLAN_FILE).exists() else None
    if before is not None and before.fingerprint != whole.fingerprint:
        raise ConfigError(
            f"{folder} was begun with other texts, sentence filters or engines than there are now (plan "
            f"{before.fingerprint}, now {whole.fingerprint}): bring those back, or generate into another folder"
        )
    _remove_leftovers(folder)
    (folder / chunks.ROWS).mkdir(parents=True, exist_ok=True)
    storage.replace(folder / CONFIG_FILE, config_lib.to_json(config))
    whole = dataclasses.replace(whole, seconds={} if before is None else before.seconds)
    cut = apply_limit(whole, config.limit, folder, tools)
    is_same = before is not None and len(before) == len(cut) and (folder / builder.INDEX_FILE).exists()
    if not is_same:
        (folder / builder.INDEX_FILE).unlink(missing_ok=True)  # by it the folder is known to be finished
    cut.save(folder)
    logging.info(
        "plan %s: %d utterances in %d chunks; %d texts; voices: %s", cut.fingerprint, len(cut), cut.num_chunks,
        sum(map(len, cut.texts.values())), ", ".join(f"{name} {len(voices)}" for name, voices in cut.voices.items()),
    )  # fmt: skip
    missing = pipeline.missing(folder, cut, tools, retry=True)
    if missing or not is_same:
        (folder / builder.INDEX_FILE).unlink(missing_ok=True)
        pipeline.speak(folder, cut, settings, missing, beam_args)
        if left := pipeline.missing(folder, cut, tools, retry=False):
            raise RuntimeError(f"{folder}: the pipeline ended without chunks {left[:5]}; run the same command again")
        finish.finish(folder, cut)
        _write_card(config, folder)
    return json.loads((folder / builder.REPORT_FILE).read_text())


def _write_card(config: ConfigDict, folder: epath.Path) -> None:
    """The data are there: what is wrong with the card is said, and costs nothing."""
    if not config.card.enabled:
        return
    from mser_jax.m5ser import card  # with matplotlib and scikit-learn

    try:
        logging.info("card: %s", card.write(os.fspath(folder), config.card.real))
    except Exception:
        logging.exception("the data set is finished, its card is not: python -m mser_jax.m5ser.card %s", folder)


def _check_same(config: ConfigDict, folder: epath.Path) -> None:
    """Refuses to mix two configs in one folder."""
    if not (folder / CONFIG_FILE).exists():
        return
    before = config_lib.from_dict(json.loads((folder / CONFIG_FILE).read_text()))
    changed = config_lib.changes(before, config_lib.from_dict(json.loads(config_lib.to_json(config))))
    changed = [change for change in changed if not change.startswith(_MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"{folder} was begun with another config ({'; '.join(changed)}): take the same one, or another folder. "
            f"Only {' and '.join(f'config.{name}' for name in _MAY_CHANGE)} may change"
        )


def _remove_leftovers(folder: epath.Path) -> None:
    """Half-written files of workers that were killed."""
    if not storage.is_remote(folder):
        for path in [*folder.glob(".*.part"), *(folder / chunks.ROWS).glob(".*")]:
            path.unlink(missing_ok=True)


def make_plan(config: ConfigDict, engines: Mapping[str, Engine]) -> plan.Plan:
    """The plan of a config, uncut.

    Raises:
      ConfigError: texts, voices, languages or emotions that there are not.
    """
    languages = _names(config.languages)
    with config_lib.blame("texts"):
        read = [text for spec in _names(config.texts.sources) for text in text_readers.read(spec, languages)]
        section = config.texts
        texts, left_out = text_filters.select(
            read, min_length=section.min_length, max_length=section.max_length,
            near_duplicates=section.near_duplicates, check_language=section.check_language,
        )  # fmt: skip
    for language in languages:
        reasons = sorted(left_out.get(language, {}).items(), key=lambda pair: -pair[1])
        kept = sum(text.language == language for text in texts)
        logging.info("texts, %s: %d; left out: %s", language, kept, ", ".join(f"{k} {v}" for k, v in reasons) or "none")
    with config_lib.blame("engines"):
        voices = find_voices(config, engines, languages)
    try:
        made = plan.make(
            texts, voices, emotions=_names(config.emotions), intensities=config.intensities, seed=config.seed,
            chunk_utterances=config.chunk_utterances,
        )  # fmt: skip
    except plan.PlanError as error:
        raise ConfigError(str(error)) from error
    return dataclasses.replace(made, texts_left_out=left_out)


def find_voices(
    config: ConfigDict, engines: Mapping[str, Engine], languages: Sequence[str]
) -> dict[str, list[plan.Voice]]:
    """Voices by language: of every engine those that its section names (all, where it names none).

    Raises:
      ValueError: an engine has a voice in none of the languages.
    """
    found: dict[str, list[plan.Voice]] = {language: [] for language in languages}
    for name, engine in engines.items():
        section, prints = config.engines[name], fingerprint(engine)
        there = {language: engine.voices(language) for language in languages if language in engine.languages()}
        known = sorted({voice for voices in there.values() for voice in voices})
        held_out = _names(section.validation_voices)
        named = [*_names(section.voices), *held_out]
        for voice in named:
            if voice not in known:
                near = difflib.get_close_matches(voice, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{name}: no voice {voice!r} in {', '.join(languages)}.{hint} There are {', '.join(known)}"
                )
        for language, voices in there.items():
            chosen = [voice for voice in (named if _names(section.voices) else [*voices]) if voice in voices]
            found[language] += [
                plan.Voice(name, prints, voice, "validation" if voice in held_out else "train") for voice in chosen
            ]
    return found


def apply_limit(whole: plan.Plan, limit: str, folder: epath.Path, tools: pipeline.Tools) -> plan.Plan:
    """The plan cut to '600 utterances' or '20 hours' (of audio that passes).

    Raises:
      ConfigError: the limit is neither; or see measure_seconds.
    """
    number, unit = config_lib.parse_limit(limit)
    if unit == "utterance":
        return whole.with_utterances(int(number))
    seconds = measure_seconds(whole, folder, tools) if not whole.seconds else whole.seconds
    return dataclasses.replace(whole, seconds=seconds).with_hours(number)


def measure_seconds(whole: plan.Plan, folder: epath.Path, tools: pipeline.Tools) -> dict[str, tuple[float, float]]:
    """`Plan.seconds`, from one chunk, which is made for that here and is a part of the data set.

    It is the first one after the parallel texts, which begin a plan and are not like the others.

    Raises:
      ConfigError: nothing of that chunk passes.
    """
    own = whole.texts[whole.languages[0]]
    parallel = sum(bool(text.parallel_id) for text in own) % len(own)
    sample = -(-parallel * whole.round_utterances // whole.chunk_utterances)
    long = whole.with_utterances((sample + 1) * whole.chunk_utterances + whole.round_utterances)
    if not tools.is_complete(folder, sample, long, retry=False):
        logging.info("speaking %d utterances, to know how many make an hour", len(long.chunk(sample)))
        tools.make(folder, sample, long)
    rows = chunks.read_rows(folder, sample).table.select(["language", "duration_s", "transcript", "reason"]).to_pylist()
    seconds = {}
    for language in whole.texts:
        mine = [row for row in rows if row["language"] == language]
        passed = [row["duration_s"] * (not row["reason"]) * len(whole.emotions) for row in mine]
        if not any(passed):
            raise ConfigError(
                f"of {len(mine)} utterances in {language!r} none passed; reasons are in "
                f"{chunks.rows_path(folder, sample)}. Change config.filters or voices, or raise config.chunk_utterances"
            )
        lengths = np.array([[1.0, len(row["transcript"])] for row in mine])
        seconds[language] = tuple(np.linalg.lstsq(lengths, np.array(passed))[0].tolist())
    return seconds


def worker_settings(config: ConfigDict) -> str:
    """What workers need beside the plan, as stable JSON."""
    values = config.to_dict()
    engines = {name: section["options"] for name, section in values["engines"].items() if section["enabled"]}
    if not engines:
        raise ConfigError("config.engines: none is enabled; write e.g. --config.engines.espeak.enabled=True")
    return json.dumps(
        {"engines": engines, "filters": values["filters"], "keep_balanced": values["keep_balanced"]}, sort_keys=True
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
