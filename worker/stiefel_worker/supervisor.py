"""Supervision of one attempt: stage, start the child, listen, keep the lease, conclude.

The loop below never waits for long: slow work (staging, uploads) happens on a courier thread, so
that the lease is renewed and a wish to cancel is obeyed whatever else goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from stiefel.specs import SPECS
from stiefel_jobs.errors import StaleFenceError
from stiefel_jobs.records import Claim, NewEvent
from stiefel_jobs.states import State
from stiefel_worker import endings
from stiefel_worker.checkpoints import Checkpointer
from stiefel_worker.children import Child
from stiefel_worker.endings import Failure
from stiefel_worker.journal import Journal
from stiefel_worker.lease import Lease
from stiefel_worker.scratch import Scratch, UnsafePathError
from stiefel_worker.shop import Shop
from stiefel_worker.staging import restore_state, stage_inputs
from stiefel_worker.uploads import Ledger, Snapshot, deliver

TICK_S = 0.05
MEMORY_LOOK_S = 0.25
EXIT_S = 5.0  # from a child's last word to its end
ENOUGH = {State.CANCELLED: 2, State.PAUSED: 1, State.QUEUED: 1}  # the stronger wish wins

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Released(Exception):  # noqa: N818 - not an error: the job is handed back before it ran
    """A wish came before the child was started."""


def supervise(shop: Shop, claim: Claim, draining: threading.Event) -> None:
    """See one claimed attempt through to its end; never raises for the job's own troubles."""
    supervisor = Supervisor(shop, claim, draining)
    name = f"job {claim.job_id} attempt {claim.attempt} fence {claim.fence}"
    log.info("%s: %s claimed", name, claim.method)
    try:
        log.info("%s: %s", name, supervisor.run())
    except StaleFenceError:
        log.warning("%s: stale fence, all dropped", name)
    except Exception:
        log.exception("%s: could not be carried out", name)
        with suppress(StaleFenceError, DBAPIError):  # what cannot be written, the sweeper finds
            supervisor.fail(endings.unforeseen())
    finally:
        supervisor.close()


class Supervisor:
    """One attempt; ``run`` returns a word for the log."""

    def __init__(self, shop: Shop, claim: Claim, draining: threading.Event) -> None:
        assert shop.settings.scratch_dir is not None
        self._shop = shop
        self._claim = claim
        self._draining = draining
        self._scratch = Scratch(shop.settings.scratch_dir / f"{claim.job_id}-{claim.fence}")
        self._courier = ThreadPoolExecutor(1, thread_name_prefix="courier")
        self._lease = Lease(shop.db, shop.settings, claim)
        self._journal = Journal()
        self._ledger = Ledger.resume(shop.blobs, claim.tenant, claim.checkpoint)
        self._checkpoints = Checkpointer(self._scratch, self._courier, self._keep)
        self._starting: Future[Child] | None = None
        self._child: Child | None = None
        self._last: dict[str, Any] | None = None  # the child's last word
        self._failure: Failure | None = None  # why the child had to be killed
        self._expected = 0  # bytes of memory, by the child's own account
        self._goal: State | None = None  # where a wish sends the job
        self._kill_at: float | None = None
        now = time.monotonic()
        self._heard_at = self._looked_at = now
        self._deadline = None if claim.seconds_left is None else now + claim.seconds_left

    def run(self) -> str:
        """Carry out the attempt.

        Raises:
            StaleFenceError: the job has moved on; nothing more may be written for it.
        """
        try:
            self._await(self._courier.submit(self._stage))
            # A fork server that has to be started again takes seconds: that must not cost a lease.
            self._starting = self._courier.submit(
                Child, self._shop.order(self._claim, self._scratch.root)
            )
            self._child = self._await(self._starting)
        except _Released:
            return self._release()
        self._heard_at = time.monotonic()
        while not self._child.silent:
            self._tick()
        return self._conclude()

    def close(self) -> None:
        """Leave nothing behind: no process, no thread, no file."""
        self._checkpoints.close()
        if self._child is not None:
            self._child.kill()
        self._courier.shutdown(wait=True)
        if self._starting is not None and self._starting.exception() is None:
            self._starting.result().close()
        self._scratch.wipe()

    # The loop

    def _tick(self) -> None:
        if self._child is not None:
            message = self._child.receive(TICK_S)
            while message is not None:
                self._hear(message)
                message = self._child.receive(0)
        self._heed()
        self._journal.flush(self._lease.record)
        ending = self._goal is not None or self._last is not None
        self._checkpoints.advance(at_once=ending)
        self._watch()

    def _await(self, future: Future[T]) -> T:
        """Keep the loop going until ``future`` is done."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while not done.wait(TICK_S):
            self._tick()
        return future.result()

    def _hear(self, message: dict[str, Any]) -> None:
        self._heard_at = time.monotonic()
        try:
            self._file(message)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("job %s: protocol broken: %r", self._claim.job_id, error)
            self._give_up(endings.nonsense())

    def _file(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "progress":
            self._journal.progress(message)
        elif kind == "metrics":
            self._journal.metrics(message)
        elif kind == "event":
            self._journal.event(message)
        elif kind == "checkpoint":
            self._checkpoints.offer(int(message["step"]), message["files"])
        elif kind == "memory":
            self._expected = int(message["bytes"])
            self._journal.add(NewEvent("job.memory", {"expected_bytes": self._expected}))
        elif kind == "started":
            self._note_start(message)
        elif kind in {"finished", "stopped", "failed"}:
            self._last = message
            self._kill_by(EXIT_S)
        else:
            raise ValueError(f"unknown message {str(kind)[:40]!r}")

    def _note_start(self, message: dict[str, Any]) -> None:
        data = {"at": float(message["at"]), "pid": int(message["pid"])}
        self._journal.add(NewEvent("job.process", data))

    def _heed(self) -> None:
        state = self._lease.wish()
        settings, limits = self._shop.settings, self._shop.limits
        if state is State.CANCELLING:
            # What asking costs is counted in, so that the caller's wait keeps to the grace.
            self._stop(State.CANCELLED, max(0.0, settings.cancel_grace_s - 0.3))
        elif state is State.PAUSING:
            self._stop(State.PAUSED, limits.pause_s)
        elif self._draining.is_set() and state is not State.FINALIZING:
            self._stop(State.QUEUED, settings.drain_s)

    def _stop(self, goal: State, grace_s: float) -> None:
        if self._goal is not None and ENOUGH[self._goal] >= ENOUGH[goal]:
            return
        self._goal = goal
        if self._child is None:
            raise _Released
        self._child.ask_to_stop()
        self._kill_by(grace_s)

    def _kill_by(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self._kill_at = at if self._kill_at is None else min(self._kill_at, at)

    def _watch(self) -> None:
        if self._child is None or self._child.silent:
            return
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._child.kill()
        if self._deadline is not None and now >= self._deadline:
            self._give_up(endings.past_deadline())
        if now - self._heard_at >= self._shop.settings.hang_s:
            self._give_up(endings.hang(self._shop.settings.hang_s))
        if now - self._looked_at >= MEMORY_LOOK_S:
            self._looked_at = now
            held = self._child.resident_bytes()
            if held > self._shop.memory_bytes:
                self._give_up(endings.over_memory(held, self._shop.memory_bytes))

    def _give_up(self, failure: Failure) -> None:
        self._failure = self._failure or failure
        if self._child is not None:
            self._child.kill()

    # The courier's work

    def _stage(self) -> None:
        claim = self._claim
        self._scratch.make()
        stage_inputs(self._shop.blobs, claim.inputs, self._scratch)
        if claim.checkpoint is not None:
            restore_state(self._shop.blobs, claim.tenant, claim.checkpoint, self._scratch)

    def _keep(self, snapshot: Snapshot) -> None:
        self._lease.checkpoint(snapshot.step, self._ledger.upload(snapshot))

    # The end

    def _conclude(self) -> str:
        self._journal.flush(self._lease.record, at_once=True)
        while self._journal.waiting:
            self._tick()
        last = self._last
        if self._failure is not None:
            return self.fail(self._failure)
        if self._goal is State.CANCELLED:
            return self._release()
        if last is not None and last["type"] == "finished":
            return self._commit(last)
        if last is not None and last["type"] == "failed":
            if last["code"] == endings.TOO_LARGE:
                share = self._shop.share_bytes(self._claim.queue)
                return f"too large here, {self._lease.outgrow(self._expected, share)}"
            self._settle()  # the last good checkpoint is what the caller has left
            return self.fail(endings.reported(last))
        if self._goal is not None:
            return self._release()
        assert self._child is not None
        child, limit = self._child, self._shop.memory_bytes
        for_memory = child.maybe_out_of_memory()
        death = endings.death(child.exit_code, child.peak_bytes, limit, for_memory=for_memory)
        return self.fail(death)

    def _settle(self) -> None:
        """Wait until the newest checkpoint is durable, unless nobody wants it."""
        while self._goal is not State.CANCELLED and not self._checkpoints.settled:
            self._tick()

    def _release(self) -> str:
        """Hand the job back where the wish sends it, with its newest checkpoint durable."""
        self._settle()
        goal = self._goal
        assert goal is not None
        reason = "drained" if goal is State.QUEUED else f"{goal} on request"
        return f"released, {self._lease.release(goal, reason)}"

    def _commit(self, last: dict[str, Any]) -> str:
        spec = SPECS.get(self._claim.method)
        keep = spec is not None and spec.keeps_checkpoints
        if keep:
            self._settle()  # the last checkpoint can be downloaded like those before
        state = self._lease.begin_finalizing()
        if state is not State.FINALIZING:
            self._goal = State.CANCELLED if state is State.CANCELLING else State.PAUSED
            return self._release()
        arguments = (self._shop.blobs, self._claim.tenant, self._scratch, last["deliveries"])
        try:
            artifacts = self._await(self._courier.submit(deliver, *arguments))
        except (KeyError, TypeError, UnsafePathError, FileNotFoundError) as error:
            log.warning("job %s: bad delivery: %r", self._claim.job_id, error)
            return self.fail(endings.nonsense())
        self._lease.finish(artifacts, {"metrics": last["metrics"]}, keep=keep)
        return "succeeded"

    def fail(self, failure: Failure) -> str:
        """End the attempt as failed."""
        return f"attempt failed ({failure.reason}), job {self._lease.fail(failure)}"
