"""Builds a corpus into ArrayRecord and prints its report:

    python tools/prepare_corpus.py NAME --source=DIR_OR_GS --data_dir=DIR_OR_GS

NAME: a public corpus (`python -m mser_jax.corpora` lists them), whose original download, a folder or an archive, is the
source; with --emobox its folds are EmoBox's, file by file. A source that lacks recordings which are published is
refused, but with --allow_partial. Or, without a source, m5ser_mini, or speech_folder:DIR for a
folder of recordings with a manifest.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys

from mser_jax import storage
from mser_jax.corpora import listing, record, registry


def main() -> int:
    """Builds (or finds) the corpus; 0 when it is there, 1 with the reason on stderr when not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", metavar="NAME")
    parser.add_argument("--source", default="", help="the original download: a folder or an archive, also gs://")
    parser.add_argument("--emobox", default="", help="a clone of https://github.com/emo-box/EmoBox, for its folds")
    parser.add_argument("--allow_partial", action="store_true", help="build a part of the corpus, marked as one")
    parser.add_argument("--data_dir", default="", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    args = parser.parse_args()
    try:
        corpus = registry.corpus_builder(args.spec, args.data_dir, args.source, args.emobox, args.allow_partial)
        found = corpus.is_complete() and not corpus.outdated()
        corpus.prepare()
    except (ValueError, OSError, RuntimeError) as error:
        print(storage.explain(error) or error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing of this build is kept", file=sys.stderr)
        return 130
    report = json.loads(corpus.report_path.read_text())
    print(f"{record.storable(args.spec)}: {'found' if found else 'built'} in {corpus.data_dir}")
    print("\n".join(listing.describe(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
