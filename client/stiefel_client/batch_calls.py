"""Every request about batches as a value; see ``calls``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from stiefel_client.calls import Call, Reading, given, look_at, reader
from stiefel_client.models import Batch, BatchPlan, Page, Report

FORMS = {"csv": "text/csv", "markdown": "text/markdown"}
_PATIENCE = 120.0  # seconds: every cell is checked before the answer comes


def create_batch(body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[Batch]:
    """POST a batch."""
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return Call("POST", "/v1/batches", reader(Batch), json=body, headers=headers, timeout=_PATIENCE)


def plan_batch(body: Mapping[str, Any]) -> Call[BatchPlan]:
    """POST a dry run: what the batch would do, without a job."""
    params = {"dry_run": "true"}
    return Call(
        "POST", "/v1/batches", reader(BatchPlan), params=params, json=body, timeout=_PATIENCE
    )


def batch_body(
    spec: Mapping[str, Any] | None,
    grid: Mapping[str, Sequence[Any]] | None,
    jobs: Sequence[Mapping[str, Any]] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The body of a batch: what is None stays out."""
    return given({"spec": spec, "grid": grid or None, "jobs": jobs or None, **options})


def get_batch(batch_id: str) -> Call[Batch]:
    """One batch with its jobs."""
    return Call("GET", _batch(batch_id), reader(Batch))


def looking_at_batch(batch_id: str) -> Callable[[float, str | None], Call[Reading[Batch]]]:
    """Return what looks at one batch again and again."""
    return lambda wait, etag: look_at(_batch(batch_id), Batch, wait=wait, etag=etag)


def list_batches(*, after: str | None, limit: int) -> Call[Page[Batch]]:
    """One page of batches, newest first."""
    params = {"after": after, "limit": limit}
    return Call("GET", "/v1/batches", reader(Page[Batch]), params=params)


def cancel_batch(batch_id: str) -> Call[Batch]:
    """End every job that has not ended."""
    return Call("POST", f"{_batch(batch_id)}/cancel", reader(Batch))


def get_report(batch_id: str, *, size: str | None, quality: str | None) -> Call[Report]:
    """The report, parsed."""
    params = {"format": "json", "size": size, "quality": quality}
    return Call("GET", f"{_batch(batch_id)}/report", reader(Report), params=params)


def get_table(
    batch_id: str, form: str, *, size: str | None = None, quality: str | None = None
) -> Call[str]:
    """The report as ``csv`` or ``markdown``."""

    def parse(response: httpx.Response) -> str:
        return response.text

    params = {"format": form, "size": size, "quality": quality}
    headers = {"Accept": FORMS[form]}
    return Call("GET", f"{_batch(batch_id)}/report", parse, params=params, headers=headers)


def _batch(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"
