"""`labels.toml`: a user's own map from native labels to canonical emotions.

```toml
[labels]
"fed up" = "angry"
"resigned" = "sad"
"bored" = ""          # left without an emotion on purpose
```

A speech folder may hold one beside its manifest (applied when it is built), and `--config.data.labels=FILE` names one
for all corpora of a run (applied when their tables are read, over a folder's and over emotion_words.toml).
"""

from __future__ import annotations

import collections
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from mser_jax import storage
from mser_jax.corpora import emotions

FILE = "labels.toml"
_EXPECTED = 'Expected one section [labels] with lines such as "fed up" = "angry"'


def read(path: epath.PathLike) -> dict[str, str]:
    """Read {normalised native label: canonical emotion, or ""} from a labels.toml.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no file, not TOML in UTF-8, has other keys than `labels`, or a target that is not a canonical
        emotion; with the file, the label and what was expected.
    """
    path = epath.Path(path)
    name = os.fspath(path)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file of labels")
    # epath calls all that is no folder a file; reading a pipe never ends.
    if path.is_dir() or not (storage.is_remote(path) or Path(path).is_file()):
        raise ValueError(f"{name} is not a file. {_EXPECTED}")
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: not TOML in UTF-8 ({error}). {_EXPECTED}, every label in quotes") from error
    labels = content.pop("labels", None)
    if content or not isinstance(labels, dict):
        what = f"other entries than [labels]: {sorted(content)}" if content else "no section [labels]"
        raise ValueError(f"{name}: {what}. {_EXPECTED}")
    found: dict[str, str] = {}
    for native, target in labels.items():
        if target != "" and target not in emotions.EMOTIONS:
            near = difflib.get_close_matches(str(target), emotions.EMOTIONS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{name}: {native!r} is mapped to {target!r}, expected one of {', '.join(emotions.EMOTIONS)}, or ''"
                f" for none.{hint}"
            )
        before = found.setdefault(emotions.normalize(native), target)
        if before != target:
            raise ValueError(f"{name}: {native!r} is mapped twice, to {before!r} and to {target!r}")
    return found


def in_folder(folder: epath.PathLike) -> dict[str, str]:
    """Read FOLDER/labels.toml; empty where there is none. Raises as `read`, also for a link that leads nowhere."""
    path = epath.Path(folder) / FILE
    there = path.exists() if storage.is_remote(path) else os.path.lexists(path)
    return read(path) if there else {}


def emotion(native: str, labels: Mapping[str, str], otherwise: str | None = None) -> str | None:
    """Look up a native label in `labels` (of `read`); `otherwise` where it is not listed."""
    return labels.get(emotions.normalize(native), otherwise)


def label_counts(unlabelled: Sequence[Mapping[str, Any]], shown: int = 8) -> str:
    """Format the native labels of `data.sources.MixtureTable.unlabelled`, most frequent first: "怒り 30, … 4 more"."""
    total: collections.Counter[str] = collections.Counter()
    for entry in unlabelled:
        total.update(entry["labels"])
    parts = [f"{native or '(empty)'} {count}" for native, count in total.most_common(shown)]
    return ", ".join(parts) + (f", … {len(total) - shown} more" if len(total) > shown else "")
