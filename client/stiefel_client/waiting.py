"""How to wait for a job or a batch, without saying how a request is carried out.

The rules are one generator: it yields what to do next (a call, or a pause in seconds) and
receives the answer, so the sync and the async client wait by the same rules.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeAlias, TypeVar

from stiefel_client.calls import Call, Reading
from stiefel_client.errors import ServerError, ServiceUnreachableError, WaitTimeoutError

LONG_POLL = 20.0  # seconds that one request may be held by the service
PATIENCE = 60.0  # seconds without any answer before a wait gives up


class Watched(Protocol):
    """What can be waited for."""

    id: str
    status: str

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""


W = TypeVar("W", bound=Watched)
Look = Callable[[float, "str | None"], "Call[Reading[W]]"]
"""Called with (seconds to be held, ETag seen last)."""
Steps: TypeAlias = Generator["Call[Reading[W]] | float", "Reading[W] | None", W]


def wait_steps(
    name: str,
    look: Look[W],
    *,
    timeout: float | None,
    on_change: Callable[[W], None] | None,
    clock: Callable[[], float] = time.monotonic,
) -> Steps[W]:
    """Steps of waiting until it is finished; None as an answer means: no answer came.

    Raises:
        WaitTimeoutError: ``timeout`` seconds are over; the work itself goes on.
    """
    deadline = None if timeout is None else clock() + timeout
    etag: str | None = None
    status = "unknown"
    while True:
        left = LONG_POLL if deadline is None else max(0.0, deadline - clock())
        asked_at = clock()
        # The first look is for the state as it is; from then on only changes matter.
        wait = min(LONG_POLL, left) if etag else 0.0
        reading = yield look(wait, etag)
        if reading is not None and reading.found is not None:
            etag, status = reading.etag, reading.found.status
            if on_change:
                on_change(reading.found)
            if reading.found.finished:
                return reading.found
        if deadline is not None and clock() >= deadline:
            raise out_of_time(name, status, timeout or 0.0)
        yield _pause(reading, held=clock() - asked_at)


def out_of_time(name: str, status: str, timeout: float) -> WaitTimeoutError:
    """The error for work that goes on beyond the caller's time."""
    return WaitTimeoutError(
        f"{name} is still {status} after {timeout:g} s",
        fix=f"It goes on without you; look again with: stiefel watch {name}",
    )


def drive(call: Callable[[Call[Reading[W]]], Reading[W]], steps: Steps[W]) -> W:
    """Carry the steps out; a service that is away for less than ``PATIENCE`` is waited for."""
    reply: Reading[W] | None = None
    answered = time.monotonic()
    try:
        step = next(steps)
        while True:
            if isinstance(step, float):
                time.sleep(step)
            else:
                try:
                    reply = call(step)
                    answered = time.monotonic()
                except (ServiceUnreachableError, ServerError):
                    if time.monotonic() - answered > PATIENCE:
                        raise
                    reply = None
            step = steps.send(reply)
    except StopIteration as stop:
        found: W = stop.value
        return found


async def drive_async(
    call: Callable[[Call[Reading[W]]], Awaitable[Reading[W]]], steps: Steps[W]
) -> W:
    """Do the same, awaited."""
    reply: Reading[W] | None = None
    answered = time.monotonic()
    try:
        step = next(steps)
        while True:
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                try:
                    reply = await call(step)
                    answered = time.monotonic()
                except (ServiceUnreachableError, ServerError):
                    if time.monotonic() - answered > PATIENCE:
                        raise
                    reply = None
            step = steps.send(reply)
    except StopIteration as stop:
        found: W = stop.value
        return found


def _pause(reading: Reading[Any] | None, held: float) -> float:
    """Seconds before the next look: none after a long poll, some after a quick answer."""
    if reading is None:
        return 1.0
    if held > 0.5:
        return 0.0
    asked = reading.retry_after if reading.retry_after is not None else 0.25
    return min(max(asked, 0.05), 1.0)
