"""What the store takes and gives about batches: plain frozen records, as in ``records``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stiefel_jobs.records import Submission
from stiefel_jobs.states import TERMINAL, State


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A request for many jobs, already validated; ``cells`` are (custom id, job) in grid order.

    ``axes`` name the fields that vary: ``[{"path": "seed", "values": [0, 1]}]``.
    """

    cells: Sequence[tuple[str, Submission]]
    axes: Sequence[Mapping[str, Any]] = ()
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as its owner sees it; ``counts`` has the number of its jobs in each state."""

    id: str
    tenant: str
    name: str | None
    labels: dict[str, str]
    axes: list[dict[str, Any]]
    size: int
    created_at: float
    counts: Mapping[State, int]
    version: int  # grows with every visible change of any of its jobs
    finished_at: float | None

    @property
    def finished(self) -> bool:
        """Whether every job has come to an end (a failed one may still be retried)."""
        return TERMINAL.issuperset(self.counts)


@dataclass(frozen=True, slots=True)
class BatchSubmitted:
    """The batch, the ids of its jobs, and whether an earlier request had made it."""

    batch: Batch
    job_ids: tuple[str, ...]
    replayed: bool
