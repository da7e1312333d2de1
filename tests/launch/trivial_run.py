"""Stands for a training run in tests of the sweep: notes that it ran, obeys its seed, and finishes."""

import json
import os
import sys
import time
import uuid

from etils import epath

from mser_jax import storage

options = dict(argument.removeprefix("--").partition("=")[::2] for argument in sys.argv[1:])
workdir, seed = epath.Path(options["workdir"]), int(options["config.seed"])
ran = len(list(workdir.glob("ran-*")))
storage.replace(workdir / f"ran-{uuid.uuid4().hex}", str(os.getpid()))
time.sleep(0.3)
if seed == 75 and not ran:
    sys.exit(75)
if seed == 3:
    sys.exit(3)
if seed == 60:
    time.sleep(60)
macro = {"ua": 0.5 + seed / 1000, "wa": 0.4, "macro_f1": 0.3, "ece": None}
results = {"macro": {"zero_shot": macro, "all": {}}}
storage.replace(workdir / "evaluations" / "zero_shot" / "step_00000009" / "results.json", json.dumps(results))
config_hash = json.loads((workdir / "row.json").read_text())["config_hash"]
storage.replace(workdir / "finished.json", json.dumps({"step": 9, "config_hash": config_hash}))
