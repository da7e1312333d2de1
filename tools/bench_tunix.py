"""The same decoder layers, batch and optimiser in google-tunix's trainer and in ours, compiled for the same TPUs.

Usage: python tools/bench_tunix.py [--topology=v5p:2x2x4] [--layers=4] [--batch=128] [--tokens=512] [--remat=full,none]
It needs mser_jax[aot] and google-tunix in one environment (`pip install google-tunix`; not one of our requirements).

Layers of Llama 3 8B with a vocabulary of 32,000, causal, AdamW, parameters over `fsdp` of all chips. Tunix's step is
PeftTrainer._train_step with its default loss and its Llama 3, whose arithmetic is in the dtype of its parameters:
float32, as ours are kept, or bfloat16, as its loader gives them, moments too. Ours keeps float32 and computes in
bfloat16. Remat "full" is its RematConfig.DECODER: a layer's input is kept.

One JSON line a row: MiB of temporaries and of arguments as the compiler planned them, GB that a step reads and writes
in HBM (loop bodies as often as they run), TFLOP of its products, all of one chip. Nothing is run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from mser_jax import aot  # first: it sets up the compiler

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mser_jax import optim, state, step
from mser_jax.losses import language_model
from mser_jax.models.llm import LLM, LLMConfig
from mser_jax.models.rope import Rope
from mser_jax.parallel import mesh as mesh_lib
from mser_jax.parallel import sharding
from mser_jax.telemetry import hlo

VOCABULARY = 32_000
REMAT = {"full": "DECODER", "none": "NONE"}


class Ours(nnx.Module):
    """An LLM under the path that the sharding table knows."""

    def __init__(self, cfg: LLMConfig, rngs: nnx.Rngs):
        self.llm = LLM(cfg, dtype=jnp.bfloat16, rngs=rngs)


def ours(devices: Sequence[jax.Device], layers: int, batch: int, tokens: int, remat: str) -> jax.stages.Compiled:
    """Our train step, compiled."""
    cfg = LLMConfig(
        vocab_size=VOCABULARY, num_layers=layers, width=4096, num_heads=32, num_kv_heads=8, head_dim=128,
        mlp_width=14_336, norm_eps=1e-5, rope=Rope(theta=5e5), remat=remat,
    )  # fmt: skip

    def loss(model: Ours, rows: dict[str, jax.Array], _: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        ids, mask = rows["tokens"], rows["mask"]
        hidden, _ = model.llm(model.llm.embed(ids), mask)
        return language_model.cross_entropy(model.llm.logits(hidden[:, :-1]), ids[:, 1:], mask[:, 1:])

    definition = state.define(lambda rngs: Ours(cfg, rngs))
    tx = optim.make_optimizer(
        dict.fromkeys(definition.abstract, 1.0), optax.constant_schedule(1e-5), b1=0.9, b2=0.98, eps=1e-8,
        weight_decay=0.05, clip_norm=0.0,
    )  # fmt: skip
    mesh = mesh_lib.make_mesh(1, -1, devices=devices)
    with jax.set_mesh(mesh):
        abstract = state.abstract_state(
            state.initializer(definition, tx, dict.fromkeys(definition.abstract, 1.0), 0), mesh
        )
        train_step = jax.jit(step.make_train_step(definition, loss, tx), **step.jit_signature(abstract))
        where = sharding.batch_sharding(mesh)
        rows = {"tokens": jax.ShapeDtypeStruct((batch, tokens), np.int32, sharding=where),
                "mask": jax.ShapeDtypeStruct((batch, tokens), np.bool_, sharding=where)}  # fmt: skip
        return train_step.lower(abstract, rows).compile()


def tunix(
    devices: Sequence[jax.Device], layers: int, batch: int, tokens: int, remat: str, dtype: str
) -> jax.stages.Compiled:
    """Tunix's train step, compiled."""
    from tunix.models.llama3 import model as llama
    from tunix.sft import peft_trainer

    mesh = Mesh(np.array(devices).reshape(-1, 1), ("fsdp", "tp"))
    # Its own would leave out activations' shardings, because this process has no TPU.
    llama.shard = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))
    cfg = llama.ModelConfig(
        num_layers=layers, vocab_size=VOCABULARY, embed_dim=4096, hidden_dim=14_336, num_heads=32, head_dim=128,
        num_kv_heads=8, norm_eps=1e-5, rope_theta=500_000, remat_config=llama.RematConfig[REMAT[remat]],
    )  # fmt: skip
    trainer = types.SimpleNamespace(
        gen_model_input_fn=lambda x: x, loss_fn=peft_trainer._default_loss_fn, _lora_enabled=False, _has_aux=False
    )

    def make() -> tuple[nnx.Module, nnx.Optimizer]:
        model = llama.Llama3(cfg, rngs=nnx.Rngs(0))
        graph, params = nnx.split(model)
        model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), params))
        return model, nnx.Optimizer(model, optax.adamw(1e-5, b2=0.98, weight_decay=0.05), wrt=nnx.Param)

    graph, abstract = nnx.split(nnx.eval_shape(make))
    specs = nnx.get_partition_spec(abstract)
    where = jax.tree.map(lambda spec: NamedSharding(mesh, spec or P()), specs, is_leaf=lambda x: isinstance(x, P))
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)

    def train_step(held: Any, rows: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        model, optimizer = nnx.merge(graph, held)
        loss, _, norm = peft_trainer.PeftTrainer._train_step(trainer, model, optimizer, rows)
        return nnx.split((model, optimizer))[1], (loss, norm)

    shapes = {"input_tokens": (np.int32, ()), "input_mask": (np.bool_, ()), "positions": (np.int32, ()),
              "attention_mask": (np.bool_, (tokens,))}  # fmt: skip
    rows = {
        name: jax.ShapeDtypeStruct((batch, tokens, *more), kind, sharding=NamedSharding(mesh, P("fsdp")))
        for name, (kind, more) in shapes.items()
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(mesh)
        jitted = jax.jit(train_step, out_shardings=(where, None), donate_argnums=0)
        return jitted.lower(placed, rows).compile(compiler_options=step.TPU_OPTIONS)


def figures(compiled: jax.stages.Compiled) -> dict[str, float]:
    """What a row says of one chip."""
    memory, work = compiled.memory_analysis(), hlo.Module(compiled.as_text()).work()
    return {
        "temporaries_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "arguments_mib": round(memory.argument_size_in_bytes / 2**20, 1),
        "hbm_gb": round(sum(w.bytes * w.count for w in work) / 1e9, 1),
        "tflop": round(sum(w.flops * w.count for w in work) / 1e12, 2),
    }


def main() -> None:
    """Prints a row after each compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5p:2x2x4")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--remat", default="full,none")
    args = parser.parse_args()
    devices, _ = aot.devices_of(args.topology, 1)
    size = (devices, args.layers, args.batch, args.tokens)
    for remat in args.remat.split(","):
        rows = {"ours": lambda r=remat: ours(*size, r)}
        rows |= {f"tunix {d}": lambda r=remat, d=d: tunix(*size, r, d) for d in ("float32", "bfloat16")}
        for name, compiled in rows.items():
            print(json.dumps({"step": name, "remat": remat, **figures(compiled())}), flush=True)


if __name__ == "__main__":
    main()
