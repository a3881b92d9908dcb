"""How to wait for a job, without saying how a request is carried out.

The rules are one generator: it yields what to do next (a call, or a pause in seconds) and
receives the answer, so the sync and the async client wait by the same rules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from stiefel_client.calls import Call, Reading, look_at_job
from stiefel_client.errors import WaitTimeoutError
from stiefel_client.models import Job

LONG_POLL = 20.0  # seconds that one request may be held by the service
PATIENCE = 60.0  # seconds without any answer before a wait gives up

Steps = Generator["Call[Reading] | float", "Reading | None", Job]


def wait_steps(
    job_id: str,
    *,
    timeout: float | None,
    on_change: Callable[[Job], None] | None,
    clock: Callable[[], float] = time.monotonic,
) -> Steps:
    """Steps of waiting until the job is finished; None as an answer means: no answer came.

    Raises:
        WaitTimeoutError: ``timeout`` seconds are over; the job itself goes on.
    """
    deadline = None if timeout is None else clock() + timeout
    etag: str | None = None
    status = "unknown"
    while True:
        left = LONG_POLL if deadline is None else max(0.0, deadline - clock())
        asked_at = clock()
        # The first look is for the state as it is; from then on only changes matter.
        wait = min(LONG_POLL, left) if etag else 0.0
        reading = yield look_at_job(job_id, wait=wait, etag=etag)
        if reading is not None and reading.job is not None:
            etag, status = reading.etag, reading.job.status
            if on_change:
                on_change(reading.job)
            if reading.job.finished:
                return reading.job
        if deadline is not None and clock() >= deadline:
            raise WaitTimeoutError(
                f"{job_id} is still {status} after {timeout:g} s",
                fix=f"It goes on without you; look again with: stiefel watch {job_id}",
            )
        yield _pause(reading, held=clock() - asked_at)


def _pause(reading: Reading | None, held: float) -> float:
    """Seconds before the next look: none after a long poll, some after a quick answer."""
    if reading is None:
        return 1.0
    if held > 0.5:
        return 0.0
    asked = reading.retry_after if reading.retry_after is not None else 0.25
    return min(max(asked, 0.05), 1.0)
