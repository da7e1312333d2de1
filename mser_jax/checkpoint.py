"""Checkpoints: the only file that imports Orbax.

A checkpoint of a step holds two items, `params` (flat {path: array}, all that evaluation reads) and `training` (step,
moments, rng), and JSON metadata: the config, package versions and what the stage wants remembered. With content
"trainable", `params` lacks the frozen leaves; the metadata then has their fingerprint as `frozen`, and whoever restores
brings them along. A save is complete at once or not at all: Orbax renames a finished directory, and on gs://, which has
no renaming, writes `commit_success.txt` into it. What a save left behind that was cut off is ignored. Nothing is read
of a checkpoint before its files were held against their checksums (integrity.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mser_jax import compatibility, integrity, storage
from mser_jax.compatibility import FORMAT_VERSION, CheckpointError, CheckpointMismatch, difference, versions
from mser_jax.parallel import sharding
from mser_jax.state import Flat, TrainState, fingerprint

CONTENTS = ("all", "trainable")
# Makes the leaves of these shapes and shardings as they were when the run began.
Frozen = Callable[[dict[str, jax.ShapeDtypeStruct]], Flat]


def _flat(tree: Any) -> dict[str, Any]:
    return {sharding.path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _items(state: TrainState, params: dict[str, Any]) -> dict[str, Any]:
    # The key is stored as plain uint32: typed keys differ between jax versions, their data does not.
    rng = state.rng
    if isinstance(rng, jax.ShapeDtypeStruct):
        rng = jax.ShapeDtypeStruct((2,), "uint32", sharding=rng.sharding)
    else:
        rng = jax.random.key_data(rng)
    return {
        "params": params,
        "training": {"step": state.step, "optimizer": state.optimizer, "rng": rng},
    }


def _everywhere(holds: bool) -> bool:
    """Whether it holds on all processes."""
    return bool(np.all(multihost_utils.process_allgather(np.array(holds))))


class Checkpoints:
    """The checkpoints of one run, below `directory` (local or gs://), one folder a step."""

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep_latest: int = 2,
        keep_every: int = 0,
        content: str = "all",
        clean: bool = False,
    ) -> None:
        """Keeps the `keep_latest` newest checkpoints, and every `keep_every`-th step for good (0 = none).

        Args:
            directory: of the run's checkpoints.
            keep_latest: see above.
            keep_every: see above.
            content: one of CONTENTS, is what `save` writes; what is read may be of either kind.
            clean: removes what interrupted saves left behind. Only for the run itself: a save that is under way looks
                just like that to whoever else opens the directory.
        """
        self._content, self._frozen = content, ""
        self._under_way: tuple[int, dict[str, Any]] = (-1, {})
        self._checked = set[int]()
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_latest)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._policy, self._clean = policies.AnyPreservationPolicy(keep), clean
        self.directory = storage.absolute(directory)  # Orbax takes no other
        try:
            self._orbax = self._open()
        except Exception as error:
            self._orbax = self._open_without_damaged(error)

    def _open(self) -> ocp.training.Checkpointer:
        context = ocp.Context()
        # Called in the background when all is written, before the save counts as complete. A context is copied deeply:
        # a method's object would be, a function is not.
        context.asynchronous.post_finalization_callback = lambda: self._add_checksums()
        return ocp.training.Checkpointer(
            self.directory, preservation_policy=self._policy, cleanup_tmp_directories=self._clean, context=context
        )

    def _open_without_damaged(self, error: Exception) -> ocp.training.Checkpointer:
        """The run itself goes on without checkpoints whose metadata keep Orbax from opening any; others are told."""
        damaged = integrity.misleading(self.directory) if self.directory.exists() else []
        if not damaged or not self._clean:
            names = ", ".join(map(str, damaged)) or "it names one checkpoint"
            raise CheckpointError(
                f"{self.directory} cannot be opened ({type(error).__name__}: {str(error)[:300]}). "
                + (f"Damaged: {names}; move that away." if damaged else f"If {names}, move that folder away.")
            ) from error
        logging.error("DAMAGED CHECKPOINT: %s: metadata hold other bytes than were saved", ", ".join(map(str, damaged)))
        self._set_aside([int(folder.name) for folder in damaged])
        return self._open()

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        newest = self._orbax.latest
        return None if newest is None else newest.step

    @property
    def steps(self) -> list[int]:
        """All complete steps, in order."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    @property
    def saving(self) -> bool:
        """Whether a save is still being written in the background."""
        return self._orbax.is_saving_in_progress()

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Copies `state` to the host and writes it in the background; waits first for a save still under way.

        `metadata` must be JSON-able. A step that is already saved is left alone.
        """
        step = int(state.step)
        if step == self.latest:
            return
        # Orbax skips a save while another one runs; nobody wants a skipped one.
        self.wait()
        metadata = {**metadata, "format_version": FORMAT_VERSION, "versions": versions()}
        params = state.params
        if self._content == "trainable":
            params = state.trainable
            # What is frozen never changes.
            self._frozen = self._frozen or fingerprint(state.frozen)
            metadata["frozen"] = self._frozen
        self._under_way = step, metadata
        try:
            self._orbax.save_checkpointables_async(step, _items(state, params), force=True, custom_metadata=metadata)
        except Exception as error:
            raise CheckpointError(self._not_saved(error)) from error

    def _add_checksums(self) -> None:
        """Called on process 0, in the thread that writes."""
        step, metadata = self._under_way
        folder = self.directory / str(step)
        if not storage.is_remote(folder):
            unfinished = self.directory.glob(f"{folder.name}.*tmp*")
            folder = max(unfinished, key=lambda path: path.stat().mtime, default=folder)
        integrity.write(folder, metadata)

    def wait(self) -> None:
        """Returns when no save is under way.

        Raises:
            CheckpointError: the save failed (full disk, lost permission, …). Checkpoints before it are intact.
        """
        try:
            self._orbax.wait()
        except Exception as error:
            raise CheckpointError(self._not_saved(error)) from error

    def _not_saved(self, error: Exception) -> str:
        # Orbax has struck those off its list that the failed save was to replace; they are there all the same.
        with contextlib.suppress(Exception):
            self._orbax.reload()
        there = self.steps
        full = re.search("No space left|ENOSPC|EDQUOT|quota|File too large|EFBIG", str(error))
        advice = (
            "There is no room: free some, or keep less (checkpointing.keep_latest, keep_every, content)"
            if full
            else "Look at the permissions and the room there (tools/doctor.py does)"
        )
        return (
            f"Saving below {self.directory} failed: {str(error)[:500]}. {advice}. Complete checkpoints are as they "
            f"were: {there or 'none'}; the same command goes on from the newest of them."
        )

    def restore(self, abstract: TrainState, step: int | None = None, frozen: Frozen | None = None) -> TrainState:
        """The state at `step` (default: newest) in the shapes, dtypes and shardings of `abstract`, on its mesh.

        `frozen` is called for the leaves that an adapters-only checkpoint lacks.

        Raises:
            CheckpointMismatch: lists every leaf that does not fit, or what is frozen is not what it was.
            CheckpointError: nothing there, or it cannot be read.
        """
        step = self._resolve(step)
        saved, lacking = self._split(abstract.params, step)
        items = self._load(step, _items(abstract, saved))
        training, params = items["training"], items["params"] | self._made(lacking, step, frozen)
        return dataclasses.replace(
            abstract,
            step=training["step"],
            trainable={path: params[path] for path in abstract.trainable},
            frozen={path: params[path] for path in abstract.frozen},
            optimizer=training["optimizer"],
            rng=jax.random.wrap_key_data(training["rng"]),
        )

    def resume(
        self,
        abstract: TrainState,
        frozen: Frozen | None = None,
        check: Callable[[dict[str, Any]], None] = lambda metadata: None,
    ) -> TrainState:
        """As `restore`, of the newest checkpoint that can be read: steps are worth less than the run.

        Those that cannot be read, truncated by a crash or a full disk, are told of as errors and moved to
        STEP.damaged once an older one was read (on gs:// they become interrupted saves, which are overwritten). If none
        can be, all are left as they are: more likely then than damage is that the storage cannot be read at present.
        `check` is given the metadata of each before its values are read; what it raises goes on.

        Raises:
            CheckpointMismatch: as `restore`; no older one would fit better.
            CheckpointError: none is there, or none can be read.
        """
        self._there()
        errors: dict[int, CheckpointError] = {}
        for step in reversed(self.steps):
            restored, error = None, None
            try:
                check(self.metadata(step))
                restored = self.restore(abstract, step, frozen)
            except CheckpointMismatch:
                raise
            except CheckpointError as found:
                error = found
            if _everywhere(error is None):
                if errors:
                    self._set_aside(errors)
                    self._orbax.reload()
                return restored
            errors[step] = error or CheckpointError(f"{self.directory / str(step)}: another process cannot read it")
            logging.error("DAMAGED CHECKPOINT: %s", errors[step])
        raise CheckpointError("No checkpoint can be read:\n  " + "\n  ".join(map(str, errors.values())))

    def _set_aside(self, damaged: Iterable[int]) -> None:
        """Moves checkpoints out of the way, so that their steps can be saved again."""
        for step in damaged:
            logging.error("LOST STEPS: going on from an older checkpoint; step %d is no longer one.", step)
            if jax.process_index() == 0 and (kept := integrity.set_aside(self.directory / str(step))):
                logging.error("It is kept as %s.", kept)
        multihost_utils.sync_global_devices("mser_jax/damaged")

    def restore_params(
        self,
        abstract: dict[str, jax.ShapeDtypeStruct],
        step: int | None = None,
        frozen: Frozen | None = None,
        *,
        partial: bool = False,
    ) -> Flat:
        """Only the parameters, likewise; with `partial`, `abstract` may lack some that were saved."""
        step = self._resolve(step)
        if partial:
            return self._load(step, {"params": abstract}, partial=True)["params"]
        saved, lacking = self._split(abstract, step)
        return self._load(step, {"params": saved})["params"] | self._made(lacking, step, frozen)

    def _split(self, abstract: dict[str, Any], step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of the parameters `abstract`: those that are saved, or should be, and those that are left out on purpose."""
        there = self.shapes(step) if "frozen" in self.metadata(step) else abstract
        return tuple(
            {path: leaf for path, leaf in abstract.items() if (path in there) == inside} for inside in (True, False)
        )

    def _made(self, lacking: dict[str, Any], step: int, frozen: Frozen | None) -> Flat:
        """The frozen leaves of an adapters-only checkpoint, held against its fingerprint."""
        if not lacking:
            return {}
        if frozen is None:
            raise CheckpointError(
                f"{self.directory / str(step)} holds only what was trained; {len(lacking)} frozen leaves are not in it"
            )
        made = frozen(lacking)
        told, found = self.metadata(step)["frozen"], fingerprint(made)
        if told != found:
            raise CheckpointMismatch(
                f"{self.directory / str(step)} was trained on other frozen parameters (fingerprint {told}) than those "
                f"that init, init_from and seed give now ({found}, {len(lacking)} leaves, the first: "
                f"{', '.join(sorted(lacking)[:3])}). It fits only what it was trained on: name those directories as "
                "they were then"
            )
        return made

    def shapes(self, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """{path: shape and dtype} of all parameters that were saved, to be restored without their model."""
        saved = _flat(self._read(self._resolve(step)).metadata["params"])
        return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in saved.items()}

    def tree(self, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """{path: shape and dtype} of everything that was saved: params/…, training/…."""
        saved = _flat(dict(self._read(self._resolve(step)).metadata))
        return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in saved.items()}

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """What `save` was given, and `versions`."""
        step = self._resolve(step)
        found = self._read(step).custom_metadata
        if not found:
            raise CheckpointError(self._broken(step, OSError("its metadata is missing or damaged")))
        return found

    def close(self) -> None:
        """Waits for the last save, then lets go."""
        self.wait()
        self._orbax.close()

    def _there(self) -> list[int]:
        if not (there := self.steps):
            raise CheckpointError(f"No complete checkpoint below {self.directory}.")
        return there

    def _resolve(self, step: int | None) -> int:
        """Check that a step exists and is sound; by default the newest. Every process calls it with the same step."""
        there = self._there()
        if step is not None and step not in there:
            raise CheckpointError(f"No checkpoint of step {step} below {self.directory}; there are {there}.")
        step = max(there) if step is None else step
        if step not in self._checked:
            self._check(step)
            self._checked.add(step)
        return step

    def _check(self, step: int) -> None:
        """Raises CheckpointError unless the files are as they were saved, by a program that this one understands."""
        folder = self.directory / str(step)
        try:
            found = integrity.problems(folder, jax.process_index(), jax.process_count())
        except Exception as error:
            found = [f"{type(error).__name__}: {str(error)[:300]}"]
        everywhere = _everywhere(not found)
        told = integrity.metadata(folder, found or ())
        compatibility.refuse_newer(folder, told)
        if found is None and told.get("format_version"):
            found, everywhere = [f"{integrity.FILE} is missing"], False
        if not everywhere:
            lines = found or ["another process found it so"]
            more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
            raise CheckpointError(self._advice(step, f"is damaged: {'; '.join(lines[:3])}{more}"))
        if found is None:
            logging.warning("%s is older than checksums are: whether it is as it was saved cannot be told.", folder)

    def _read(self, step: int) -> Any:
        try:
            return self._orbax.checkpointables_metadata(step)
        except Exception as error:
            raise CheckpointError(self._broken(step, error)) from error

    def _load(self, step: int, abstract: dict[str, Any], *, partial: bool = False) -> dict[str, Any]:
        saved = self._read(step).metadata
        # Orbax logs what it cannot read and goes on with None.
        gone = [name for name in abstract if saved.get(name) is None]
        if gone:
            raise CheckpointError(
                self._broken(step, OSError(f"{', '.join(gone)} missing or damaged, see the log above"))
            )
        pairs = {name: (_flat(abstract[name]), _flat(saved[name])) for name in abstract}
        if partial:
            pairs = {name: (ours, {path: theirs[path] for path in ours if path in theirs})
                     for name, (ours, theirs) in pairs.items()}  # fmt: skip
        lines = [line for ours, theirs in pairs.values() for line in difference(ours, theirs)]
        if lines:
            raise CheckpointMismatch(
                f"{self.directory / str(step)} does not fit this model ({len(lines)} leaves):"
                + compatibility.shown(lines)
            )
        logging.info("Restoring %s", self.directory / str(step))
        try:
            context = ocp.Context()
            context.pytree.loading.partial_load = partial
            with context:
                return self._orbax.load_checkpointables(step, abstract)
        except Exception as error:
            raise CheckpointError(self._broken(step, error)) from error

    def _broken(self, step: int, error: Exception) -> str:
        return self._advice(step, f"cannot be read ({type(error).__name__}: {str(error)[:300]})")

    def _advice(self, step: int, wrong: str) -> str:
        others = [other for other in self.steps if other != step]
        return (
            f"{self.directory / str(step)} {wrong}. "
            f"Other checkpoints there: {others or 'none'}; move this folder away to go on from the newest of them."
        )
