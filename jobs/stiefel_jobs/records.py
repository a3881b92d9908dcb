"""What the store takes and gives: plain frozen records, no behaviour, no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from stiefel_jobs.states import Blame, State

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing; ``next`` is the id to continue after, or None at the end."""

    items: list[T]
    next: str | None


# --- artifacts --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in the store, known by their digest."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A file about to become an artifact; its bytes are in the store already."""

    kind: str
    name: str
    sha256: str
    size: int
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A named file of a tenant. ``expires_at`` None: kept until deleted."""

    id: str
    tenant: str
    kind: str
    name: str
    sha256: str
    size: int
    job_id: str | None
    meta: dict[str, Any]
    created_at: float
    expires_at: float | None


# --- jobs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for work, already validated. Seconds, counted from the submission."""

    method: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)  # staged file name -> artifact id
    queue: str = "cpu"
    priority: int = 0
    max_attempts: int = 3
    deadline_s: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    output_ttl_s: float | None = None
    traceparent: str | None = None
    peak_memory_bytes: int | None = None  # as estimated; None where nobody can tell


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its owner sees it. ``base_*`` and ``progress*`` let a view estimate the end."""

    id: str
    tenant: str
    method: str
    spec: dict[str, Any]
    inputs: dict[str, str]
    labels: dict[str, str]
    queue: str
    priority: int
    max_attempts: int
    output_ttl_s: float | None
    traceparent: str | None
    state: State
    version: int
    last_seq: int
    fence: int
    attempt: int
    failures: int
    worker: str | None
    lease_until: float | None
    not_before: float
    deadline_s: float | None
    deadline_at: float | None
    progress: dict[str, Any] | None
    progress_at: float | None
    base_done: float | None
    base_at: float | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    blame: Blame | None
    reason: str | None
    created_at: float
    queued_at: float
    started_at: float | None
    finished_at: float | None
    batch_id: str | None
    custom_id: str | None  # its name within the batch


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job, and whether an earlier request with the same key had made it."""

    job: Job
    replayed: bool


# --- work under a lease -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a state file, stored as a blob."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class StateFile:
    """A file of the run's state folder; its segments in order make up ``size`` bytes."""

    path: str
    size: int
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a job can continue: the state files after ``step`` steps."""

    number: int
    step: int
    attempt: int
    size: int
    files: tuple[StateFile, ...]
    created_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease on a job. Every write for it carries ``fence``; a newer claim has a greater one."""

    job_id: str
    tenant: str
    method: str
    spec: dict[str, Any]
    inputs: dict[str, Artifact]
    queue: str
    fence: int
    attempt: int
    checkpoint: Checkpoint | None
    deadline_at: float | None
    seconds_left: float | None  # until the deadline, by the database's clock
    output_ttl_s: float | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is: ``done`` of ``total`` ``unit``s in a named stage."""

    stage: str
    done: float
    total: float | None = None
    unit: str = "step"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """One number of a metric's series. A value that is not finite is stored as null."""

    name: str
    step: int
    value: float | None
    at: float | None = None  # filled in by the database


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something worth telling, for the job's event stream."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of a job's event stream; ``seq`` counts 1, 2, 3 … without a gap."""

    seq: int
    at: float
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's try at a job. ``resumed_from`` is the step of the checkpoint, if any."""

    number: int
    fence: int
    worker: str
    resumed_from: int | None
    started_at: float
    ended_at: float | None
    reason: str | None
    blame: Blame | None
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message still to be sent: ring for this job on this queue."""

    id: int
    topic: str
    queue: str
    job_id: str


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep changed. ``ring`` holds (queue, job id) pairs that wait for a worker."""

    requeued: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    ring: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process, as it last reported itself."""

    id: str
    host: str
    queues: list[str]
    devices: dict[str, Any]
    version: str
    draining: bool
    started_at: float
    seen_at: float


# --- keys and uploads -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as stored: the secret itself is shown once and never kept."""

    id: str
    tenant: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class UploadPart:
    """One received part of an upload, numbered from 1."""

    number: int
    size: int
    sha256: str | None
    etag: str | None


@dataclass(frozen=True, slots=True)
class Upload:
    """A resumable upload and the parts received so far."""

    id: str
    tenant: str
    filename: str
    size: int
    sha256: str | None
    part_size: int
    state: str  # open, completed, aborted
    staging: str
    artifact_id: str | None
    created_at: float
    expires_at: float
    parts: tuple[UploadPart, ...]
