"""Where jobs meet slots: whoever looks, and why, at most ``concurrency`` jobs run here.

A look is a claim from the database. Celery's doorbell, the poller and a job that has just ended
all come here; none of them carries a job with it, so none can be lost or run one twice.
"""

from __future__ import annotations

import logging
import threading

from stiefel_jobs.records import Claim
from stiefel_jobs.store.claim import claim
from stiefel_worker.shop import Shop
from stiefel_worker.supervisor import supervise

log = logging.getLogger(__name__)


class Desk:
    """The slots of one worker process."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.draining = threading.Event()
        self._slots = threading.BoundedSemaphore(shop.concurrency)
        self._rung = threading.Event()
        self._working: set[str] = set()
        self._idle = threading.Condition()

    @property
    def busy(self) -> int:
        """How many jobs run now."""
        return len(self._working)

    def look(self) -> None:
        """Claim and supervise until nothing is left to claim; returns at once when all is busy."""
        self._rung.set()
        while self._rung.is_set() and self._take_slot():
            try:
                self._rung.clear()
                while (found := self._claim()) is not None:
                    self._work(found)
            finally:
                self._slots.release()

    def look_aside(self) -> None:
        """Fill the free slots on threads of their own, for a caller that must not be held up."""
        while self._take_slot():
            found = None
            try:
                found = self._claim()
            finally:
                if found is None:
                    self._slots.release()
            if found is None:
                return
            threading.Thread(target=self._work_aside, args=(found,), name=found.job_id).start()

    def drain(self) -> None:
        """Claim nothing more and ask running jobs to stop at their next safe point."""
        if not self.draining.is_set():
            log.info("draining: no new jobs, running ones go back to the queue")
        self.draining.set()

    def join(self, timeout_s: float) -> bool:
        """Wait until nothing runs here; False when ``timeout_s`` came first."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._working, timeout_s)

    def _take_slot(self) -> bool:
        """A free slot, if there is one; whoever holds them all sees the ring before it goes."""
        return not self.draining.is_set() and self._slots.acquire(blocking=False)

    def _work(self, found: Claim) -> None:
        with self._idle:
            self._working.add(found.job_id)
        try:
            supervise(self.shop, found, self.draining)
        finally:
            with self._idle:
                self._working.discard(found.job_id)
                self._idle.notify_all()

    def _work_aside(self, found: Claim) -> None:
        try:
            self._work(found)
        finally:
            self._slots.release()
        self.look()

    def _claim(self) -> Claim | None:
        if self.draining.is_set():
            return None
        shop = self.shop
        return claim(
            shop.db,
            worker=shop.worker,
            queues=shop.queues,
            lease_s=shop.settings.lease_s,
            memory_bytes={queue: shop.free_bytes(queue) for queue in shop.queues},
        )
