"""How a job's events are followed to its end, over broken connections.

``Following`` holds the rules and knows no network; the two functions below it carry them out,
one for each client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import httpx

from stiefel_client import calls
from stiefel_client.calls import Call
from stiefel_client.errors import ServerError, ServiceUnreachableError
from stiefel_client.locate import Service
from stiefel_client.models import Event
from stiefel_client.sse import EventReader
from stiefel_client.transport import Transport, unreachable
from stiefel_client.waiting import PATIENCE, out_of_time

T = TypeVar("T")
# Keep-alives come every 15 s: a minute of silence is a dead connection.
SILENCE = 60.0
_SLACK = 1.0  # seconds by which an end in silence may miss the caller's time limit
_BREAKS = (httpx.TransportError, ServerError, ServiceUnreachableError)


class AsyncTransport(Protocol):
    """What following needs of the asynchronous client."""

    @property
    def service(self) -> Service:
        """Where it is connected to."""

    def call(self, call: Call[T]) -> Awaitable[T]:
        """Carry one call out."""

    def stream(self, call: Call[None]) -> AbstractAsyncContextManager[httpx.Response]:
        """Open a call whose answer is read line by line."""


class Following:
    """Where one follower of a job's events stands.

    Args:
        job_id: the job.
        after: the last event already known.
        timeout: seconds; None follows for ever.
    """

    def __init__(
        self,
        service: Service,
        job_id: str,
        *,
        after: int,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job_id = job_id
        self.idle = False  # the last stream came to its own end and brought nothing
        self._service = service
        self._reader = EventReader(after)
        self._timeout = timeout
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._broken_at: float | None = None
        self._begun_after = after
        self._silence = SILENCE

    def open(self) -> Call[None]:
        """The call that streams what is still unseen; it breaks when the time is over."""
        self.idle = False
        self._reader.broken()
        self._begun_after = self._reader.last_id
        self._silence = min(SILENCE, max(self._left(), 0.1))
        return calls.stream_events(self.job_id, after=self._begun_after, silence=self._silence)

    def feed(self, line: str) -> Event | None:
        """Take a line of the stream; every one, keep-alives too, proves that the service is there.

        Raises:
            WaitTimeoutError: the time is over.
        """
        self._broken_at = None
        self._check_time()
        return self._reader.feed(line)

    @property
    def overlong(self) -> bool:
        """Whether silence on this stream would now outlast the caller's time: open another."""
        return self._silence > self._left() + _SLACK

    def ended(self) -> None:
        """The stream came to its own end."""
        self._broken_at = None
        self.idle = self._reader.last_id == self._begun_after

    def broke(self, error: Exception) -> None:
        """Take note of a break.

        Raises:
            WaitTimeoutError: the time is over.
            ServiceUnreachableError: not one line came for ``PATIENCE`` seconds of trying.
        """
        self._check_time()
        # Counted from the first break, not the last line: the caller may take long over an event.
        if self._broken_at is None:
            self._broken_at = self._clock()
        elif self._clock() - self._broken_at > PATIENCE:
            raise unreachable(self._service, error) from error

    def pause(self) -> float:
        """Seconds before the next stream."""
        return max(0.0, min(self._reader.pause, self._left()))

    def _left(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - self._clock()

    def _check_time(self) -> None:
        if self._timeout is not None and self._left() <= 0:
            raise out_of_time(self.job_id, "unfinished", self._timeout)


def follow(client: Transport, following: Following) -> Iterator[Event]:
    """Yield events until the job is finished and all of them were seen."""
    while True:
        try:
            with client.stream(following.open()) as response:
                for line in response.iter_lines():
                    event = following.feed(line)
                    if event is not None:
                        yield event
                    if following.overlong:
                        break
                else:
                    following.ended()
            if following.idle and client.call(calls.get_job(following.job_id)).finished:
                return
        except _BREAKS as error:
            following.broke(error)
        time.sleep(following.pause())


async def follow_async(client: AsyncTransport, following: Following) -> AsyncIterator[Event]:
    """Do the same, awaited."""
    while True:
        try:
            async with client.stream(following.open()) as response:
                async for line in response.aiter_lines():
                    event = following.feed(line)
                    if event is not None:
                        yield event
                    if following.overlong:
                        break
                else:
                    following.ended()
            if following.idle and (await client.call(calls.get_job(following.job_id))).finished:
                return
        except _BREAKS as error:
            following.broke(error)
        await asyncio.sleep(following.pause())
