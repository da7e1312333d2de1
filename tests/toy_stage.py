"""A stage small enough to compile in a second: logistic regression on data that is a function of the step."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import common
from mser_jax import storage
from mser_jax.config import DataSize
from mser_jax.models.layers import Linear
from mser_jax.parallel import sharding

DIM, CLASSES, BATCH = 128, 4, 16


class ToyModel(nnx.Module):
    def __init__(self, rngs):
        self.hidden = Linear(DIM, DIM, rngs=rngs)
        self.head = Linear(DIM, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x)))


class Batches:
    def __init__(self, stage, start, mesh):
        self.stage, self.step, self.mesh, self.closed = stage, start, mesh, False

    def __next__(self):
        rng = np.random.default_rng([7, self.step])
        labels = rng.integers(0, CLASSES, BATCH)
        x = rng.normal(size=(BATCH, DIM)).astype(np.float32)
        x[np.arange(BATCH), labels] += 4.0
        if self.step in self.stage.poison:
            x[3, 0] = np.nan
        if self.step in self.stage.unreachable:
            raise storage.StorageError("Record u-7 of toys cannot be read, 4 attempts in 20 s: TimeoutError: timed out")
        batch = {"x": x, "label": labels.astype(np.int32), "step": np.full(BATCH, self.step, np.int32)}
        batch["valid"] = np.full(BATCH, self.step not in self.stage.empty)
        if self.stage.on_batch:
            self.stage.on_batch(self.step)
        self.step += 1
        return jax.device_put(batch, sharding.batch_sharding(self.mesh))

    def check(self, batch):
        self.stage.events.append(("check", int(np.asarray(batch["step"])[0])))

    def close(self):
        self.closed = True


class Accuracy:
    name = "toy"

    def __init__(self, stage):
        self.stage = stage

    def run(self, params, step, run, folder):
        self.stage.events.append(("evaluate", step))
        if self.stage.broken_evaluator:
            raise RuntimeError("the evaluator is broken")
        yield "norm", float(jnp.linalg.norm(params["head/kernel"]))


class ToyStage:
    def __init__(self, poison=(), on_batch=None, broken_evaluator=False, empty=(), unreachable=()):
        self.empty, self.unreachable = set(empty), set(unreachable)
        self.poison, self.on_batch, self.broken_evaluator = set(poison), on_batch, broken_evaluator
        self.events = []

    def data_size(self):
        return DataSize(examples=160, hours=0.1)

    def build(self, rngs):
        return ToyModel(rngs)

    def pretrained(self, abstract):
        return {}

    def prepare(self, params, mesh, stop):
        pass

    def loss(self, model, batch, rng):
        x = batch["x"] + 0.01 * jax.random.normal(rng, batch["x"].shape)
        logp = jax.nn.log_softmax(model(x))
        logp = jnp.where(batch["valid"][:, None], logp, 0)
        loss = -jnp.sum(logp * jax.nn.one_hot(batch["label"], CLASSES))
        weight = batch["valid"].sum(dtype=jnp.float32)
        return loss, weight, {"examples": weight, "audio_seconds": 2.0 * weight, "unreadable": BATCH - weight}

    def batches(self, start, mesh):
        return Batches(self, start, mesh)

    def evaluators(self, mesh):
        return [Accuracy(self)]

    def flops(self, batch):
        return 6.0 * BATCH * DIM * (DIM + CLASSES)

    def names(self, batch):
        return [f"utterance-{int(step)}-{row}" for row, step in enumerate(batch["step"])]

    def metadata(self):
        return {"toy": True}

    def describe(self):
        return "toy data"


def toy_config(**sections):
    config = common.base()
    config.stage = "toy"
    config.train.budget, config.train.batch_size = "12 steps", BATCH
    config.optim.warmup = "2 steps"
    config.checkpointing.every, config.telemetry.log_every = "4 steps", 3
    config.mesh.replicated_limit = 0.2
    config.evaluate = {"every": ""}
    for name, values in sections.items():
        config[name].update(values)
    return config
