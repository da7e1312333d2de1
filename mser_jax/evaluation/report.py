"""results.json: built, checked, written, read back and printed; and the figures to print beside it."""

from __future__ import annotations

import collections
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from etils import epath

from mser_jax import storage
from mser_jax.corpora import seen_by
from mser_jax.corpora.label_map import label_counts
from mser_jax.evaluation.incongruence import format_table as format_incongruence
from mser_jax.evaluation.metrics import FIGURES
from mser_jax.evaluation.rows import ADAPTATIONS, BY_SPEAKER, PROTOCOLS, Row, macro, primary

FILE = "results.json"

_HEAD = ("corpus", "language", "protocol", "n", "skipped", "speakers", "UA  [95 % interval]")
_HEAD += ("WA", "macro-F1", "weighted-F1", "ECE")
_TITLES = {
    "none": "as is (no adaptation)",
    "corpus": "adapted by unlabelled statistics of the corpus",
    "speaker": "adapted by unlabelled statistics of each speaker",
    "corpus_em": "answered together: clusters of the corpus's unlabelled utterances",
    "speaker_em": "answered together: the same after each speaker's mean is subtracted",
}

_TOP = {
    "stage": str,
    "checkpoint": str,
    "step": int,
    "label_space": list,
    "chance": float,
    "scoring": str,
    "trained_on": dict,
    "merges": dict,
    "left_out": dict,
    "rows": list,
    "macro": dict,
}
_ROW = {
    "corpus": str,
    "language": str,
    "adapt": str,
    "n": int,
    "skipped": int,
    "left_out": dict,
    "speakers": int,
    "protocol": str,
    "zero_shot": bool,
    "confusion": list,
    "recall": list,
}
_SCORING = ("similarity", "label_likelihood", "generation", "encoder_probe")


def build(
    *,
    stage: str,
    checkpoint: str,
    step: int,
    label_space: Sequence[str],
    scoring: str,
    trained_on: Mapping[str, Iterable[str]],
    merges: Mapping[str, int],
    rows: Sequence[Row],
    pretrained: Mapping[str, str] | None = None,
    pretrained_models: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    incongruence: Mapping[str, Any] | None = None,
    resamples: int = 1000,
    unlabelled: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of results.json, checked by `validate`.

    Args:
      stage, checkpoint, step: the stage that made the checkpoint, where it lies, and its training step.
      label_space: labels in the order of the confusion matrices.
      scoring: "similarity" | "label_likelihood" | "generation:EXTRACTOR" | "encoder_probe".
      trained_on: {"corpora": …, "languages": …} of the training mix.
      merges: what was folded into what, with counts: {"excited→happy": 12}.
      rows: of zero_shot.score or rows.make_rows.
      pretrained: {tower: directory or hub id} of the weights that training started from.
      pretrained_models: {tower: {"model": its name in the registry of who has seen what, "with_labels": …,
        "without_labels": …}}. `zero_shot` speaks of labelled emotion: rows were refused it by the former, and what was
        heard without labels is written beside them.
      calibration: how the probabilities were calibrated, and what it did to the ECE.
      incongruence: figures of incongruence.incongruence.
      resamples: bootstrap draws of the averages.
      unlabelled: utterances without a canonical emotion, which no row holds (MixtureTable.unlabelled).
    """
    # Every adaptation scores the same utterances: count them once.
    once = [row for row in rows if row["adapt"] == rows[0]["adapt"]]
    left_out = sum((collections.Counter(row["left_out"]) for row in once), collections.Counter())
    results = {
        "stage": stage,
        "checkpoint": str(checkpoint),
        "step": int(step),
        "label_space": list(label_space),
        "chance": 1 / len(label_space),
        "scoring": scoring,
        "trained_on": {key: sorted(set(trained_on.get(key, ()))) for key in ("corpora", "languages")},
        "pretrained": dict(pretrained or {}),
        "pretrained_models": dict(pretrained_models or {}),
        "merges": {name: int(count) for name, count in sorted(merges.items())},
        "left_out": dict(sorted(left_out.items())),
        "unlabelled": [dict(entry) for entry in unlabelled],
        "rows": [{key: value for key, value in row.items() if key != BY_SPEAKER} for row in rows],
        "macro": macro(rows, resamples),
    }
    results["unreadable"] = sum(row.get("unreadable", 0) for row in once)
    for name, found in (("calibration", calibration), ("incongruence", incongruence)):
        results |= {name: dict(found)} if found else {}
    validate(results)
    return results


def validate(results: Mapping[str, Any]) -> None:
    """Raises ValueError listing everything in which `results` is not a results.json."""
    found = list(_problems(results))
    if found:
        raise ValueError("not a valid results.json:\n  " + "\n  ".join(found))


def _typed(where: str, content: Mapping[str, Any], types: Mapping[str, type]) -> Iterator[str]:
    for key, kind in types.items():
        value = content.get(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            yield f"{where}{key}: expected {kind.__name__}, got {value!r}"


def _problems(results: Mapping[str, Any]) -> Iterator[str]:
    broken = list(_typed("", results, _TOP))
    if broken:
        yield from broken
        return
    if results["scoring"].split(":")[0] not in _SCORING:
        yield f"scoring: expected one of {_SCORING} (generation with :EXTRACTOR), got {results['scoring']!r}"
    keys = [(row.get("corpus"), row.get("language"), row.get("adapt")) for row in results["rows"]]
    if len(set(keys)) != len(keys):
        yield f"rows: the same corpus × language × adapt twice in {keys}"
    for key, row in zip(keys, results["rows"], strict=True):
        yield from _row_problems(f"rows{list(key)}.", row, len(results["label_space"]))
    groups = {
        "": results["macro"],
        **{f"adapt.{k}.": v for k, v in results["macro"].get("adapt", {}).items()},
    }
    for where, group in groups.items():
        for name in ("zero_shot", "all"):
            yield from _figure_problems(f"macro.{where}{name}.", group.get(name, {}), "rows")


def _row_problems(where: str, row: Row, classes: int) -> Iterator[str]:
    broken = list(_typed(where, row, _ROW))
    if broken:
        yield from broken
        return
    if row["adapt"] not in ADAPTATIONS:
        yield f"{where}adapt: expected one of {ADAPTATIONS}, got {row['adapt']!r}"
    if row["protocol"] not in PROTOCOLS or row["zero_shot"] != (row["protocol"] == "zero_shot"):
        yield f"{where}protocol: expected one of {PROTOCOLS} that fits zero_shot, got {row['protocol']!r}"
    if row["zero_shot"] == bool(row.get("why_not")):
        yield f"{where}why_not: must stand exactly where zero_shot is false, got {row.get('why_not')!r}"
    if [len(line) for line in row["confusion"]] != [classes] * classes:
        yield f"{where}confusion: expected {classes} × {classes}"
    elif sum(map(sum, row["confusion"])) + row.get("unparseable", 0) != row["n"]:
        yield f"{where}confusion: sums to {sum(map(sum, row['confusion']))}, n is {row['n']}"
    if sum(row["left_out"].values()) != row["skipped"]:
        yield f"{where}left_out: sums to {sum(row['left_out'].values())}, skipped is {row['skipped']}"
    if (lost := sum(row.get("unreadable_reasons", {}).values())) != row.get("unreadable", 0):
        yield f"{where}unreadable_reasons: sums to {lost}, unreadable is {row['unreadable']}"
    yield from _figure_problems(where, row, "n")


def _figure_problems(where: str, content: Mapping[str, Any], count: str) -> Iterator[str]:
    for name in (*FIGURES, "ece"):
        value = content.get(name, "nothing")
        # A generated answer comes without confidence, so without a calibration error.
        if value is None and (name == "ece" or not content.get(count)):
            continue
        if not isinstance(value, float) or not 0 <= value <= 1:
            yield f"{where}{name}: expected a number in [0, 1], got {value!r}"
    interval = content.get("ua_ci95", "nothing")
    if interval is not None and not (isinstance(interval, list) and len(interval) == 2):
        yield f"{where}ua_ci95: expected [low, high] or null, got {interval!r}"


def write(results: Mapping[str, Any], directory: epath.PathLike) -> epath.Path:
    """Writes `directory`/results.json (local or gs://) whole or not at all; returns its path."""
    validate(results)
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    storage.replace(folder / FILE, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return folder / FILE


def read(directory: epath.PathLike) -> dict[str, Any]:
    """Inverse of `write`; ValueError, in a line, where there is no such file or it is not a results.json."""
    path = epath.Path(directory) / FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        validate(results)
    except (FileNotFoundError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no {FILE} of an evaluation ({' '.join(str(error).split())})") from error
    return results


def format_table(results: Mapping[str, Any]) -> str:
    """The rows and averages as text for the terminal, strict and adapted ones in tables of their own."""
    labels = results["label_space"]
    out = [
        f"{results['stage']}, step {results['step']}, {results['scoring']}; {len(labels)} classes "
        f"({', '.join(labels)}), chance UA {_figure(results['chance'])}"
    ]
    for adapt in ADAPTATIONS:
        rows = [row for row in results["rows"] if row["adapt"] == adapt]
        if not rows:
            continue
        averages = results["macro"] if adapt == "none" else results["macro"]["adapt"][adapt]
        lines = [*(_line(row, row["protocol"]) for row in rows), *_unscored(results, rows)]
        scored = len(lines)
        groups = [name for name in (*PROTOCOLS, "all") if name in averages]
        lines += [_line(averages[name], name) for name in groups]
        out += ["", f"{_TITLES[adapt]}:", *_columns(_HEAD, lines, 3, rule_before=scored)]
        fallen = sum(row.get("fallback_speakers", 0) for row in rows)
        if fallen:
            out.append(f"  {fallen} speakers have few or one-sided utterances: most of their means is the corpus's")
    return "\n".join([*out, *_notes(results)]) + "\n"


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}".removeprefix("0")


def _figures(row: Mapping[str, Any]) -> tuple[str, ...]:
    interval = row["ua_ci95"]
    span = f"[{_figure(interval[0])}, {_figure(interval[1])}]" if interval else "[ – ]"
    rest = (row[name] for name in ("wa", "macro_f1", "weighted_f1", "ece"))
    return (f"{_figure(row['ua'])}  {span:<14}", *map(_figure, rest))


def _line(row: Mapping[str, Any], protocol: str) -> tuple[Any, ...]:
    """Cells of a row, or of an average over languages."""
    languages = len(row.get("languages", ()))
    name = row.get("corpus", f"mean of {languages} language{'s' * (languages != 1)}")
    rest = (row["n"], row.get("skipped", ""), row.get("speakers", ""))
    return (name, row.get("language", ""), protocol.replace("_", "-"), *rest, *_figures(row))


def _unscored(results: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    """Cells of the corpora that no row holds, as none of their labels is known."""
    scored = {(row["corpus"], row["language"]) for row in rows}
    for entry in results.get("unlabelled", ()):
        if (entry["corpus"], entry["language"]) not in scored:
            cells = (entry["corpus"], entry["language"], "labels unknown", 0, entry["n"])
            yield (*cells, *[""] * (len(_HEAD) - len(cells)))


def _columns(head: Sequence[str], lines: Sequence[Sequence[Any]], texts: int, *, rule_before: int) -> list[str]:
    """Fixed-width lines, the first `texts` columns left and the rest right, with a rule before line `rule_before`."""
    cells = [[str(cell) for cell in line] for line in (head, *lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    text = [
        "  "
        + "  ".join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    rule = "  " + "-" * (sum(widths) + 2 * (len(widths) - 1))
    return [text[0], rule, *text[1 : 1 + rule_before], rule, *text[1 + rule_before :]]


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for row in results["rows"]:
        name = f"{row['corpus']}/{row['language']}"
        if not row["zero_shot"] and name not in reasons.setdefault(row["why_not"], []):
            reasons[row["why_not"]].append(name)
    yield ""
    for why, names in reasons.items():
        yield f"not zero-shot: {', '.join(names)}: {why}"
    for tower, found in results.get("pretrained_models", {}).items():
        if found["model"] == seen_by.UNKNOWN:
            yield f"{tower} starts from weights that are {seen_by.UNKNOWN}: what they saw is not known"
        for fact in found.get("without_labels", ()):
            yield f"{tower} is {found['model']}, which heard speech without labels of emotion: {fact['note']}"
    for row in results["rows"]:
        if row.get("unreadable") and row["adapt"] == results["rows"][0]["adapt"]:
            why = ", ".join(f"{reason} {count}" for reason, count in row["unreadable_reasons"].items())
            first = ", ".join(row["unreadable_ids"]) + ", …" * (row["unreadable"] > len(row["unreadable_ids"]))
            name = f"{row['corpus']}/{row['language']}"
            yield f"could not be decoded, so not scored: {row['unreadable']} of {name} ({why}): {first}"
    if answers := sum(row.get("unparseable", 0) for row in results["rows"] if row["adapt"] == "none"):
        yield f"answers that name no label, counted as wrong: {answers}"
    if calibration := results.get("calibration"):
        yield f"ECE as it is {_figure(calibration['ece']['before'])}"
        if dev := calibration["dev"]:
            after, temperature = _figure(calibration["ece"]["after"]), calibration["temperature"]
            yield f"ECE {after} at temperature {temperature:.2f}, fitted on {dev['n']} others"
    if "incongruence" in results:
        yield format_incongruence(results["incongruence"])
    for entry in results.get("unlabelled", ()):
        yield (
            f"no canonical emotion, so in no row: {entry['corpus']}/{entry['language']} {entry['n']} "
            f"({label_counts([entry])}); a labels.toml can map them"
        )
    for title, counts in (("left out (outside the label space)", "left_out"), ("merged", "merges")):
        if results[counts]:
            yield f"{title}: " + ", ".join(f"{name} {count}" for name, count in results[counts].items())


def reference_rows() -> list[dict[str, Any]]:
    """The published rows of reference.toml: {"name", "adapt", "ua": {language: UA}, "mean"}."""
    text = resources.files(__package__).joinpath("reference.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["rows"]


def reference_table(ours: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Leave-one-language-out UA on real speech, 4 classes: the reference rows and below them ours.

    Args:
      ours: {name of a row: {BCP-47 language: UA}}; the mean is given only where every language is there.
    """
    published = reference_rows()
    languages = sorted(published[0]["ua"])
    mine = [
        {"name": name, "adapt": "", "ua": {primary(k): v for k, v in ua.items()}} for name, ua in (ours or {}).items()
    ]
    lines = []
    for row in (*published, *mine):
        values = [row["ua"].get(language) for language in languages]
        mean = row.get("mean") or (None if None in values else sum(values) / len(values))
        lines.append((row["name"], row["adapt"], *map(_figure, values), _figure(mean)))
    table = _columns(("UA, leave one language out", "adapt", *languages, "mean"), lines, 2, rule_before=len(published))
    return "\n".join(table if mine else table[:-1]) + "\n"
