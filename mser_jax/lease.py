"""One program at a time in a workdir: two that write there would overwrite each other's checkpoints and results.

Process 0 takes a claim (claims.py) in `WORKDIR/lease/PROGRAM` and gives it back at the end, however that comes. Where a
run was killed, its successor on the same machine has the workdir at once, as the kernel tells that the process has
ended. On another one it waits until the claim is stale. The runner of a sweep claims a row for itself, in another
folder: the run that it starts there takes this lease as any run does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
from absl import logging
from etils import epath

from mser_jax import claims, config, storage
from mser_jax.parallel import distributed, preemption

POLL_SECONDS = 1.0
# Every process but the first waits for what the first says, as long as that one lives.
_PATIENCE_SECONDS = 7 * 24 * 3600.0


class LeaseError(config.ConfigError):
    """Another program has the workdir; the message says which, and what to do."""


class Lease:
    """A workdir that is ours to write to, as long as `check` says nothing."""

    def __init__(self, workdir: epath.Path, claim: claims.Claim | None, event: claims.Lost | None) -> None:
        """`claim` and the event of `claims.held` are those of process 0, None on the others."""
        self._workdir, self._claim, self._event = workdir, claim, event
        self._asked, self._verdict = 0.0, ""

    @property
    def lost(self) -> bool:
        """Tell whether process 0 knows that another program has the workdir. Cheap: may be asked after each step."""
        if self._claim is None or self._event is None or not self._event.is_set():
            return False
        if time.monotonic() - self._asked > claims.HEARTBEAT_SECONDS:
            self._asked, self._verdict = time.monotonic(), self._ask(silence=False)
        return bool(self._verdict)

    def check(self) -> None:
        """Raise LeaseError where another program may have the workdir. Call it on all processes, before writing."""
        verdict = distributed.said_by_first(self._ask() if self._claim else "", _PATIENCE_SECONDS)
        if verdict:
            raise LeaseError(verdict)

    def _ask(self, *, silence: bool = True) -> str:
        """Tell why the workdir is no longer ours, or "". Beat again where the claim went stale and nobody took it."""
        try:
            if not self._claim.lost and self._event.is_set():
                begun = time.monotonic()
                self._claim.beat()
                self._event.last_beat = begun
            if not self._claim.lost:
                return ""
            holder = claims.who(self._claim.folder)
            return (
                f"{self._workdir} was taken over by {_name(holder)} while this run was silent. It ends here and writes "
                "nothing more; the other goes on from the newest checkpoint"
            )
        except Exception as error:
            # While beats came through a moment ago, a hiccup of storage is none of this one's business.
            if not silence or not self._event.is_set():
                return ""
            return (
                f"{self._workdir}: no sign of life could be written for {claims.STALE_SECONDS:.0f} s, so another may "
                f"have taken it over ({storage.explain(error) or repr(error)}). The same command goes on from the "
                "newest checkpoint"
            )


@contextlib.contextmanager
def held(workdir: epath.Path, program: str = "train", *, stop: Callable[[], bool] = lambda: False) -> Iterator[Lease]:
    """Hold the workdir while the block runs; enter it on all processes of a run alike.

    Args:
        workdir: local or gs://.
        program: those of different names write different files, and do not keep each other out.
        stop: asked while the process waits for a dead owner's claim to go stale.

    Raises:
        LeaseError: another program has it, on all processes with the same message.
        Preempted: told to stop.
    """
    claim, verdict = None, ""
    if jax.process_index() == 0:
        try:
            claim = _take(workdir, workdir / "lease" / program, stop)
        except LeaseError as error:
            verdict = str(error)
        except Exception as error:
            verdict = storage.explain(error) or (
                f"{workdir} cannot be written to: {error!r}. Look at the room and the permissions there "
                "(tools/doctor.py does)"
            )
    verdict = distributed.said_by_first(verdict, _PATIENCE_SECONDS)
    if verdict:
        raise LeaseError(verdict)
    if claim is None:
        yield Lease(workdir, None, None)
        return
    with claims.held(claim) as event:
        yield Lease(workdir, claim, event)


def _take(workdir: epath.Path, folder: epath.Path, stop: Callable[[], bool]) -> claims.Claim:
    """Take the claim; wait for an owner that may be dead, until it beats or is stale."""
    first: claims.Holder | None = None
    while (claim := claims.take(folder, at_once=True)) is None:
        holder = claims.who(folder)
        if holder is None or not holder.alive:
            continue
        if first is None or first.number != holder.number:
            first = holder
            if not holder.elsewhere:
                raise LeaseError(_refusal(workdir, holder))
            logging.warning(
                "%s is leased to %s, last heard of %.0f s ago. Waiting for its next sign of life; without one it is "
                "dead in %.0f s, and this run goes on.", workdir, _name(holder), time.time() - holder.heard,
                holder.heard + claims.STALE_SECONDS - time.time(),
            )  # fmt: skip
        if holder.heard > first.heard:
            raise LeaseError(_refusal(workdir, holder))
        if stop():
            raise preemption.Preempted(0)
        time.sleep(POLL_SECONDS)
    return claim


def _name(holder: claims.Holder | None) -> str:
    if holder is None:
        return "another program"
    if not holder.host:
        return holder.name
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(holder.since))
    return f"process {holder.pid} on {holder.host}, since {since}"


def _refusal(workdir: epath.Path, holder: claims.Holder) -> str:
    return (
        f"{workdir} is in use by {_name(holder)}. Two programs in one workdir overwrite each other: wait for that one, "
        "stop it, or take another --workdir"
    )
