"""What the service answers, typed. Unknown fields are kept: the API only ever adds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

TERMINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
"""Statuses that never change again; ``paused`` is not one of them."""


class View(BaseModel):
    """Base of all answers: readable by attribute, unknown fields kept in ``model_extra``."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Progress(View):
    """How far a job is; counts in ``unit``, times in UTC."""

    stage: str | None = None
    percent: float | None = None
    done: float | None = None
    total: float | None = None
    unit: str | None = None
    bytes_done: int | None = None
    rate: float | None = None
    eta: datetime | None = None
    eta_earliest: datetime | None = None
    eta_latest: datetime | None = None


class JobError(View):
    """Why a job failed: the same fields as a problem document, and whose fault it was."""

    code: str | None = None
    detail: str | None = None
    fix: str | None = None
    tensor: str | None = None
    field: str | None = None
    blame: str | None = None


class ResultFile(View):
    """One file that a job made."""

    artifact: str
    sha256: str
    bytes: int
    kind: str | None = None


class JobResult(View):
    """The files of a finished job by name, and its closing figures."""

    files: dict[str, ResultFile] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)


class Job(View):
    """One job as the service sees it now."""

    id: str
    status: str
    method: str | None = None
    reason: str | None = None
    spec: dict[str, Any] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    allowed_actions: list[str] = Field(default_factory=list)
    progress: Progress | None = None
    attempts: Any = None
    result: JobResult | None = None
    error: JobError | None = None
    timestamps: dict[str, datetime | None] = Field(default_factory=dict)
    links: dict[str, Any] = Field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the status is final."""
        return self.status in TERMINAL

    @property
    def succeeded(self) -> bool:
        """Whether it ended with its files."""
        return self.status == "succeeded"

    @property
    def method_name(self) -> str:
        """The method, from wherever the answer carries it."""
        return self.method or str(self.spec.get("method", "?"))


class BatchJob(View):
    """A job as its batch shows it; ``cell`` has the fields that vary, by dotted path."""

    custom_id: str
    job: str
    status: str
    cell: dict[str, Any] = Field(default_factory=dict)
    progress: Progress | None = None
    error: JobError | None = None
    links: dict[str, Any] = Field(default_factory=dict)


class Batch(View):
    """Many jobs of one request; a listing leaves ``jobs`` out."""

    id: str
    status: str
    name: str | None = None
    size: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    axes: list[dict[str, Any]] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)
    jobs: list[BatchJob] = Field(default_factory=list)
    timestamps: dict[str, datetime | None] = Field(default_factory=dict)
    links: dict[str, Any] = Field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every job has ended."""
        return self.status in TERMINAL

    @property
    def succeeded(self) -> bool:
        """Whether every job has succeeded."""
        return self.status == "succeeded"

    @property
    def ended(self) -> int:
        """How many jobs have ended."""
        return sum(count for status, count in self.counts.items() if status in TERMINAL)


class Summary(View):
    """A metric over the seeds; ``std`` is None for a single value."""

    mean: float
    std: float | None = None
    count: int = 1


class ReportRow(View):
    """One cell of a batch with what its job delivered."""

    number: int
    custom_id: str
    job: str
    status: str
    cell: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    error: JobError | None = None
    on_front: bool = False


class ReportGroup(View):
    """Cells that differ in the seed alone; ``rows`` are their numbers."""

    custom_id: str
    cell: dict[str, Any] = Field(default_factory=dict)
    rows: list[int] = Field(default_factory=list)
    metrics: dict[str, Summary] = Field(default_factory=dict)
    on_front: bool = False


class Report(View):
    """All cells of a batch side by side, in grid order."""

    batch: str
    name: str | None = None
    status: str
    varying: list[str] = Field(default_factory=list)
    metrics: list[str] = Field(default_factory=list)
    shown: list[str] = Field(default_factory=list)
    rows: list[ReportRow]
    groups: list[ReportGroup] = Field(default_factory=list)
    front: dict[str, Any] = Field(default_factory=dict)


class Plan(View):
    """What a job would do: the answer of a dry run."""

    tensors_selected: Any = None
    tensors_skipped: Any = None
    output_bytes: int | None = None
    peak_memory_bytes: int | None = None
    training: Any = None
    warnings: list[str] = Field(default_factory=list)


class CellPlan(View):
    """What one cell of a batch would do."""

    custom_id: str
    plan: Plan


class BatchPlan(View):
    """What a batch would do: the answer of a dry run."""

    size: int
    cells: list[CellPlan]


class Artifact(View):
    """A stored file."""

    id: str
    sha256: str
    bytes: int | None = None
    name: str | None = None
    kind: str | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None


class CheckpointFile(View):
    """One file of a checkpoint; without a digest where it is stored in several pieces."""

    name: str
    bytes: int
    url: str
    sha256: str | None = None


class Checkpoint(View):
    """Where a job can go on, and the files of it."""

    number: int
    step: int
    bytes: int | None = None
    attempt: int | None = None
    created_at: datetime | None = None
    files: list[CheckpointFile] = Field(default_factory=list)


class UploadPart(View):
    """One part of an upload: where its bytes go, counted from 1."""

    number: int
    url: str | None = None
    received: bool = False


class Upload(View):
    """A resumable upload: parts of ``part_size`` bytes, the last one shorter."""

    id: str
    status: str = "open"  # or completed, or aborted
    part_size: int
    parts: list[UploadPart] = Field(default_factory=list)
    artifact: Artifact | None = None


class Event(View):
    """One entry of a job's history; ``seq`` has no gaps."""

    seq: int
    type: str
    data: dict[str, Any] = Field(default_factory=dict)
    at: datetime | None = None


class Method(View):
    """One thing the service can do, with the JSON Schema of its spec."""

    name: str
    summary: str | None = None
    json_schema: Mapping[str, Any] = Field(default_factory=dict, alias="schema")


class Page(View, Generic[T]):
    """One page of a list; ask on with ``after=next``."""

    data: list[T]
    has_more: bool = False
    next: str | None = None
