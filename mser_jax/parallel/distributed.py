"""Several processes as one run: how they find each other, that they run the same thing, and how they part.

A process is one host's: `jax.distributed` joins them through a coordinator on process 0. Who they are comes from the
command line (or MSER_COORDINATOR, MSER_NUM_PROCESSES, MSER_PROCESS_ID), else from what started them: a TPU VM or TPU
pods on GKE (as jax finds them), Slurm, or a JobSet. Without any of these a run is one process.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import jax
from absl import logging

# The key-value store of the coordinator has no public name yet; Orbax takes it from here too.
from jax._src import distributed as jax_distributed
from ml_collections import ConfigDict

from mser_jax import config as config_lib
from mser_jax import has_tpu_chips

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
# What xpk and MaxText set in a JobSet's pods; launch/gke.yaml does too.
_JOBSET = ("JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_INDEX", "JOB_COMPLETION_INDEX", "PROCESSES_IN_JOB",
           "JAX_PROCESS_COUNT")  # fmt: skip
# Those of a step: a batch script that forgets srun has the other variables, and would wait for nobody.
_SLURM = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
# Seconds that processes which fail together get to say so, before the first to go ends the others.
_PARTING_SECONDS = 5
# Numbers what process 0 says: a key is written once.
_SAYINGS = itertools.count()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Who this process is among how many. None: jax asks the TPU's metadata.

    local_device_ids: the devices of this process where several share a host; None is all that the host has.
    """

    launcher: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None


def detect(environ: Mapping[str, str], port: int, *, has_tpu: bool) -> Cluster | None:
    """The cluster that `environ` tells of, or None for a process that is alone.

    Args:
        environ: of the process; MSER_* first.
        port: of the coordinator, where the environment names none.
        has_tpu: this host has TPU chips and the libtpu to use them.

    Raises:
        ConfigError: half of what is needed is there; the message names the other half.
    """
    explicit = {key: environ.get(f"MSER_{key}", "") for key in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID")}
    if any(explicit.values()):
        _need("MSER_COORDINATOR, MSER_NUM_PROCESSES and MSER_PROCESS_ID (or flags)", explicit, "MSER_")
        address = _with_port(explicit["COORDINATOR"], port)
        count, index = (_integer(f"MSER_{key}", explicit[key]) for key in ("NUM_PROCESSES", "PROCESS_ID"))
        return _checked(Cluster("explicit", address, count, index))
    if has_tpu:
        return Cluster("tpu")
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environ:
        return _slurm(environ, port)
    if "JOBSET_NAME" in environ and "JOB_COMPLETION_INDEX" in environ:
        found = {key: environ.get(key, "") for key in _JOBSET}
        _need("A JobSet", found)
        index = int(found["JOB_INDEX"]) * int(found["PROCESSES_IN_JOB"]) + int(found["JOB_COMPLETION_INDEX"])
        first = "{JOBSET_NAME}-{REPLICATED_JOB_NAME}-0-0.{JOBSET_NAME}".format(**found)
        return _checked(Cluster("jobset", f"{first}:{port}", int(found["JAX_PROCESS_COUNT"]), index))
    return None


def _slurm(environ: Mapping[str, str], port: int) -> Cluster:
    """One task a node has all of its devices; of several tasks on a node, each has one."""
    found = {key: environ.get(key, "") for key in _SLURM}
    _need("Slurm (start the command with srun)", found)
    shared = re.split(r"[(,]", found["SLURM_STEP_TASKS_PER_NODE"])[0] != "1"
    devices = (int(found["SLURM_LOCALID"]),) if shared else None
    address = f"{first_node(found['SLURM_STEP_NODELIST'])}:{port}"
    return _checked(Cluster("slurm", address, int(found["SLURM_NTASKS"]), int(found["SLURM_PROCID"]), devices))


def first_node(nodes: str) -> str:
    """The first of a Slurm node list: 'gpu[007-009,12],x3' -> 'gpu007'."""
    prefix, numbers = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes).groups()
    return prefix + (numbers or "")


def _need(what: str, found: Mapping[str, str], prefix: str = "") -> None:
    lacking = [prefix + key for key, value in found.items() if value == ""]
    if lacking:
        raise config_lib.ConfigError(f"{what}: {', '.join(lacking)} not set, so this process does not know its place")


def _integer(name: str, text: str) -> int:
    if not text.strip().isdigit():
        raise config_lib.ConfigError(f"{name}={text!r}: expected a number")
    return int(text)


def _with_port(address: str, port: int) -> str:
    return address if re.search(r":\d+$", address) else f"{address}:{port}"


def _checked(cluster: Cluster) -> Cluster:
    if not 0 <= cluster.process_id < cluster.num_processes:
        raise config_lib.ConfigError(
            f"{cluster.launcher}: this is process {cluster.process_id} of {cluster.num_processes}; they count from 0"
        )
    return cluster


def has_tpu() -> bool:
    """Whether this host has TPU chips that jax will use."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    return "tpu" in platforms and has_tpu_chips() and importlib.util.find_spec("libtpu") is not None


@contextlib.contextmanager
def joined(config: ConfigDict, **flags: str) -> Iterator[None]:
    """The processes of a run as one, for as long as the block lasts; nothing for a run of one process.

    Enter it before jax is used. Leaving it, every process waits for the others; after an error, a few seconds.

    Args:
        config: with a section `distributed`; all of it must be the same everywhere.
        flags: `coordinator`, `num_processes`, `process_id` as text, '' for what the environment says; `workdir` and
            others, which must be the same everywhere.

    Raises:
        ConfigError: they do not find each other in time, or do not run the same thing (who differs, and in what).
    """
    place = ("coordinator", "num_processes", "process_id")
    environ = {**os.environ, **{f"MSER_{key.upper()}": flags[key] for key in place if flags.get(key)}}
    cluster = detect(environ, config.distributed.port, has_tpu=has_tpu())
    if cluster is None:
        yield
        return
    _initialize(cluster, config.distributed)
    try:
        facts = {"code": code_hash(), "python": platform.python_version(), **_versions()}
        facts |= {f"config.{key}": repr(value) for key, value in config_lib.leaves(config)}
        facts |= {f"--{key}": value for key, value in flags.items() if key not in place}
        names = refuse_differences(facts, config.distributed.initialization_timeout)
        logging.info("Started by %s, coordinator %s\n%s", cluster.launcher,
                     jax_distributed.global_state.coordinator_address, host_table(names, facts["code"]))  # fmt: skip
        yield
    except BaseException as error:
        _part(error)
        raise
    # Whoever is ready first waits here, e.g. while process 0 writes plots.
    jax.distributed.shutdown()


def _initialize(cluster: Cluster, settings: ConfigDict) -> None:
    # Firewalls are opened for one port: jax's own choice has changed from one release to the next.
    os.environ.setdefault("JAX_COORDINATOR_PORT", str(settings.port))
    known = cluster.num_processes is not None
    seconds = settings.initialization_timeout
    missing = (
        f"Process {cluster.process_id} of {cluster.num_processes} ({socket.gethostname()}, {cluster.launcher}) did not "
        f"meet the others at {cluster.coordinator} within {seconds} s. Are all of them started, is the address that of "
        f"process 0, is its port open between hosts and used by nobody else (--config.distributed.port)?"
    )
    # jax ends the process itself, soon after this and without a word on what to look at.
    warning = threading.Timer(seconds, logging.error, (missing,))
    warning.daemon = True
    warning.start()
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.num_processes,
            process_id=cluster.process_id,
            local_device_ids=cluster.local_device_ids,
            cluster_detection_method="deactivate" if known else None,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=settings.heartbeat_timeout,
            shutdown_timeout_seconds=settings.shutdown_timeout,
        )
    except Exception as error:
        raise config_lib.ConfigError(f"{missing} {str(error)[:300]}") from error
    finally:
        warning.cancel()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def code_hash() -> str:
    """Twelve hex digits over every source file of the package, committed or not."""
    root = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".toml", ".tsv")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def refuse_differences(facts: Mapping[str, str], timeout: float, topic: str = "start") -> list[str]:
    """The host names of all processes, if `facts` are the same on all of them; once for each `topic`.

    Through the coordinator's key-value store: nothing is compiled, no device is used.

    Raises:
        ConfigError: what differs, and where; the same message everywhere.
    """
    state = jax_distributed.global_state
    if state.client is None:
        return [socket.gethostname()]
    mine = json.dumps({"host": socket.gethostname(), "facts": dict(facts)})
    milliseconds, folder = round(timeout * 1000), f"mser_jax/{topic}"
    state.client.key_value_set(f"{folder}/{state.process_id}", mine)
    try:
        if state.process_id == 0:
            everyone = [
                json.loads(state.client.blocking_key_value_get(f"{folder}/{number}", milliseconds))
                for number in range(state.num_processes)
            ]
            names = [one["host"] for one in everyone]
            verdict = {"names": names, "lines": differences([one["facts"] for one in everyone], names)}
            state.client.key_value_set(f"{folder}/verdict", json.dumps(verdict))
        verdict = json.loads(state.client.blocking_key_value_get(f"{folder}/verdict", milliseconds))
    except jax.errors.JaxRuntimeError as error:
        raise config_lib.ConfigError(
            f"Process {state.process_id}: not all processes said what they run within {timeout} s: {str(error)[:300]}"
        ) from error
    if verdict["lines"]:
        raise config_lib.ConfigError(
            "The processes of this run do not run the same thing:\n  " + "\n  ".join(verdict["lines"]) + "\n"
            "Give every host the same command and the same code"
        )
    return verdict["names"]


def said_by_first(text: str, timeout: float) -> str:
    """Return what process 0 gives as `text`, on every process; those wait for it. All call it, in the same order.

    Through the coordinator's key-value store, as `refuse_differences`.

    Raises:
        ConfigError: process 0 ended, or said nothing within `timeout` seconds.
    """
    state = jax_distributed.global_state
    if state.client is None:
        return text
    key = f"mser_jax/said/{next(_SAYINGS)}"
    try:
        if state.process_id == 0:
            state.client.key_value_set(key, json.dumps(text))
        return json.loads(state.client.blocking_key_value_get(key, round(timeout * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise config_lib.ConfigError(
            f"Process {state.process_id}: process 0 did not say how to go on: {str(error)[:300]}"
        ) from error


def differences(everyone: Sequence[Mapping[str, str]], names: Sequence[str]) -> list[str]:
    """'key: VALUE on process 3 (host), … on the other 7' for each key that not all have alike; [] when all do.

    The odd ones out are those that differ from most (of as many on both sides: from process 0).
    """
    lines = []
    for key in sorted(set().union(*everyone)):
        values = [facts.get(key, "nothing") for facts in everyone]
        usual, count = collections.Counter(values).most_common(1)[0]
        if count == len(values):
            continue
        odd = [f"{value} on process {number} ({names[number]})" for number, value in enumerate(values)
               if value != usual]  # fmt: skip
        more = f" and {len(odd) - 8} more" if len(odd) > 8 else ""
        lines.append(f"{key}: {', '.join(odd[:8])}{more}; {usual} on {count} of {len(values)}")
    return lines


def host_table(names: Sequence[str], code: str) -> str:
    """One line a process: index, host name, its devices, code."""
    lines = [f"{'process':>7}  {'host':<32}  {'devices':<28}  code"]
    for number, name in enumerate(names):
        mine = [device for device in jax.devices() if device.process_index == number]
        kinds = collections.Counter(device.device_kind for device in mine)
        devices = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
        mark = " ←" if number == jax.process_index() else ""
        lines.append(f"{number:>7}  {name:<32}  {devices:<28}  {code}{mark}")
    return "\n".join(lines)


def _part(error: BaseException) -> None:
    """Lets processes that end together end in peace; one that ends alone goes at once, and the others notice."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        # Agreed upon: a preemption is everybody's.
        jax.distributed.shutdown()
        return
    client = jax_distributed.global_state.client
    try:
        client.wait_at_barrier("mser_jax/parting", _PARTING_SECONDS * 1000)
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError:
        # Waiting any longer would keep the others in a collective that this process never joins.
        is_told = isinstance(error, (config_lib.ConfigError, OSError))
        logging.error("Process %d ends alone: %s: %s", jax_distributed.global_state.process_id,
                      type(error).__name__, error, exc_info=not is_told)  # fmt: skip
        logging.flush()
        sys.stderr.flush()
        os._exit(1)
