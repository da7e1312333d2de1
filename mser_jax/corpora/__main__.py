"""Lists the corpora, or shows all that is known of one:

python -m mser_jax.corpora [NAME] [--data_dir=DIR_OR_GS] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys

from mser_jax import storage
from mser_jax.corpora import listing


def main() -> int:
    """Prints the table, or one corpus; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m mser_jax.corpora", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", nargs="?", default="")
    parser.add_argument("--data_dir", default="", help="where prepared corpora are: $TFDS_DATA_DIR by default")
    parser.add_argument("--json", action="store_true", help="as JSON")
    args = parser.parse_args()
    try:
        found = listing.one(args.name, args.data_dir) if args.name else listing.everything(args.data_dir)
    except (ValueError, OSError) as error:
        print(storage.explain(error) or error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print(listing.details(found) if args.name else listing.table(found, args.data_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
