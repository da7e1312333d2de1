"""A training run → Hugging Face directories: python tools/export_hf.py WORKDIR OUT [--step=N] [--adapters].

  OUT/speech_encoder/, OUT/text_encoder/, OUT/llm/
      the towers that the run has, LoRA merged into them, for transformers' from_pretrained. A tower that began from
      pretrained weights takes along what stood beside them (a decoder, the tokenizer).
  OUT/speech_encoder_adapter/, …     with --adapters: the LoRA of each tower that has one, for peft's from_pretrained.
      Then OUT/speech_encoder/ is the base without it, and is left out where the base is as it was pretrained.
  OUT/mser_jax.safetensors           everything else: layer mix, Q-Former, projections, heads; LoRA merged.
  OUT/mser_jax.json                  what each of these tensors is; config, architectures, temperature and versions.

A tower that transformers has no words for (conv_strides (2, 2) in a Whisper-shaped one) goes into the third file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from mser_jax import checkpoint, optim
from mser_jax import config as config_lib
from mser_jax.checkpoint import Checkpoints
from mser_jax.evaluation import calibration
from mser_jax.models import lora
from mser_jax.pretrained import adapters, export, load
from mser_jax.pretrained.keymap import KeyMap, PretrainedError
from mser_jax.run import locate
from mser_jax.stages import towers
from mser_jax.storage import absolute

Flat = dict[str, jax.Array]

# What a tensor of the rest is: the first regex that is found in its path, and its layout by the path's last element.
_NO_CLASS = "of mser_jax/models, which transformers has no class for"
# fmt: off
MEANINGS = (
    (r"^layer_mix$", "logits over the encoder's hidden states 0 … L: each state is layer-normalised without parameters "
                     "(eps 1e-5), then they are summed, weighted by the softmax of the logits"),
    (r"^log_logit_scale$", "natural logarithm of the inverse temperature, which is at most model.logit_scale_max"),
    (r"^qformer/queries$", "learned queries [queries, width], what the Q-Former's blocks start from"),
    (r"^qformer/memory_norm/", "Q-Former: layer norm of the mixed hidden states, which the queries then read"),
    (r"^qformer/layers/", "Q-Former block (pre-norm): self-attention, cross-attention to the frames, MLP (exact GELU)"),
    (r"^qformer/final_norm/", "Q-Former: layer norm of its output"),
    (r"^pool/", "score of each query; their softmax over queries weighs the mean that is the utterance"),
    (r"^speech_projection/", "pooled queries → embedding, then divided by its Euclidean norm"),
    (r"^text_projection/", "mean of the text tower's output over tokens → embedding, then divided by its norm"),
    (r"^adversary/", "classifier of a nuisance on the embedding, which trained against it; not for inference"),
    (r"^speech_encoder/", f"speech encoder {_NO_CLASS}"),
    (r"^text_encoder/", f"text encoder {_NO_CLASS}"),
    (r"^llm/", f"language model {_NO_CLASS}"),
)
# fmt: on
LAYOUTS = {
    "kernel": {2: "[in, out], y = x @ kernel + bias", 3: "[size, in, out], convolution over time"},
    "bias": {1: "[out], or of a norm"},
    "scale": {1: "[width], of a norm"},
    "table": {2: "[rows, width], an embedding"},
}


class Run:
    """A checkpoint, read without its model: metadata, towers' configs, parameters on this machine's CPU."""

    def __init__(self, workdir: str, step: int | None) -> None:
        where = locate(workdir, step)
        self.workdir = where.run
        checkpoints = Checkpoints(where.checkpoints)
        self.step = checkpoints.latest if where.step is None else where.step
        self.metadata = checkpoints.metadata(self.step)
        if "architecture" not in self.metadata:
            raise checkpoint.CheckpointError(f"{where.run}: its metadata lacks the architecture: an older version's")
        self.config: ConfigDict = config_lib.from_dict(self.metadata["config"])
        self.towers = towers.make(self.config, self.metadata["architecture"])
        device = SingleDeviceSharding(jax.devices("cpu")[0])
        abstract = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for path, leaf in checkpoints.shapes(self.step).items()
        }
        self.params: Flat = checkpoints.restore_params(abstract, self.step)
        self.alpha = float(self.config.lora.alpha)

    def tower(self, name: str) -> Flat:
        """Parameters of a tower by paths relative to it, its adapters among them."""
        prefix = f"{name}/"
        return {path.removeprefix(prefix): value for path, value in self.params.items() if path.startswith(prefix)}

    def is_as_pretrained(self, name: str) -> bool:
        """Whether the tower began from pretrained weights, and nothing of it but its adapters has learned."""
        multipliers = optim.group_of(list(self.params), self.config.optim.groups)
        base = [path for path in self.params if path.startswith(f"{name}/") and not lora.is_adapter(path)]
        return name in self.metadata["pretrained"] and not any(multipliers[path] for path in base)


def write_tower(run: Run, name: str, out: Path, base: str, as_adapters: bool) -> dict[str, Any]:
    """Writes one tower; returns what mser_jax.json says of it.

    Raises:
        PretrainedError: transformers cannot express it, or `base` cannot be read or does not fit.
    """
    cfg, params = run.towers[name], run.tower(name)
    family: ModuleType = importlib.import_module(f"mser_jax.pretrained.{cfg.family}")
    table, plain = family.key_map(cfg), lora.split(params)[0]
    folder = load.resolve(base) if base else None
    hf = family.config_to_hf(cfg) if folder is None else load.read_config(folder)
    adapted = len(plain) < len(params)
    said = {"class": (hf.get("architectures") or ["AutoModel"])[0], "base": base, "lora": "none"}
    if adapted and as_adapters:
        untouched = bool(base) and run.is_as_pretrained(name)
        prefix = _prefix(table, folder, plain)
        adapters.save(
            out / f"{name}_adapter", params, table, alpha=run.alpha, prefix=prefix,
            base_model=base if untouched else str((out / name).resolve()),
            task_type="CAUSAL_LM" if name == "llm" else None,
        )  # fmt: skip
        said |= {"lora": f"{name}_adapter"}
        if untouched:
            return said
    elif adapted:
        plain, said["lora"] = lora.merge(params, run.alpha), "merged"
    export.save(out / name, plain, table, hf, base=folder)
    if name == "text_encoder" and (folder is None or run.config.text_encoder.tokenizer):
        _save_tokenizer(towers.tokenizer_name(run.config), out / name)
    return said | {"directory": name}


def _prefix(table: KeyMap, folder: Path | None, params: Flat) -> str:
    """What stands before the names in the class that the base is loaded with."""
    if folder is None:
        return table.prefixes[0]
    return load.match(folder, table, {path: value.shape for path, value in params.items()})[0]


def _save_tokenizer(name: str, folder: Path) -> None:
    from transformers import AutoTokenizer, ByT5Tokenizer  # takes seconds

    tokenizer = ByT5Tokenizer() if name == "byt5" else AutoTokenizer.from_pretrained(name, local_files_only=True)
    tokenizer.save_pretrained(folder)


def describe(path: str, value: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and meaning of a tensor of the rest."""
    meaning = next((text for pattern, text in MEANINGS if re.search(pattern, path)), "a parameter of the network")
    last, stacked = path.rpartition("/")[2], "/layers/" in path and not re.search(r"/layers/\d", path)
    layout = LAYOUTS.get(last, {}).get(value.ndim - stacked, "")
    what = "; ".join(filter(None, [meaning, layout, "leading axis: layers" if stacked else ""]))
    return {"shape": list(value.shape), "dtype": value.dtype.name, "what": what}


def export_run(
    workdir: str, out: Path, step: int | None = None, as_adapters: bool = False, bases: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes all of it below `out`, mser_jax.json last; returns what that holds.

    Args:
        workdir: of the training run.
        out: must not exist, or be empty.
        step: of the checkpoint; the newest by default.
        as_adapters: LoRA as PEFT directories, instead of merged.
        bases: {tower: directory or hub id} instead of those the run began from; "" for a tower by itself.

    Raises:
        CheckpointError, ConfigError: the run cannot be read.
        PretrainedError: `out` is not empty, or a base cannot be read or does not fit.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PretrainedError(f"{out} is there already and not empty: name another")
    run = Run(workdir, step)
    bases = dict(run.metadata["pretrained"]) | dict(bases or {})
    if unknown := sorted(set(bases) - set(run.towers)):
        raise PretrainedError(f"--base: no tower {unknown}; there are {sorted(run.towers)}")
    written: dict[str, Any] = {}
    for name, cfg in run.towers.items():
        base = bases.get(name, "")
        try:
            if not base:
                importlib.import_module(f"mser_jax.pretrained.{cfg.family}").config_to_hf(cfg)
        except PretrainedError as error:
            written[name] = {"not_expressible": str(error)}
            continue
        written[name] = write_tower(run, name, out, base, as_adapters)
    done = tuple(f"{name}/" for name, said in written.items() if "not_expressible" not in said)
    rest = {path: value for path, value in run.params.items() if not path.startswith(done)}
    rest = {path: np.asarray(value) for path, value in lora.merge(rest, run.alpha).items()}
    content = {
        "stage": run.config.stage,
        "step": run.step,
        "towers": written,
        "calibration": calibration.at_step(run.workdir, run.step),
        "tensors": {path: describe(path, value) for path, value in sorted(rest.items())},
        **{key: value for key, value in run.metadata.items() if key != "versions"},
        "versions": {"trained": run.metadata.get("versions", {}), "exported": checkpoint.versions()},
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(rest, out / "mser_jax.safetensors", metadata={"format": "np"})
    (out / "mser_jax.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def main() -> int:
    """0 when all is written, 1 with the reason on stderr when not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", metavar="WORKDIR", help="of a training run, or a checkpoint in it")
    parser.add_argument("out", metavar="OUT", type=lambda path: Path(absolute(path)))
    parser.add_argument("--step", type=int, help="default: the newest checkpoint")
    parser.add_argument("--adapters", action="store_true", help="LoRA as PEFT directories instead of merged")
    parser.add_argument(
        "--base", action="append", default=[], metavar="TOWER=DIR",
        help="where the weights that a tower began from lie now; 'TOWER=' writes it by itself",
    )  # fmt: skip
    args = parser.parse_args()
    if wrong := [text for text in args.base if "=" not in text]:
        parser.error(f"--base={wrong[0]}: expected TOWER=DIR, e.g. --base=speech_encoder=DIR")
    try:
        bases = dict(text.split("=", 1) for text in args.base)
        content = export_run(args.workdir, args.out, args.step, args.adapters, bases)
    except (checkpoint.CheckpointError, config_lib.ConfigError, PretrainedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, said in content["towers"].items():
        if "not_expressible" in said:
            print(f"{name}: not a model of transformers ({said['not_expressible']}): in mser_jax.safetensors instead")
        else:
            print(f"{name}: {said.get('directory', said['base'])} loads as {said['class']}; LoRA: {said['lora']}")
    print(
        f"{len(content['tensors'])} other tensors: mser_jax.safetensors, described in mser_jax.json. All in {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
