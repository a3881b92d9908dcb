"""Many jobs in one request, for the synchronous client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from stiefel_client import batch_calls
from stiefel_client.models import Batch, BatchPlan, Page, Report
from stiefel_client.transport import Transport
from stiefel_client.waiting import drive, wait_steps

Form = Literal["csv", "markdown"]


class Batches:
    """Submit grids of jobs, follow them, compare what they made."""

    def __init__(self, client: Transport) -> None:
        self._client = client

    def create(
        self,
        spec: Mapping[str, Any] | None = None,
        *,
        grid: Mapping[str, Sequence[Any]] | None = None,
        jobs: Sequence[Mapping[str, Any]] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Batch:
        """Submit all jobs of a grid at once, or none.

        Args:
            spec: what the grid varies.
            grid: dotted paths into the spec, each with its values; the last varies fastest.
            jobs: more of them, each ``{"custom_id", "spec", "grid"}``, for other methods.
            idempotency_key: repeat with the same key and you get the same batch; made up when
                left out.
            options: ``name``, and what stands beside the spec of a job: ``labels``, ``priority``,
                ``deadline``, ``max_attempts``, ``output_ttl``, ``device``.

        Raises:
            BadRequestError: a cell is refused; ``errors`` names each field and its cells.
        """
        body = batch_calls.batch_body(spec, grid, jobs, options)
        return self._client.call(batch_calls.create_batch(body, idempotency_key=idempotency_key))

    def plan(
        self,
        spec: Mapping[str, Any] | None = None,
        *,
        grid: Mapping[str, Sequence[Any]] | None = None,
        jobs: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> BatchPlan:
        """What every cell would do, without doing it."""
        body = batch_calls.batch_body(spec, grid, jobs, options)
        return self._client.call(batch_calls.plan_batch(body))

    def get(self, batch_id: str) -> Batch:
        """The batch with its jobs as they are now."""
        return self._client.call(batch_calls.get_batch(batch_id))

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[Batch]:
        """One page of batches, newest first, without their jobs."""
        return self._client.call(batch_calls.list_batches(after=after, limit=limit))

    def cancel(self, batch_id: str) -> Batch:
        """End every job that has not ended."""
        return self._client.call(batch_calls.cancel_batch(batch_id))

    def wait(
        self,
        batch_id: str,
        *,
        timeout: float | None = None,
        on_change: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """Wait until every job has ended, whatever its end; as ``Jobs.wait``.

        Raises:
            WaitTimeoutError: not finished in time; the jobs themselves go on.
        """
        look = batch_calls.looking_at_batch(batch_id)
        steps = wait_steps(batch_id, look, timeout=timeout, on_change=on_change)
        return drive(self._client.call, steps)

    def report(
        self, batch_id: str, *, size: str | None = None, quality: str | None = None
    ) -> Report:
        """All cells side by side, their means over the seeds, and the front.

        Args:
            batch_id: the batch; its jobs need not have ended.
            size: the metric of size; default: parameters, else bytes.
            quality: the metric of quality, ``-name`` where less is better; default: accuracy.
        """
        return self._client.call(batch_calls.get_report(batch_id, size=size, quality=quality))

    def table(self, batch_id: str, form: Form = "markdown", **options: str | None) -> str:
        """The report as text; ``options`` are those of ``report``."""
        return self._client.call(batch_calls.get_table(batch_id, form, **options))
