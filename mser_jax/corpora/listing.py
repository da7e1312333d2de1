"""What corpora there are, what is prepared on this machine, and who has seen them: for reading, and as JSON."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mser_jax import storage
from mser_jax.corpora import builder, emotions, public, registry, scratch, seen_by, source
from mser_jax.corpora.builder import default_data_dir

# One letter for each of emotions.EMOTIONS, in their order.
_LETTERS = "ADFHNSU"
_HEADS = ("name", "languages", "hours", "utterances", "speakers", "emotions", "licence", "prepared")
_WIDTH = 118
_SHORT = 28  # characters of a licence in the table


def everything(data_dir: str = "") -> list[dict[str, Any]]:
    """`one` of every corpus, those that others own first."""
    own = sorted(set(registry.BUILDERS) - set(public.NAMES))
    return [one(name, data_dir) for name in (*public.NAMES, *own)]


def one(name: str, data_dir: str = "") -> dict[str, Any]:
    """What is known of a corpus, as JSON.

    name; of a public one its Facts, `labels` (its own label -> {"emotion", "merge"}), `emobox` (how EmoBox divides it:
    "by speaker", "by file", ""), and `seen_by`; else `about`; `prepared`: a report (build_report.py) and its folder
    each.

    Raises:
      ValueError: no such corpus; the nearest is named.
    """
    corpus = registry.corpus_class(name)
    found: dict[str, Any] = {"name": name}
    if name in public.NAMES:
        facts = corpus.FACTS
        found |= {key: list(value) if isinstance(value, tuple) else value for key, value in vars(facts).items()}
        maps = {label: emotions.canonical(label) for label in facts.emotions}
        found["labels"] = {label: {"emotion": emotion, "merge": merge} for label, (emotion, merge) in maps.items()}
        by_file = "by file" if name in seen_by.sets()["emobox"] else ""
        found["emobox"] = "by speaker" if corpus.EMOBOX_SPEAKERS else by_file
        found["emobox_folds"] = len(corpus.EMOBOX_SPEAKERS)
        found["seen_by"] = [
            {"model": model.name, "what": what, "with_labels": saw.labels, "source": saw.source, "note": saw.note}
            for model, saw, what in seen_by.by_corpus(name, facts.languages)
        ]
    else:
        found["about"] = corpus.DESCRIPTION
    return found | {"prepared": list(_prepared(name, storage.absolute(data_dir or default_data_dir())))}


def _prepared(name: str, data_dir: epath.Path) -> Iterator[dict[str, Any]]:
    """The complete builds below `data_dir`/name: of each version, and of each config where it has those."""
    for pattern in (f"*/{builder.INDEX_FILE}", f"*/*/{builder.INDEX_FILE}"):
        for path in sorted((data_dir / name).glob(pattern)) if (data_dir / name).exists() else ():
            if any(scratch.NAMES.match(part) for part in path.relative_to(data_dir).parts):
                continue
            report = json.loads((path.parent / builder.REPORT_FILE).read_text(encoding="utf-8"))
            yield {"folder": os.fspath(path.parent), "report": report}


def table(corpora: Sequence[Mapping[str, Any]], data_dir: str = "") -> str:
    """The corpora as a table, and who has seen them."""
    rows = [_HEADS, *(_row(corpus) for corpus in corpora)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = []
    for row, corpus in zip(rows, (None, *corpora), strict=True):
        # Numbers to the right.
        cells = [c.rjust(w) if n in (2, 3, 4) else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        seen = "seen with labels of emotion by" if corpus is None else ", ".join(_who(corpus))
        lines.append("  ".join([*cells, seen]).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    nobody_knows = [m.name for m in seen_by.models() if any(s.labels and "und" in s.languages for s in m.saw)]
    letters = ", ".join(f"{letter} {emotion}" for letter, emotion in zip(_LETTERS, emotions.EMOTIONS, strict=True))
    lines += ["", f"emotions: {letters}, +n others, which stay without a label. 0 = not published."]
    lines += [f"prepared: below {data_dir or default_data_dir()}"]
    note = f"Not all speech that taught these emotion is published; they may have seen any: {', '.join(nobody_knows)}."
    lines += textwrap.wrap(note, _WIDTH)
    return "\n".join([*lines, "All of one: python -m mser_jax.corpora NAME"])


def _row(corpus: Mapping[str, Any]) -> tuple[str, ...]:
    built = [item["report"] for item in corpus["prepared"]]
    prepared = f"{sum(r['built'] for r in built)}, {sum(r['hours_total'] for r in built):.2f} h" if built else "–"
    prepared += ", partial" if any(r.get("partial") for r in built) else ""
    if "about" in corpus:
        return (
            corpus["name"],
            "",
            "",
            "",
            "",
            "",
            textwrap.shorten(corpus["about"], _SHORT, placeholder=" …"),
            prepared,
        )
    found = {label["emotion"] for label in corpus["labels"].values()}
    rest = sum(not label["emotion"] for label in corpus["labels"].values())
    letters = "".join(
        letter if emotion in found else "·" for letter, emotion in zip(_LETTERS, emotions.EMOTIONS, strict=True)
    )
    languages = ",".join(corpus["languages"])
    return (
        corpus["name"],
        languages if len(languages) <= 18 else f"{len(corpus['languages'])} languages",
        f"{corpus['hours']:g}",
        str(corpus["utterances"]),
        str(corpus["speakers"]),
        letters + (f" +{rest}" if rest else ""),
        textwrap.shorten(corpus["license"], _SHORT, placeholder=" …"),
        prepared,
    )


def _who(corpus: Mapping[str, Any]) -> list[str]:
    """Names of the models that saw the corpus itself with labels."""
    seen = corpus.get("seen_by", ())
    return list(dict.fromkeys(fact["model"] for fact in seen if fact["with_labels"] and fact["what"] == "corpus"))


def details(corpus: Mapping[str, Any]) -> str:
    """Everything of one corpus, as text."""
    lines = [corpus["name"]]
    if "about" in corpus:
        lines += _entry("", corpus["about"])
    else:
        size = (
            f"{corpus['utterances']} utterances, {corpus['hours']:g} h, {corpus['speakers']} speakers (0: unpublished)"
        )
        command = f"python tools/prepare_corpus.py {corpus['name']} --source=DIR"
        labels = [
            f"{label} → {to['emotion'] or '(none)'}" + (f" (merge: {to['merge']})" if to["merge"] else "")
            for label, to in corpus["labels"].items()
        ]
        for title, value in {
            "title": corpus["title"],
            "languages": ", ".join(corpus["languages"]),
            "as published": size,
            "labels": "; ".join(labels),
            "licence": corpus["license"],
            "citation": corpus["citation"],
            "get it": corpus["obtain"],
            "source": f"a folder or an archive with {corpus['folder']}",
            "prepare": command + (" --emobox=CLONE" if corpus["emobox"] == "by file" else ""),
            "folds": _folds(corpus),
        }.items():
            lines += _entry(title, value)
        lines += _seen_by(corpus["seen_by"])
    for item in corpus["prepared"]:
        lines += ["", f"  prepared in {item['folder']}", *(f"    {line}" for line in describe(item["report"]))]
    return "\n".join(lines if corpus["prepared"] else [*lines, "", "  not prepared here"])


def _entry(title: str, text: str) -> list[str]:
    first, rest = (f"  {title:<14}", " " * 16) if title else ("    ", " " * 6)
    whole = {"break_long_words": False, "break_on_hyphens": False}  # addresses can be copied
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, **whole)


def _seen_by(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who saw the corpus, with the source; of who saw its language, the names."""
    lines = ["  seen by"]
    for fact in facts:
        if fact["what"] == "corpus":
            how = "with labels" if fact["with_labels"] else "without its labels"
            lines += _entry("", " ".join(f"{fact['model']}, {how}: {fact['note']} [{fact['source']}]".split()))
    languages = dict.fromkeys(fact["model"] for fact in facts if fact["what"] == "language")
    if languages:
        lines += _entry("", f"its language with labels of emotion, in other corpora: {', '.join(languages)}")
    return lines if facts else [*lines, "    no model of the registry, as far as is published"]


def _folds(corpus: Mapping[str, Any]) -> str:
    """Which specs divide it."""
    name, ways = corpus["name"], [f"{corpus['name']}:speaker-1 … of any number (speaker-1ofN)"]
    if corpus["emobox"] == "by speaker":
        ways.append(f"{name}:emobox-1 … {corpus['emobox_folds']}, by speaker")
    elif corpus["emobox"]:
        ways.append(f"{name}:emobox-K by lists of files, where it was prepared with a clone of EmoBox")
    return "; ".join([*ways, f"{name}:official where there is a published split"])


def describe(report: Mapping[str, Any]) -> list[str]:
    """Lines for reading of a report.json."""
    lines = [f"PARTIAL: {report['partial']}"] if report.get("partial") else []
    lines += [f"built from {source.describe(report['source'])}"] if report.get("source") else []
    lines += [
        f"{report['built']} utterances of {report['speakers']} speakers, {report['hours_total']:.2f} h,"
        f" {report['megabytes']:.1f} MiB, built in {report['build_seconds']:.1f} s",
        f"{report['downmixed']} mixed down to mono; resampled from: {report['resampled_from_hz'] or 'none'}",
        "",
        *_counts(report),
        "",
        f"merges (a different state folded into an emotion): {report['merges'] or 'none'}",
        f"labels that fit no canonical emotion (a labels.toml can map them): {report['unlabelled'] or 'none'}",
        f"the same recording again: {report.get('repeats') or 'none'}",
        *(f"  {example}" for example in report.get("repeats_examples", ())),
        f"not understood, and left empty: {report.get('not_understood') or 'none'}",
        f"known defects corrected: {report['corrections'] or 'none'}",
        f"left out on purpose: {report['left_out_on_purpose'] or 'none'}",
        f"skipped: {report['skipped_by_reason'] or 'none'}",
        *([f"EmoBox: {report['emobox']}"] if report.get("emobox") else []),
    ]
    lines += [f"  {item['path']}: {item['reason']}, {item['detail']}" for item in report["skipped_items"][:20]]
    if report["skipped"] > 20:
        lines.append(f"  … all {report['skipped']} are in report.json")
    heads = ("scheme", "fold", "train", "validation", "test", "left_out", "speakers_in_both")
    rows = [[str(row.get(head, "")) for head in heads] for row in report.get("folds", ())]
    cells = [[cell.replace("_", " ") for cell in row] for row in (heads, *rows)]
    return lines + (["", *("".join(f"{cell:>18}" for cell in row) for row in cells)] if rows else [])


def _counts(report: Mapping[str, Any]) -> list[str]:
    columns = [*emotions.EMOTIONS, ""]
    lines = ["language   hours  " + "".join(f"{head:>9}" for head in [*emotions.EMOTIONS, "(none)"])]
    for language, counts in report["by_language_and_emotion"].items():
        numbers = "".join(f"{counts.get(column, 0):>9}" for column in columns)
        lines.append(f"{language:<9}{report['hours']['language'][language]:>7.2f}  {numbers}")
    return lines
