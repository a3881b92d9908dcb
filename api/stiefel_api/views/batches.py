"""Batches: what a caller asks for, and what a batch looks like."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from stiefel_api.grids import Part, value_at
from stiefel_api.views.base import (
    ARTIFACT_EXAMPLE,
    BATCH_EXAMPLE,
    JOB_EXAMPLE,
    TIME_EXAMPLE,
    Body,
    Spec,
    View,
    moment,
    shallow,
)
from stiefel_api.views.history import PlanView
from stiefel_api.views.jobs import (
    FailureView,
    JobOptions,
    ProgressView,
    failure_of,
    links_of,
    progress_of,
)
from stiefel_jobs.batch_records import Batch
from stiefel_jobs.records import Job
from stiefel_jobs.states import State

BASE_EXAMPLE: dict[str, Any] = {
    "method": "train.dlrt",
    "network": {"family": "mlp", "hidden": [128, 128, 128]},
    "data": {
        "kind": "arrays",
        "train": ARTIFACT_EXAMPLE,
        "input": "x",
        "label": "y",
    },
}
GRID_EXAMPLE: dict[str, list[Any]] = {
    "truncation_tolerance": [0.05, 0.1, 0.2],
    "optimizer.learning_rate": [0.001],
    "seed": [0, 1, 2],
}
Path = Annotated[
    str, StringConstraints(max_length=255, pattern=r"^[^.\s\x00-\x1f]+(\.[^.\s\x00-\x1f]+)*$")
]
Values = Annotated[list[Any], Field(min_length=1), AfterValidator(shallow)]
CustomId = Annotated[
    str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
]
Grid = Annotated[dict[Path, Values], Field(max_length=16)]
_GRID = (
    "Fields of the spec, by dotted path, and the values each takes; every combination is a job. "
    "The last field varies fastest."
)


class BatchEntry(Body):
    """A spec of its own within a batch, for what a grid cannot say, such as another method."""

    custom_id: CustomId = Field(description="Its name in the report.", examples=["dense"])
    spec: Spec = Field(description="As in `POST /v1/jobs`.", examples=[BASE_EXAMPLE])
    grid: Grid = Field(default_factory=dict, description=_GRID, examples=[{"seed": [0, 1, 2]}])


class NewBatch(JobOptions):
    """A request for many jobs. The options beside the specs hold for each of them."""

    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Headline of the report.",
        examples=["tau on the digits"],
    )
    spec: Spec | None = Field(
        default=None, description="The spec that the grid varies.", examples=[BASE_EXAMPLE]
    )
    grid: Grid = Field(default_factory=dict, description=_GRID, examples=[GRID_EXAMPLE])
    jobs: list[BatchEntry] = Field(
        default_factory=list,
        description="More jobs, after those of the grid; each may have a grid of its own.",
        examples=[[]],
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.spec is None and not self.jobs:
            raise ValueError("a batch needs a spec, or jobs")
        if self.spec is None and self.grid:
            raise ValueError("the grid needs a spec that it varies")
        return self

    def parts(self) -> list[Part]:
        """Return every spec with its grid."""
        entries = [
            Part(entry.spec, entry.grid, f"/jobs/{index}", entry.custom_id)
            for index, entry in enumerate(self.jobs)
        ]
        return entries if self.spec is None else [Part(self.spec, self.grid), *entries]


class AxisView(View):
    """A field that varies."""

    path: str = Field(description="Dotted path into the spec.", examples=["truncation_tolerance"])
    values: list[Any] = Field(description="As given.", examples=[[0.05, 0.1]])


class BatchView(View):
    """A batch. It ends with its last job; retrying one opens it again."""

    id: str = Field(description="Name of the batch.", examples=[BATCH_EXAMPLE])
    object: str = Field(default="batch", description="Always `batch`.")
    name: str | None = Field(description="As given.", examples=["tau on the digits"])
    status: str = Field(
        description="`queued`, `running`, and once every job has ended `succeeded` (all did), "
        "`failed` (one failed or expired) or `cancelled`.",
        examples=["running"],
    )
    size: int = Field(description="Jobs in all.", examples=[9])
    counts: dict[str, int] = Field(
        description="Jobs by status; a status that none has is left out.",
        examples=[{"succeeded": 4, "running": 2, "queued": 3}],
    )
    axes: list[AxisView] = Field(description="The fields that vary, in the order given.")
    labels: dict[str, str] = Field(description="As given; every job has them.", examples=[{}])
    timestamps: dict[str, datetime | None] = Field(
        description="`created` and `finished`; null: not yet.", examples=[{"created": TIME_EXAMPLE}]
    )
    links: dict[str, str] = Field(
        description="Where to go from here.", examples=[{"self": f"/v1/batches/{BATCH_EXAMPLE}"}]
    )

    @classmethod
    def of(cls, batch: Batch, **more: Any) -> Self:
        """Show a record of the store."""
        path = f"/v1/batches/{batch.id}"
        return cls(
            id=batch.id,
            name=batch.name,
            status=status_of(batch),
            size=batch.size,
            counts={state: batch.counts[state] for state in State if batch.counts.get(state)},
            axes=[AxisView(**axis) for axis in batch.axes],
            labels=batch.labels,
            timestamps={
                "created": moment(batch.created_at),
                "finished": moment(batch.finished_at),
            },
            links={
                "self": path,
                "report": f"{path}/report",
                "cancel": f"{path}/cancel",
                "jobs": f"/v1/jobs?batch={batch.id}",
            },
            **more,
        )


class BatchJobView(View):
    """A job as its batch shows it."""

    custom_id: str = Field(description="Its name within the batch.", examples=["seed=0"])
    job: str = Field(description="The job.", examples=[JOB_EXAMPLE])
    cell: dict[str, Any] = Field(
        description="The fields that vary, as they stand in its spec.", examples=[{"seed": 0}]
    )
    status: State = Field(description="Where it stands.", examples=["running"])
    progress: ProgressView | None = Field(description="How far it is, once it has begun.")
    error: FailureView | None = Field(description="Why it failed, if it did.", examples=[None])
    links: dict[str, Any] = Field(description="Where to go from here.", examples=[{}])

    @classmethod
    def of(cls, job: Job, varying: list[str]) -> Self:
        """Show a record of the store."""
        return cls(
            custom_id=job.custom_id or job.id,
            job=job.id,
            cell=cell_of(job, varying),
            status=job.state,
            progress=progress_of(job),
            error=failure_of(job),
            links=links_of(job),
        )


class BatchDetail(BatchView):
    """A batch with its jobs."""

    jobs: list[BatchJobView] = Field(description="In the order of the grid.")

    @classmethod
    def with_jobs(cls, batch: Batch, jobs: list[Job]) -> Self:
        """Show records of the store."""
        varying = varying_of(batch, jobs)
        return cls.of(batch, jobs=[BatchJobView.of(job, varying) for job in jobs])


class CellPlanView(View):
    """What one job of a batch would do."""

    custom_id: str = Field(description="Its name within the batch.", examples=["seed=0"])
    plan: PlanView = Field(description="At most ten tensors of each kind are listed.")


class BatchPlanView(View):
    """What a batch would do, without a job."""

    object: str = Field(default="batch_plan", description="Always `batch_plan`.")
    size: int = Field(description="Jobs in all.", examples=[9])
    axes: list[AxisView] = Field(description="The fields that vary.")
    cells: list[CellPlanView] = Field(description="In the order of the grid.")


def status_of(batch: Batch) -> str:
    """Return where a batch stands, in the words of a job."""
    present = {state for state, count in batch.counts.items() if count}
    if not batch.finished:
        return "queued" if present == {State.QUEUED} else "running"
    if present == {State.SUCCEEDED}:
        return "succeeded"
    return "failed" if present & {State.FAILED, State.EXPIRED} else "cancelled"


def varying_of(batch: Batch, jobs: list[Job]) -> list[str]:
    """Return the paths in which the jobs of a batch differ: the method, then the axes."""
    paths = [axis["path"] for axis in batch.axes]
    several = len({job.method for job in jobs}) > 1 and "method" not in paths
    return ["method", *paths] if several else paths


def cell_of(job: Job, varying: list[str]) -> dict[str, Any]:
    """Return a job's values at these paths; a path that its spec lacks is left out."""
    found = {}
    for path in varying:
        try:
            found[path] = value_at(job.spec, path)
        except KeyError:
            continue
    return found
