"""Jobs: what a caller asks for, and what a job looks like."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import Field, StringConstraints, field_validator

from stiefel_api.views.base import (
    ARTIFACT_EXAMPLE,
    JOB_EXAMPLE,
    SHA256_EXAMPLE,
    TIME_EXAMPLE,
    Body,
    Spec,
    View,
    known_moment,
    moment,
)
from stiefel_jobs.records import Job
from stiefel_jobs.states import PRIORITIES, State, allowed_actions

SPEC_EXAMPLE: dict[str, Any] = {
    "method": "project.unitary",
    "input": ARTIFACT_EXAMPLE,
    "include": ["*.attention.*.weight"],
}
Word = Annotated[str, StringConstraints(min_length=1, max_length=63)]
Labels = Annotated[dict[Word, Word], Field(max_length=32)]
Priority = Literal["low", "normal", "high"]
_LONGEST = timedelta(days=3650)
_FARTHEST_S = _LONGEST.total_seconds()


class JobOptions(Body):
    """What stands beside a spec, for one job or for all jobs of a batch."""

    labels: Labels = Field(
        default_factory=dict, description="For finding it again.", examples=[{"team": "nlp"}]
    )
    priority: Priority = Field(
        default="normal", description="Waiting raises it by and by.", examples=["normal"]
    )
    deadline: timedelta | None = Field(
        default=None,
        description="ISO 8601 duration from now; a job that is not done by then expires.",
        examples=["PT2H"],
    )
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=20,
        description="Attempts before a failure that is not yours counts as final.",
        examples=[3],
    )
    output_ttl: timedelta | None = Field(
        default=None,
        description="How long the results are kept, counted from their making. Default: the "
        "service's own.",
        examples=["P30D"],
    )
    device: Literal["cpu", "cuda"] | None = Field(
        default=None,
        description="Which workers may take it. Default: what the spec says, else `cpu`.",
        examples=["cpu"],
    )

    @field_validator("deadline", "output_ttl")
    @classmethod
    def _sensible(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and not timedelta(0) < value <= _LONGEST:
            raise ValueError("a duration must be positive and at most ten years")
        return value


class NewJob(JobOptions):
    """A request for work."""

    spec: Spec = Field(
        description="What to do: `method` and that method's fields, see `GET /v1/methods`.",
        examples=[SPEC_EXAMPLE],
    )


class JobPatch(Body):
    """What may change while a job exists; fields that are absent stay."""

    labels: Labels | None = Field(
        default=None, description="The new labels, all of them.", examples=[{"team": "vision"}]
    )
    priority: Priority | None = Field(
        default=None, description="Counts while the job is queued.", examples=["high"]
    )


class ProgressView(View):
    """How far a job is."""

    stage: str | None = Field(
        default=None, description="What it is doing.", examples=["converting"]
    )
    percent: float | None = Field(
        description="Of the present stage; null while the total is unknown.", examples=[41.2]
    )
    done: float = Field(description="Units done.", examples=[98])
    total: float | None = Field(description="Units in all.", examples=[238])
    unit: str = Field(description="What is counted.", examples=["tensor"])
    rate: float | None = Field(
        default=None, description="Units per second in this attempt.", examples=[12.4]
    )
    eta: datetime | None = Field(
        description="When it would end at the rate so far; null beyond ten years.",
        examples=[TIME_EXAMPLE],
    )
    eta_earliest: datetime | None = Field(
        default=None,
        description="When, at the rate of its fastest stretch so far.",
        examples=[TIME_EXAMPLE],
    )
    eta_latest: datetime | None = Field(
        default=None,
        description="When, at the rate of its slowest stretch; null where it stood still.",
        examples=[TIME_EXAMPLE],
    )


class QueueView(View):
    """Where a queued job stands."""

    name: str = Field(description="Which workers it waits for.", examples=["cpu"])
    position: int | None = Field(description="Jobs before it.", examples=[0])
    workers: int | None = Field(
        default=None, description="Workers that serve the queue now; 0: nobody.", examples=[1]
    )


class FileView(View):
    """One file that a job made."""

    artifact: str = Field(description="Its artifact.", examples=[ARTIFACT_EXAMPLE])
    sha256: str = Field(description="Digest of its content.", examples=[SHA256_EXAMPLE])
    bytes: int = Field(description="Size.", examples=[90868376])
    kind: str = Field(description="Kind of file.", examples=["safetensors"])


class ResultView(View):
    """What a finished job delivered."""

    files: dict[str, FileView] = Field(description="Every file by name.")
    metrics: dict[str, Any] = Field(
        default_factory=dict,
        description="Closing figures of the method.",
        examples=[{"max_orthogonality_defect": 2.4e-7}],
    )


class FailureView(View):
    """Why a job failed."""

    code: str = Field(description="Stable name.", examples=["non_finite_weights"])
    detail: str = Field(
        description="What happened.", examples=["tensor 'h.3.weight' holds 2 NaN values"]
    )
    fix: str | None = Field(default=None, description="What to do.", examples=["Exclude it."])
    tensor: str | None = Field(default=None, description="Where.", examples=["h.3.weight"])
    field: str | None = Field(default=None, description="Pointer into the spec.", examples=[None])
    blame: str | None = Field(
        default=None,
        description="Who can mend it: `user`, `system`, `resource` or `timeout`.",
        examples=["user"],
    )


class JobView(View):
    """A job. Terminal statuses are `succeeded`, `failed`, `cancelled` and `expired`."""

    id: str = Field(description="Name of the job.", examples=[JOB_EXAMPLE])
    object: str = Field(default="job", description="Always `job`.")
    status: State = Field(description="Where it stands.", examples=["running"])
    method: str = Field(description="The method.", examples=["project.unitary"])
    allowed_actions: list[str] = Field(
        description="What may be done to it now.", examples=[["cancel", "pause"]]
    )
    spec: dict[str, Any] = Field(
        description="The spec in force, defaults filled in.", examples=[SPEC_EXAMPLE]
    )
    labels: dict[str, str] = Field(description="As given.", examples=[{"team": "nlp"}])
    batch: str | None = Field(description="The batch that it belongs to.", examples=[None])
    custom_id: str | None = Field(description="Its name within the batch.", examples=[None])
    priority: str = Field(description="As given.", examples=["normal"])
    queue: QueueView = Field(description="Where it waits.")
    attempt: int = Field(description="Attempts begun.", examples=[1])
    max_attempts: int = Field(description="As given.", examples=[3])
    progress: ProgressView | None = Field(description="How far it is, once it has begun.")
    reason: str | None = Field(
        description="Why it stands where it stands, if that needs one.", examples=[None]
    )
    result: ResultView | None = Field(description="What it delivered, once succeeded.")
    error: FailureView | None = Field(description="Why it failed, if it did.", examples=[None])
    timestamps: dict[str, datetime | None] = Field(
        description="`created`, `queued`, `started`, `finished`, `deadline`; null: not yet.",
        examples=[{"created": TIME_EXAMPLE, "started": None}],
    )
    links: dict[str, Any] = Field(
        description="Where to go from here; `download` maps each file to its content.",
        examples=[{"self": f"/v1/jobs/{JOB_EXAMPLE}", "download": {}}],
    )

    @classmethod
    def of(cls, job: Job, *, queue: QueueView | None = None) -> Self:
        """Show a record of the store; ``queue`` tells how a queued job stands in it."""
        return cls(
            id=job.id,
            status=job.state,
            method=job.method,
            allowed_actions=list(allowed_actions(job.state)),
            spec=job.spec,
            labels=job.labels,
            batch=job.batch_id,
            custom_id=job.custom_id,
            priority=_priority(job.priority),
            queue=queue or QueueView(name=job.queue, position=None),
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            progress=progress_of(job),
            reason=job.reason,
            result=ResultView.model_validate(job.result) if job.result else None,
            error=failure_of(job),
            timestamps=_timestamps(job),
            links=links_of(job),
        )


def _priority(number: int) -> str:
    return next((name for name, value in PRIORITIES.items() if value == number), "normal")


def progress_of(job: Job) -> ProgressView | None:
    """Show how far a job is."""
    if job.progress is None:
        return None
    done, total = job.progress["done"], job.progress.get("total")
    extra = dict(job.progress.get("extra", {}))
    fast, slow = extra.pop("rate_high", None), extra.pop("rate_low", None)
    return ProgressView(
        stage=job.progress.get("stage"),
        percent=round(min(100.0, 100.0 * done / total), 2) if total else None,
        done=done,
        total=total,
        unit=job.progress.get("unit", "step"),
        eta=_eta(job, done, total),
        eta_earliest=_eta_at(job, done, total, rate=fast),
        eta_latest=_eta_at(job, done, total, rate=slow),
        **extra,
    )


def _eta(job: Job, done: float, total: float | None) -> datetime | None:
    """Extrapolate the rate since this attempt began; of a running job with some progress only."""
    if None in (total, job.base_at, job.base_done, job.progress_at):
        return None
    if job.state is not State.RUNNING:
        return None
    began_with, began_at, now = job.base_done or 0.0, job.base_at or 0.0, job.progress_at or 0.0
    gained, seconds = done - began_with, now - began_at
    if not total or gained <= 0 or seconds <= 0:
        return None
    return _ahead(now, (total - done) * seconds / gained)


def _eta_at(job: Job, done: float, total: float | None, *, rate: float | None) -> datetime | None:
    if not rate or total is None or job.progress_at is None or job.state is not State.RUNNING:
        return None
    return _ahead(job.progress_at, (total - done) / rate)


def _ahead(since: float, seconds: float) -> datetime | None:
    """Return when that time will be over; None where so long an estimate says nothing."""
    # The calendar itself ends with the year 9999, which a slow job of many steps passes.
    return known_moment(since + max(0.0, seconds)) if seconds <= _FARTHEST_S else None


def failure_of(job: Job) -> FailureView | None:
    """Show why a job failed, if it did."""
    if job.error is None:
        return None
    known = {"code": job.reason or "failed", "detail": job.reason or "The job failed."}
    return FailureView.model_validate(known | job.error | {"blame": job.blame})


def _timestamps(job: Job) -> dict[str, datetime | None]:
    return {
        "created": moment(job.created_at),
        "queued": moment(job.queued_at),
        "started": moment(job.started_at),
        "finished": moment(job.finished_at),
        "deadline": moment(job.deadline_at),
    }


def links_of(job: Job) -> dict[str, Any]:
    """Show where to go from a job."""
    path = f"/v1/jobs/{job.id}"
    parts = ("events", "metrics", "attempts", "checkpoints")
    files = (job.result or {}).get("files", {})
    return {
        "self": path,
        **{part: f"{path}/{part}" for part in parts},
        "download": {name: f"{path}/files/{quote(name, safe='')}" for name in files},
    }
