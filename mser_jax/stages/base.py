"""What the loop asks of a stage and of an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from mser_jax.config import DataSize

Batch = dict[str, jax.Array]
Params = dict[str, jax.Array]
# (parameters, device batch with waveform and num_samples, or states and num_frames) -> probabilities f32 [B, labels]
Scorer = Callable[[Params, Batch], jax.Array]


class BatchIterator(Protocol):
    """Global device batches from a given step on; `close` ends its worker processes and threads."""

    def __next__(self) -> Batch: ...

    def check(self, batch: Batch) -> None:
        """Counts the records of `batch` that could not be decoded; called where the metric `unreadable` is not 0.

        Raises:
            TooManyUnreadableError: there are too many by now; on every process at the same batch.
        """

    def close(self) -> None:
        """Ends workers."""


class Evaluator(Protocol):
    """Scores parameters. The loop logs an evaluator that fails and goes on."""

    name: str

    def run(self, params: Params, step: int, run: epath.Path, folder: epath.Path) -> Iterator[tuple[str, float]]:
        """Yields (metric name, value); may write files below `folder`. `run` is the workdir that `params` come from."""


class Stage(Protocol):
    """One kind of training: its model, loss, data and evaluators, built from a config."""

    def data_size(self) -> DataSize:
        """Examples and hours in one pass over the training data."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module, freshly initialised (traceable)."""

    def pretrained(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """Loaded weights for those of the parameters `abstract` that do not start from `build`; {} for none."""

    def prepare(self, params: Params, mesh: Mesh, stop: Callable[[], bool]) -> None:
        """Called once, with the parameters a run starts from, before its first batch or evaluation.

        What takes long here asks `stop` at times, and raises preemption.Preempted when it says so. `params` are to be
        used within the call only: the first step gives their memory away.
        """

    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Mapping[str, Any]]:
        """(sum of losses, weight, metrics) of a global batch; the step divides once.

        Metrics hold at least `examples` (valid rows) and `audio_seconds`.
        """

    def batches(self, start: int, mesh: Mesh) -> BatchIterator:
        """Training batches of steps start, start + 1, …: a function of config and step alone."""

    def batch_spec(self, mesh: Mesh) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of the largest training batch."""

    def evaluators(self, mesh: Mesh) -> Sequence[Evaluator]:
        """What is run every `evaluate.every` and at the end."""

    def scorer(self, labels: Sequence[str], *, languages: Sequence[str], mesh: Mesh) -> Scorer:
        """What tells any labels' probabilities; prompts are in `languages` (none: those of `evaluate`).

        Raises:
            ConfigError: it cannot be asked for these labels or in these languages.
        """

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Analytic forward + backward FLOPs of a batch of these shapes."""

    def names(self, batch: Batch) -> list[str]:
        """Ids of the utterances of a batch, for messages."""

    def metadata(self) -> dict[str, Any]:
        """JSON that evaluation of a checkpoint needs beside the config (vocabularies, what was trained on)."""

    def describe(self) -> str:
        """A few lines on the data, for the log."""
