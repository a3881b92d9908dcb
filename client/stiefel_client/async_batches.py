"""Many jobs in one request, for the asynchronous client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from stiefel_client import batch_calls
from stiefel_client.batches import Form
from stiefel_client.calls import Call
from stiefel_client.models import Batch, BatchPlan, Page, Report
from stiefel_client.waiting import drive_async, wait_steps

T = TypeVar("T")


class Caller(Protocol):
    """Whoever carries calls out."""

    def call(self, call: Call[T]) -> Awaitable[T]:
        """Carry one call out."""


class AsyncBatches:
    """Submit grids of jobs, follow them, compare what they made; see ``Batches``."""

    def __init__(self, client: Caller) -> None:
        self._client = client

    async def create(
        self,
        spec: Mapping[str, Any] | None = None,
        *,
        grid: Mapping[str, Sequence[Any]] | None = None,
        jobs: Sequence[Mapping[str, Any]] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Batch:
        """Submit all jobs of a grid at once, or none; see ``Batches.create``."""
        body = batch_calls.batch_body(spec, grid, jobs, options)
        call = batch_calls.create_batch(body, idempotency_key=idempotency_key)
        return await self._client.call(call)

    async def plan(
        self,
        spec: Mapping[str, Any] | None = None,
        *,
        grid: Mapping[str, Sequence[Any]] | None = None,
        jobs: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> BatchPlan:
        """What every cell would do, without doing it."""
        body = batch_calls.batch_body(spec, grid, jobs, options)
        return await self._client.call(batch_calls.plan_batch(body))

    async def get(self, batch_id: str) -> Batch:
        """The batch with its jobs as they are now."""
        return await self._client.call(batch_calls.get_batch(batch_id))

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[Batch]:
        """One page of batches, newest first, without their jobs."""
        return await self._client.call(batch_calls.list_batches(after=after, limit=limit))

    async def cancel(self, batch_id: str) -> Batch:
        """End every job that has not ended."""
        return await self._client.call(batch_calls.cancel_batch(batch_id))

    async def wait(
        self,
        batch_id: str,
        *,
        timeout: float | None = None,
        on_change: Callable[[Batch], None] | None = None,
    ) -> Batch:
        """Wait until every job has ended; see ``Batches.wait``."""
        look = batch_calls.looking_at_batch(batch_id)
        steps = wait_steps(batch_id, look, timeout=timeout, on_change=on_change)
        return await drive_async(self._client.call, steps)

    async def report(
        self, batch_id: str, *, size: str | None = None, quality: str | None = None
    ) -> Report:
        """All cells side by side; see ``Batches.report``."""
        call = batch_calls.get_report(batch_id, size=size, quality=quality)
        return await self._client.call(call)

    async def table(self, batch_id: str, form: Form = "markdown", **options: str | None) -> str:
        """The report as text."""
        return await self._client.call(batch_calls.get_table(batch_id, form, **options))
