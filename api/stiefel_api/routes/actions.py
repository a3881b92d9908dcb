"""What may be done to a job: cancel, pause, resume, retry. Asking twice is as good as once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from stiefel_api.following import job_response
from stiefel_api.routes.jobs import JobId
from stiefel_api.security import JobWriter
from stiefel_api.service import ServiceDep
from stiefel_api.views.base import problems
from stiefel_api.views.jobs import JobView
from stiefel_jobs.records import Job
from stiefel_jobs.states import State
from stiefel_jobs.store import actions

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


def _verb(name: str, summary: str, text: str) -> Any:
    """Add the route of one action."""
    action = getattr(actions, name)

    @router.post(
        f"/{{job_id}}/{name}",
        name=name,
        operation_id=f"{name}_job",
        status_code=202,
        response_model=JobView,
        responses=problems(404, 409),
        summary=summary,
        description=text,
    )
    def act(job_id: JobId, service: ServiceDep, caller: JobWriter) -> Response:
        job: Job = action(service.db, tenant=caller.tenant, job_id=job_id)
        if job.state is State.QUEUED:
            service.ringer.ring(job.id)
        return job_response(service, job, status=202, headers={"Location": f"/v1/jobs/{job.id}"})

    return act


_verb(
    "cancel",
    "Cancel a job",
    "At once while it is queued or paused; a running job is stopped within two seconds. May be "
    "repeated.",
)
_verb(
    "pause",
    "Pause a job",
    "A running job stops at its next safe point, keeps its checkpoint and frees its worker.",
)
_verb("resume", "Resume a paused job", "It continues from its last checkpoint.")
_verb(
    "retry",
    "Retry a failed or cancelled job",
    "It gets a fresh budget of attempts and continues from its last checkpoint.",
)
