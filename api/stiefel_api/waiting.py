"""Waiting for jobs to change: one query serves everybody who waits.

Held connections cost a coroutine each and no database connection, so hundreds of long polls and
event streams leave the pool to those who work. Replicas need no channel between them: each asks
the database, which all of them share.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

Versions = Callable[[Sequence[str]], Mapping[str, int]]


class Waiters:
    """All coroutines of this process that wait for a job.

    Args:
        versions: returns the present version of each of the given jobs; called in a thread.
        every_s: pause between two questions. Nothing is asked while nobody waits.
    """

    def __init__(self, versions: Versions, *, every_s: float = 0.1) -> None:
        self._versions = versions
        self._every_s = every_s
        self._waiting: defaultdict[str, set[_Waiter]] = defaultdict(set)
        self._poller: asyncio.Task[None] | None = None
        self.closed = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def changed(self, job_id: str, version: int, timeout_s: float) -> bool:
        """Wait until the job's version is not ``version``; False when the time was over first."""
        if self.closed:
            return False
        waiter = _Waiter(version)
        self._waiting[job_id].add(waiter)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            await asyncio.wait_for(waiter.event.wait(), timeout_s)
            return not self.closed
        except TimeoutError:
            return False
        finally:
            self._waiting[job_id].discard(waiter)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def release(self) -> None:
        """End every wait now and for good, so that a process can stop without cutting answers."""
        self.closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.event.set()

    async def close(self) -> None:
        """Stop asking."""
        self.release()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._every_s)
            ids = list(self._waiting)
            try:
                found = await asyncio.to_thread(self._versions, ids)
            except Exception:  # a database that restarts must not end every wait
                log.exception("cannot look for changed jobs")
                await asyncio.sleep(1.0)
                continue
            for job_id in ids:
                self._wake(job_id, found.get(job_id))

    def _wake(self, job_id: str, version: int | None) -> None:
        for waiter in tuple(self._waiting.get(job_id, ())):
            if waiter.version != version:
                waiter.event.set()


class _Waiter:
    def __init__(self, version: int) -> None:
        self.version = version
        self.event = asyncio.Event()
