"""Builds a corpus into ArrayRecord and prints its report:

    python tools/prepare_corpus.py NAME --source=DIR_OR_GS --data_dir=DIR_OR_GS

NAME: a public corpus (`python -m mser_jax.corpora` lists them), whose original download, a folder or an archive, is the
source; with --emobox its folds are EmoBox's, file by file. Or, without a source, m5ser_mini, or speech_folder:DIR for a
folder of recordings with a manifest.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mser_jax import storage
from mser_jax.corpora import emotions, registry


def main() -> int:
    """Builds (or finds) the corpus; 0 when it is there, 1 with the reason on stderr when not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", metavar="NAME")
    parser.add_argument("--source", default="", help="the original download: a folder or an archive, also gs://")
    parser.add_argument("--emobox", default="", help="a clone of https://github.com/emo-box/EmoBox, for its folds")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    args = parser.parse_args()
    try:
        corpus = registry.corpus_builder(args.spec, args.data_dir, args.source, args.emobox)
        found = corpus.is_complete()
        corpus.prepare()
    except (ValueError, OSError, RuntimeError) as error:
        print(storage.explain(error) or error, file=sys.stderr)
        return 1
    report = json.loads(corpus.report_path.read_text())
    print(f"{args.spec}: {'found' if found else 'built'} in {corpus.data_dir}")
    print("\n".join(describe(report)))
    return 0


def describe(report: dict[str, Any]) -> list[str]:
    """Lines for reading of a report.json."""
    lines = [
        f"{report['built']} utterances of {report['speakers']} speakers, {report['hours_total']:.2f} h,"
        f" {report['megabytes']:.1f} MiB, built in {report['build_seconds']:.1f} s",
        f"{report['downmixed']} mixed down to mono; resampled from: {report['resampled_from_hz'] or 'none'}",
        "",
        *_table(report),
        "",
        f"merges (a different state folded into an emotion): {report['merges'] or 'none'}",
        f"labels that fit no canonical emotion: {report['unlabelled'] or 'none'}",
        f"known defects corrected: {report['corrections'] or 'none'}",
        f"left out on purpose: {report['left_out_on_purpose'] or 'none'}",
        f"skipped: {report['skipped_by_reason'] or 'none'}",
        *([f"EmoBox: {report['emobox']}"] if report["emobox"] else []),
    ]
    lines += [f"  {item['path']}: {item['reason']}, {item['detail']}" for item in report["skipped_items"][:20]]
    if report["skipped"] > 20:
        lines.append(f"  … all {report['skipped']} are in report.json")
    return lines + _folds(report)


def _folds(report: dict[str, Any]) -> list[str]:
    heads = ("scheme", "fold", "train", "validation", "test", "speakers_in_both")
    rows = [[str(row[head]) for head in heads] for row in report["folds"]]
    return ["", *("".join(f"{cell.replace('_', ' '):>18}" for cell in row) for row in (heads, *rows))] if rows else []


def _table(report: dict[str, Any]) -> list[str]:
    columns = [*emotions.EMOTIONS, ""]
    heads = [*emotions.EMOTIONS, "(none)"]
    lines = ["language   hours  " + "".join(f"{head:>9}" for head in heads)]
    for language, counts in report["by_language_and_emotion"].items():
        numbers = "".join(f"{counts.get(column, 0):>9}" for column in columns)
        lines.append(f"{language:<9}{report['hours']['language'][language]:>7.2f}  {numbers}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
