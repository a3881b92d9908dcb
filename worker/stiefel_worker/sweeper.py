"""What a worker does besides jobs: sweep, ring again, poll, and notice when it is stuck itself."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from stiefel_jobs.doorbell import Doorbell
from stiefel_jobs.store.sweep import sweep
from stiefel_jobs.store.workers import report_worker
from stiefel_worker.desk import Desk
from stiefel_worker.lease import brief
from stiefel_worker.scratch import clear_abandoned

STUCK_EXIT_CODE = 75  # "temporary failure": whoever runs workers should start this one again
log = logging.getLogger(__name__)


class Rounds:
    """A daemon thread that does ``work`` every ``period_s``; trouble is logged, rounds go on."""

    def __init__(self, name: str, period_s: float, work: Callable[[], None]) -> None:
        self.name = name
        self.period_s = period_s
        self.last_at = time.monotonic()
        self._work = work
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin, with the first round at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present round."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._work()
            except DBAPIError as error:
                log.warning("%s: database away: %s", self.name, brief(error))
            except Exception:
                log.exception("%s: a round failed", self.name)
            self.last_at = time.monotonic()
            self._ended.wait(self.period_s)


class Sweeper:
    """Frees jobs of dead workers and rings the bells that were never heard."""

    def __init__(self, desk: Desk, doorbell: Doorbell) -> None:
        self._desk = desk
        self._doorbell = doorbell

    def __call__(self) -> None:
        """One sweep; the database comes first, so that a dead broker holds up nothing."""
        db = self._desk.shop.db
        report = sweep(db)
        for what in ("requeued", "failed", "paused", "cancelled", "expired"):
            if jobs := getattr(report, what):
                log.info("swept: %s %s", what, ", ".join(jobs))
        self._report()
        for queue, job_id in report.ring:
            self._doorbell.ring(queue, job_id)
        scratch = self._desk.shop.settings.scratch_dir
        if scratch is not None and (cleared := clear_abandoned(scratch)):
            log.info("cleared scratch of dead workers: %s", ", ".join(cleared))

    def _report(self) -> None:
        shop = self._desk.shop
        report_worker(
            shop.db,
            worker=shop.worker,
            host=socket.gethostname(),
            queues=shop.queues,
            version=shop.code,
            devices=shop.devices,
            draining=self._desk.draining.is_set(),
        )


class Standstill:
    """How long ``rounds`` have made no progress, not counting time this process slept.

    A machine that sleeps, or a stopped process, stops the one who looks too: a gap of over
    ``asleep_s`` between two looks says nothing about the rounds, and the count begins anew.
    """

    def __init__(self, rounds: Rounds, *, asleep_s: float, now: float) -> None:
        self._rounds, self._asleep_s = rounds, asleep_s
        self._looked_at = self._awake_at = now

    def seconds(self, now: float) -> float:
        """Look, at the time ``now``."""
        if now - self._looked_at > self._asleep_s:
            self._awake_at = now
        self._looked_at = now
        return now - max(self._rounds.last_at, self._awake_at)


def watch(rounds: Rounds, idle_s: float) -> Callable[[], None]:
    """Return a check that ends this process when ``rounds`` has come to a standstill.

    A claim that never returns would leave the worker alive and useless. Its children die with
    it, its leases run out, and a fresh process takes over.
    """
    standstill = Standstill(rounds, asleep_s=idle_s / 2, now=time.monotonic())

    def check() -> None:
        silent_s = standstill.seconds(time.monotonic())
        if silent_s > idle_s + rounds.period_s:
            log.critical("%s has been stuck for %.0f s, the process ends", rounds.name, silent_s)
            os._exit(STUCK_EXIT_CODE)

    return check
