"""What is in a checkpoint, or what differs between two.

    python tools/inspect_checkpoint.py RUN[@STEP]               tree, shapes, dtypes, bytes, config and versions
    python tools/inspect_checkpoint.py RUN[@STEP] RUN[@STEP]    leaves, config and versions that differ; exit code 1
    … --values                                                  also reads the parameters: norms, or how far apart

RUN is a training workdir (or its `checkpoints`, or one of these), local or gs://; without @STEP it is the newest.
Nothing is changed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from typing import Any

# Looking at a checkpoint must not take the accelerator that a run holds.
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from mser_jax import config as config_lib
from mser_jax.checkpoint import CheckpointError, Checkpoints, difference
from mser_jax.data import fingerprint
from mser_jax.run import locate


class Opened:
    """One checkpoint of a run, opened to be read."""

    def __init__(self, spec: str) -> None:
        """`spec`: RUN[@STEP]. Raises ConfigError: there is no such run. CheckpointError: it cannot be read."""
        run, _, step = re.fullmatch(r"(.*?)(@(\d+))?", spec).groups()
        where = locate(run, int(step) if step else None)
        self._checkpoints = Checkpoints(where.checkpoints)
        self.steps = self._checkpoints.steps
        self.step = self._checkpoints.latest if where.step is None else where.step
        self.name = f"{where.checkpoints} @ {self.step}"
        self.metadata = self._checkpoints.metadata(self.step)
        self.leaves = self._checkpoints.tree(self.step)

    def values(self) -> dict[str, np.ndarray]:
        """The parameters that were saved, on the host."""
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = self._checkpoints.shapes(self.step)
        shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for path, x in shapes.items()}
        return jax.tree.map(np.asarray, self._checkpoints.restore_params(shapes, self.step, partial=True))


def num_bytes(leaf: Any) -> int:
    """Of an array, or its shape and dtype."""
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}".replace(".0 B", " B")
        count /= 1024
    return f"{count:.1f} TiB"


def describe(found: Opened, values: dict[str, np.ndarray] | None) -> str:
    """The tree, its sums by item and top-level part, and the metadata."""
    rows = [f"{found.name}   (there are steps {found.steps})"]
    sums: dict[str, int] = {}
    for path, leaf in sorted(found.leaves.items()):
        part = "/".join(path.split("/")[:2])
        sums[part] = sums.get(part, 0) + num_bytes(leaf)
        norm = ""
        name = path.removeprefix("params/")
        if values is not None and path.startswith("params/"):
            x = values[name].astype(np.float64)
            norm = f"  rms {np.sqrt(np.mean(x**2)):.3e}" + ("" if np.isfinite(x).all() else "  NOT FINITE")
        rows.append(f"  {path:<72} {tuple(leaf.shape)!s:<20} {leaf.dtype!s:<9} {_size(num_bytes(leaf)):>10}{norm}")
    rows.append("sums")
    rows += [f"  {part:<40} {_size(count):>10}" for part, count in sorted(sums.items(), key=lambda item: -item[1])]
    rows.append(f"  {'all':<40} {_size(sum(sums.values())):>10}")
    kept = {key: value for key, value in found.metadata.items() if key != "config"}
    # Of a fingerprint the first digits are the sum over all records.
    kept["fingerprints"] = {spec: {key: str(value)[:16] for key, value in told.items()}
                            for spec, told in kept.get("fingerprints", {}).items()}  # fmt: skip
    rows.append("metadata " + json.dumps(kept, indent=2, sort_keys=True))
    rows.append("config " + json.dumps(found.metadata.get("config", {}), indent=2, sort_keys=True))
    return "\n".join(rows)


def compare(one: Opened, two: Opened, with_values: bool) -> list[str]:
    """A line for each leaf, config value and version that differs; [] for checkpoints that are alike."""
    lines = []
    for line in difference(one.leaves, two.leaves):
        line = line.replace("missing in the checkpoint:", "only in the first: ")
        line = line.replace("left over in the checkpoint:", "only in the second:")
        lines.append("leaf     " + line.replace("model has", "first").replace("checkpoint has", "second"))
    pairs = [config_lib.from_dict(x.metadata.get("config", {})) for x in (one, two)]
    lines += [f"config   {line}" for line in config_lib.changes(*pairs)]
    prints = [x.metadata.get("fingerprints", {}) for x in (one, two)]
    lines += [f"data     {line}" for line in fingerprint.changes(*prints)]
    versions = [x.metadata.get("versions", {}) for x in (one, two)]
    lines += [
        f"version  {name}: {versions[0].get(name)} → {versions[1].get(name)}"
        for name in sorted({*versions[0], *versions[1]})
        if versions[0].get(name) != versions[1].get(name)
    ]
    if with_values:
        first, second = one.values(), two.values()
        for path in sorted(first.keys() & second.keys()):
            x, y = first[path].astype(np.float64), second[path].astype(np.float64)
            if x.shape == y.shape and not np.array_equal(x, y, equal_nan=True):
                apart = np.linalg.norm(x - y) / max(np.linalg.norm(x), 1e-30)
                lines.append(f"value    {path}: relative distance {apart:.3e}, at most {np.abs(x - y).max():.3e}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Prints; returns the exit code: 1 when two differ, 2 when one cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN[@STEP]")
    parser.add_argument("--values", action="store_true")
    options = parser.parse_args(argv)
    if len(options.runs) > 2:
        parser.error("one checkpoint to describe, or two to compare")
    try:
        found = [Opened(spec) for spec in options.runs]
        if len(found) == 1:
            print(describe(found[0], found[0].values() if options.values else None))
            return 0
        lines = compare(*found, options.values)
    except (config_lib.ConfigError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([f"first:  {found[0].name}", f"second: {found[1].name}", *(lines or ["nothing differs"])]))
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
