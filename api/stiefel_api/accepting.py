"""From a request to a committed job: once, however often it is sent."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated

from fastapi import Header

from stiefel_api.checks import Checked, check
from stiefel_api.service import Service
from stiefel_api.views.jobs import JobOptions, NewJob
from stiefel_jobs.records import Submission, Submitted
from stiefel_jobs.states import PRIORITIES
from stiefel_jobs.store.replays import earlier_job
from stiefel_jobs.store.submit import submit

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Any unique text. Repeating a request with its key within 7 days gives what "
        "the first one made.",
        examples=["8e03978e-40d5-43e8-bc93-6894a57f9324"],
    ),
]


def accept(
    service: Service, tenant: str, body: NewJob, *, key: str | None, traceparent: str | None
) -> Submitted:
    """Check the request, queue the job, and ring; on return it is committed.

    Raises:
        Problem: the spec cannot be carried out.
        StoreError: the key belongs to another request, or a quota is used up.
    """
    fingerprint = fingerprint_of(body)
    if key is not None:
        earlier = earlier_job(service.db, tenant=tenant, key=key, fingerprint=fingerprint)
        if earlier is not None:
            return Submitted(earlier, replayed=True)
    checked = check(service, tenant, body.spec, device=body.device)
    submitted = submit(
        service.db,
        tenant=tenant,
        submission=submission_of(service, body, checked, traceparent),
        idempotency_key=key,
        fingerprint=fingerprint,
        max_live=service.settings.max_live_jobs,
    )
    if not submitted.replayed:
        # Here and not in a task after the response: a worker may start while the answer travels.
        service.ringer.ring(submitted.job.id)
    return submitted


def fingerprint_of(body: JobOptions) -> str:
    """Return the digest by which a repeated request is known; of a batch and a job never one."""
    kind = type(body).__name__
    canonical = json.dumps({kind: body.model_dump(mode="json")}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def submission_of(
    service: Service, body: JobOptions, checked: Checked, traceparent: str | None
) -> Submission:
    """Return the job that a checked spec and the options beside it ask for."""
    ttl = body.output_ttl.total_seconds() if body.output_ttl else service.settings.artifact_ttl_s
    trace = traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None
    return Submission(
        method=checked.spec.method,
        spec=checked.spec.model_dump(mode="json"),
        inputs=checked.spec.inputs(),
        queue=checked.queue,
        priority=PRIORITIES[body.priority],
        max_attempts=body.max_attempts,
        deadline_s=body.deadline.total_seconds() if body.deadline else None,
        labels=body.labels,
        output_ttl_s=ttl,
        traceparent=trace,
        peak_memory_bytes=checked.peak_memory_bytes or None,
    )
