"""What scoring has in common in both stages: labels, a pass over a table, calibration, and results.json."""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath, epy
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from tqdm import tqdm

from mser_jax import config as config_lib
from mser_jax.corpora import emotions
from mser_jax.data import device, held_back, sources, unreadable
from mser_jax.evaluation import calibration, finite, metrics, predictions, report, rows
from mser_jax.evaluation import incongruence as incongruence_lib
from mser_jax.stages import exposure, frozen_features, towers
from mser_jax.stages.base import Params
from mser_jax.stages.speech_data import SpeechData, names

# matplotlib is imported when it is used: half of a program's start is its libraries.
with epy.lazy_imports():
    from mser_jax.evaluation import plots


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels without blanks around them.

    Raises:
        ConfigError: fewer than two, an empty one, or one twice.
    """
    found = tuple(label.strip() for label in labels)
    if len(found) < 2 or not all(found) or len(set(found)) != len(found):
        raise config_lib.ConfigError(f"labels {list(labels)}: expected at least two, none empty, each once")
    return found


@contextlib.contextmanager
def labels_blamed() -> Iterator[None]:
    """Make what code below says of labels (ValueError) a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise config_lib.ConfigError(f"labels: {error}") from error


def canonical_labels(labels: Sequence[str]) -> dict[str, str]:
    """{label: the canonical emotion that it is a spelling of ("Wut": angry), else the label itself}.

    A label that names another state ("furious"), or is a second spelling of one emotion, stays what it is.
    """
    spelled = {label: emotion for label in labels for emotion, merge in (emotions.canonical(label),) if merge is None}
    shared = collections.Counter(spelled.values())
    return {label: spelled[label] if spelled.get(label) and shared[spelled[label]] == 1 else label for label in labels}


class OnceFor:
    """`function(params)`, computed when parameters are new and remembered until others come."""

    def __init__(self, function: Callable[[Params], Any]) -> None:
        self._function = function
        self._params: Params | None = None
        self._value: Any = None

    def __call__(self, params: Params) -> Any:
        """The value for `params`, which are told apart by identity."""
        if params is not self._params:
            self._value, self._params = self._function(params), params
        return self._value


def over_table(
    function: Callable[[Params, dict[str, jax.Array]], jax.Array],
    params: Params,
    data: SpeechData,
    table: sources.MixtureTable,
    mesh: Mesh,
    what: str,
) -> tuple[np.ndarray, np.ndarray]:
    """`function(params, batch)` [B, …] of every utterance of `table` that could be decoded; `data` notes the others.

    Returns:
        Values [n, …] and their rows in `table` int [n]. `function` gives arrays that are whole on every device; `what`
        names it on the progress bar.

    Raises:
        TooManyUnreadableError: more than `data.max_unreadable` could not be decoded.
        NotFiniteError: NaN or infinity came out.
    """
    parts: list[np.ndarray] = []
    places: list[np.ndarray] = []
    failed: dict[int, str] = {}
    wanted = ("record", "valid", *frozen_features.INPUTS)
    whole = NamedSharding(mesh, P())
    with data.evaluation_batches(table, mesh) as batches:
        for host in tqdm(batches, total=len(batches), desc=what, unit="batch", disable=None, leave=False):
            batch = device.to_device({key: value for key, value in host.items() if key in wanted}, mesh)
            reason = device.to_device({"reason": host["reason"]}, mesh)["reason"]
            record, reason = (np.asarray(x) for x in jax.device_put((batch["record"], reason), whole))
            valid = (record >= 0) & (reason == 0)
            value, _ = data.compilations.call(what, lambda b: np.asarray(function(params, b)), batch, batch=batch)
            parts.append(value[valid])
            places.append(record[valid])
            failed |= {int(row): unreadable.CODES[code] for row, code in zip(record, reason, strict=True) if code}
    unreadable.check(failed, table["id"], data.max_unreadable, "the utterances that are scored")
    data.note_unreadable(table, failed)
    values, rows = np.concatenate(parts), np.concatenate(places)
    finite.check(values, f"utterances ({what})", table["id"][rows], params)
    return values, rows


def by_utterance(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a table that have values int [n], increasing, and for each value which of them is its utterance."""
    return np.unique(places, return_inverse=True)


class Evaluation:
    """Which utterances are scored, which only calibrate, and how the figures of a checkpoint are written."""

    def __init__(self, config: ConfigDict, data: SpeechData) -> None:
        """Opens what is scored. Raises ConfigError for what a run would else tell after hours.

        That is an unknown label space or adaptation, corpora or filters that leave nothing, no utterance with a label.
        """
        self._config, self._data = config, data
        self.adapt = names(config.evaluate.adapt)
        unknown = set(self.adapt) - set(rows.ADAPTATIONS)
        if unknown or not self.adapt:
            raise config_lib.ConfigError(
                f"--config.evaluate.adapt={config.evaluate.adapt!r}: expected some of {rows.ADAPTATIONS}"
            )
        with config_lib.blame("evaluate"):
            self.labels = emotions.label_space(config.evaluate.label_space)
        there = sorted(set(self.table["emotion"].tolist()) - {""})
        if not set(there) & set(self.labels):
            raise config_lib.ConfigError(
                f"--config.evaluate.label_space={config.evaluate.label_space}: no utterance that is scored has a label "
                f"of {', '.join(self.labels)}; there is {', '.join(there)}"
            )

    @property
    def together(self) -> bool:
        """Whether any adaptation looks for clusters."""
        return any(name.endswith(rows.TOGETHER) for name in self.adapt)

    @functools.cached_property
    def table(self) -> sources.MixtureTable:
        """What is scored."""
        return self._data.evaluation_table()

    @property
    def dev_table(self) -> sources.MixtureTable | None:
        """What fits a temperature, see SpeechData.dev_table."""
        return self._data.dev_table

    @property
    def trained_on(self) -> Mapping[str, Sequence[str]]:
        """Corpora and languages of the training mix."""
        return self._data.metadata()["trained_on"]

    @property
    def seen_by(self) -> Mapping[str, Mapping[str, Any]]:
        """What pretrained parts saw with labels of emotion, as rows.why_not_zero_shot takes it."""
        return exposure.with_labels(self._data.pretrained_models)

    def references(self, table: sources.MixtureTable, kept: np.ndarray) -> np.ndarray:
        """Index in `labels` of the emotion of the rows `kept` of `table`; -1 outside."""
        ids = {label: i for i, label in enumerate(self.labels)}
        return np.array([ids.get(emotion, -1) for emotion in table["emotion"][kept]], int)

    def calibrate(
        self, found: Callable[[sources.MixtureTable], tuple[np.ndarray, np.ndarray]], run: epath.Path, step: int,
        scoring: str, languages: Sequence[str],
    ) -> calibration.Calibration:  # fmt: skip
        """The temperature of a checkpoint: fitted and kept beside it where the run trains, else what was kept.

        Args:
            found: what gives the probabilities [windows, labels] of a table's utterances, and their rows [windows].
            run, step, scoring: whose temperature it is, see report.build.
            languages: of the prompts.
        """
        options = self._config.evaluate
        if self._data.scored_only:
            wanted = options.get("dev_utterances", 0)
            return self._unless_scored(calibration.stored(run, step, scoring)) if wanted else calibration.Calibration()
        dev, told = self._data.dev_table, calibration.Calibration()
        if dev is None and options.dev_utterances:
            logging.warning(
                "Not calibrated: no known speaker is left who neither trains nor is scored (of %d or more who train, "
                "some would be held back; a split 'validation' would do too)", held_back.LEAST_SPEAKERS,
            )  # fmt: skip
        if dev is not None:
            probabilities, places = found(dev)
            kept, owner = by_utterance(places)
            facts = self._facts(dev, kept) | {"label_space": list(self.labels), "prompt_languages": list(languages)}
            temperature = calibration.fit_temperature(probabilities, self.references(dev, kept), owner)
            told = calibration.Calibration(temperature, facts)
        if jax.process_index() == 0:
            calibration.store(run, step, scoring, told)
        return told

    def _facts(self, dev: sources.MixtureTable, kept: np.ndarray) -> dict[str, Any]:
        """JSON on the rows `kept` of what a temperature is fitted on."""
        pairs = set(zip(dev["corpus"][kept], dev["language"][kept], strict=True))
        speakers = sorted(set(dev["speaker"][kept]))
        return {
            "split": "held back" if self._data.held_back else "validation",
            "n": len(kept),
            "speakers": len(speakers),
            "languages": sorted(set(dev["language"][kept])),
            "protocols": sorted(
                {rows.protocol(corpus, language, self.trained_on, self.seen_by) for corpus, language in pairs}
            ),
            "utterances": _names(dev, kept),
        }

    def _unless_scored(self, kept: calibration.Calibration) -> calibration.Calibration:
        """A calibration, unless it was fitted on utterances that are scored."""
        fitted = set((kept.facts or {}).get("utterances", ()))
        both = fitted & set(_names(self.table, np.arange(len(self.table))))
        if not both:
            return kept
        logging.warning("Not calibrated: %d of the utterances scored are those that the temperature fits", len(both))
        return calibration.Calibration()

    def columns(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """rows.COLUMNS of the rows `kept` of `table`."""
        return {name: self.table[name][kept] for name in rows.COLUMNS}

    def unreadable(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """What rows.make_rows takes as such: the rows of `table` that are not among `kept`."""
        lost = np.setdiff1d(np.arange(len(self.table)), kept)
        reasons = self._data.why_unreadable(self.table, lost)
        return {**self.columns(lost), "id": self.table["id"][lost], "reason": np.array(reasons, object)}

    def rows(self, probabilities: np.ndarray, kept: np.ndarray, **adapted: Any) -> list[rows.Row]:
        """Rows of results.json of probabilities [n, labels] of the rows `kept` of `table`.

        `adapted`: `adapt` and `fallback` as rows.make_rows takes them, where an adaptation made the probabilities.
        """
        return rows.make_rows(
            probabilities, self.columns(kept), self.labels, **adapted,
            trained_on=self.trained_on, seen_by=self.seen_by, resamples=self._config.evaluate.bootstrap_samples,
            unreadable=self.unreadable(kept),
        )  # fmt: skip

    def results(
        self,
        found: Sequence[rows.Row],
        probabilities: np.ndarray,
        kept: np.ndarray,
        *,
        run: epath.Path,
        step: int,
        scoring: str,
        calibrated: calibration.Calibration | None = None,
        tempered: np.ndarray | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The content of results.json.

        Args:
            found: its rows.
            probabilities: [n, labels] of the rows `kept` of `table`, before the temperature; rows of 0: no answer.
            kept: see `probabilities`.
            run, step, scoring: see report.build.
            calibrated: what the temperature is; None where probabilities are not meant as such (generation).
            tempered: [n, labels], `probabilities` at that temperature.
            facts: further JSON on the calibration.
        """
        words = [incongruence_lib.content_emotion(name) for name in self.table["id"][kept]]
        answers = np.where(probabilities.any(-1), probabilities.argmax(-1), -1)
        of_voice = self.columns(kept)
        written = None
        if calibrated and (calibrated.facts or facts):
            ece = {
                when: metrics.expected_calibration_error(*pair)
                for when, pair in self._before_and_after(probabilities, kept, calibrated, tempered).items()
            }
            dev = {key: value for key, value in (calibrated.facts or {}).items() if key != "utterances"} or None
            written = {"temperature": calibrated.temperature, "dev": dev, "ece": ece, **(facts or {})}
        return report.build(
            stage=self._config.stage, checkpoint=str(run), step=step, label_space=self.labels, scoring=scoring,
            trained_on=self.trained_on, merges=self._merges(kept), rows=found, calibration=written,
            pretrained=towers.initialised_from(self._config), unlabelled=self._data.unlabelled(),
            pretrained_models=exposure.describe(self._data.pretrained_models),
            incongruence=incongruence_lib.incongruence(
                answers, of_voice["emotion"], words, of_voice["language"], self.labels
            ),
            resamples=self._config.evaluate.bootstrap_samples,
        )  # fmt: skip

    def write(
        self,
        results: Mapping[str, Any],
        folder: epath.Path,
        probabilities: np.ndarray,
        kept: np.ndarray,
        calibrated: calibration.Calibration | None = None,
        tempered: np.ndarray | None = None,
        *,
        answers: Mapping[str, np.ndarray],
    ) -> list[epath.Path]:
        """Logs the table; results.json, predictions, confusion matrices and the reliability diagram lie below `folder`.

        `answers`: {adaptation: probabilities [n, labels]} of the rows `kept`, as they were scored.
        """
        logging.info("\n%s", report.format_table(results))
        columns = {**self.columns(kept), "id": self.table["id"][kept]}
        facts = {name: results[name] for name in ("label_space", "scoring", "checkpoint", "step")}
        written = [report.write(results, folder), predictions.write(folder, answers, columns, facts)]
        if any(row["n"] for row in results["rows"]):
            written.append(plots.save_confusions(results["rows"], self.labels, folder / "confusion.png"))
        if "calibration" in results:
            titles = {"before": "as it is", "after": f"temperature {calibrated.temperature:.2f}"}
            pairs = self._before_and_after(probabilities, kept, calibrated, tempered)
            diagrams = {
                f"{titles[when]}, ECE {results['calibration']['ece'][when]:.3f}": metrics.reliability(*pair)
                for when, pair in pairs.items()
            }
            written.append(plots.save_reliability(diagrams, folder / "reliability.png"))
        return written

    def _before_and_after(
        self,
        probabilities: np.ndarray,
        kept: np.ndarray,
        calibrated: calibration.Calibration,
        tempered: np.ndarray | None,
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(probabilities, references) of all utterances within the label space, of all languages together."""
        references = self.references(self.table, kept)
        inside = references >= 0
        found = {"before": probabilities}
        if calibrated.facts:
            found["after"] = tempered
        return {when: (p[inside], references[inside]) for when, p in found.items()}

    def _merges(self, kept: np.ndarray) -> dict[str, int]:
        """{"excited→happy": count} over the scored utterances whose label was folded into a canonical one."""
        pairs = collections.Counter(
            zip(self.table["emotion_native"][kept].tolist(), self.table["emotion"][kept].tolist(), strict=True)
        )
        counts: collections.Counter[str] = collections.Counter()
        for (native, emotion), count in pairs.items():
            if emotion in self.labels and (merge := emotions.merge(native, emotion)):
                counts[merge] += count
        return dict(counts)


def _names(table: sources.MixtureTable, kept: np.ndarray) -> list[str]:
    return [f"{corpus}/{name}" for corpus, name in zip(table["corpus"][kept], table["id"][kept], strict=True)]


def summary(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Scalars of results.json for the metric writers."""
    macros: Sequence[tuple[str, dict[str, Any]]] = [
        ("", results["macro"]),
        *((f"adapt_{name}/", macro) for name, macro in results["macro"]["adapt"].items()),
    ]
    for prefix, macro in macros:
        for group in ("zero_shot", "all"):
            if macro[group]["rows"]:
                yield f"{prefix}{group}/ua", macro[group]["ua"]
                yield f"{prefix}{group}/macro_f1", macro[group]["macro_f1"]
    for row in results["rows"]:
        if row["adapt"] == "none" and row["n"]:
            yield f"ua/{row['corpus']}/{row['language']}", row["ua"]
    for when, value in results.get("calibration", {}).get("ece", {}).items():
        yield f"ece/{when}", value
    for kind, found in results.get("incongruence", {}).items():
        for name in ("by_voice", "by_words"):
            yield f"incongruence/{kind}/{name}", found["all"][name]
