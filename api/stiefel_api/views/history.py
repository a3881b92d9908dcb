"""What a job leaves behind while it runs: events, metrics, attempts, checkpoints; and plans."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

from pydantic import Field

from stiefel_api.views.base import JOB_EXAMPLE, TIME_EXAMPLE, View, known_moment, moment
from stiefel_jobs.records import Attempt, Checkpoint, Event, Point


class EventView(View):
    """Something that happened to a job."""

    seq: int = Field(description="1, 2, 3 … without a gap.", examples=[4])
    type: str = Field(description="Kind of event.", examples=["job.status"])
    at: datetime = Field(description="When.", examples=[TIME_EXAMPLE])
    data: dict[str, Any] = Field(
        description="What, by kind.", examples=[{"state": "running", "previous": "queued"}]
    )

    @classmethod
    def of(cls, event: Event) -> Self:
        """Show a record of the store."""
        return cls(seq=event.seq, type=event.type, at=known_moment(event.at), data=event.data)


class PointView(View):
    """One number of a metric's series."""

    name: str = Field(description="The series.", examples=["train.loss"])
    step: int = Field(description="Where on the series.", examples=[400])
    value: float | None = Field(description="Null where it was not finite.", examples=[0.8123])
    at: datetime | None = Field(description="When it was reported.", examples=[TIME_EXAMPLE])

    @classmethod
    def of(cls, point: Point) -> Self:
        """Show a record of the store."""
        return cls(name=point.name, step=point.step, value=point.value, at=moment(point.at))


class AttemptView(View):
    """One worker's try at a job."""

    number: int = Field(description="Counted from 1.", examples=[1])
    worker: str = Field(description="Who tried.", examples=["gpu-3"])
    resumed_from: int | None = Field(
        description="Step of the checkpoint it began from; null: from the start.", examples=[None]
    )
    started_at: datetime = Field(description="When it began.", examples=[TIME_EXAMPLE])
    ended_at: datetime | None = Field(description="When it ended.", examples=[TIME_EXAMPLE])
    reason: str | None = Field(description="Why it ended.", examples=["worker_lost"])
    blame: str | None = Field(description="Whose fault that was.", examples=["system"])
    error: dict[str, Any] | None = Field(description="What was reported.", examples=[None])

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        """Show a record of the store."""
        return cls(
            number=attempt.number,
            worker=attempt.worker,
            resumed_from=attempt.resumed_from,
            started_at=known_moment(attempt.started_at),
            ended_at=moment(attempt.ended_at),
            reason=attempt.reason,
            blame=attempt.blame,
            error=attempt.error,
        )


class CheckpointFileView(View):
    """One file of a checkpoint."""

    name: str = Field(
        description="Its path in the run's state folder.",
        examples=["step-000000980.weights.safetensors"],
    )
    bytes: int = Field(description="Its size.", examples=[3138048])
    sha256: str | None = Field(
        description="Digest of its bytes; null where it is stored in several pieces.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    metrics: dict[str, float] = Field(
        default_factory=dict,
        description="Of the step that its name tells: every series with a point there.",
        examples=[{"test_accuracy": 0.9719, "test_loss": 0.1024}],
    )
    url: str = Field(
        description="Where its bytes are.",
        examples=[f"/v1/jobs/{JOB_EXAMPLE}/checkpoints/7/files/step-000000980.weights.safetensors"],
    )


def step_of(path: str) -> int | None:
    """The step that the name of a checkpoint's file tells."""
    found = re.match(r"step-(\d{1,18})\.", path)
    return int(found[1]) if found else None


class CheckpointView(View):
    """Where a job can continue."""

    number: int = Field(description="Counted from 1.", examples=[7])
    step: int = Field(description="Steps done.", examples=[98])
    attempt: int = Field(description="The attempt that made it.", examples=[1])
    bytes: int = Field(description="Size of the state.", examples=[5712306176])
    created_at: datetime = Field(description="When it was made.", examples=[TIME_EXAMPLE])
    files: list[CheckpointFileView] = Field(description="What it consists of.")

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, *, job_id: str, metrics: Mapping[int, dict[str, float]]
    ) -> Self:
        """Show a record of the store; ``metrics`` by step."""
        base = f"/v1/jobs/{job_id}/checkpoints/{checkpoint.number}/files"
        files = [
            CheckpointFileView(
                name=file.path,
                bytes=file.size,
                sha256=file.segments[0].sha256 if len(file.segments) == 1 else None,
                metrics=metrics.get(step_of(file.path) or 0, {}),
                url=f"{base}/{quote(file.path)}",
            )
            for file in checkpoint.files
        ]
        return cls(
            number=checkpoint.number,
            step=checkpoint.step,
            attempt=checkpoint.attempt,
            bytes=checkpoint.size,
            created_at=known_moment(checkpoint.created_at),
            files=files,
        )


class TrainingPlanView(View):
    """What a training job would do; null is what only the worker will find out."""

    layers: list[dict[str, Any]] = Field(
        description="Layers with a weight matrix: what constrains each, or the reason why nothing "
        "does; at most 1,000 are listed."
    )
    layers_constrained: int | None = Field(description="How many in truth.", examples=[3])
    layers_left: int | None = Field(description="How many stay as they are.", examples=[1])
    parameters: int | None = Field(description="Of the dense network.", examples=[784510])
    parameters_constrained: int | None = Field(
        description="Of these, in weights under the constraint.", examples=[779500]
    )
    parameters_at_start: int | None = Field(
        description="Numbers stored when training starts; ranks change on the way.",
        examples=[196210],
    )
    steps_per_epoch: int | None = Field(description="Batches in one epoch.", examples=[468])
    steps: int | None = Field(description="In all, at most.", examples=[4680])
    decided_by_worker: list[str] = Field(
        description="What only the worker will find out.",
        examples=[["the number of classes, from the labels"]],
    )


class PlanView(View):
    """What a job would do, without a job."""

    object: str = Field(default="plan", description="Always `plan`.")
    method: str = Field(description="The method.", examples=["project.unitary"])
    spec: dict[str, Any] = Field(description="The spec in force, defaults filled in.")
    queue: str = Field(description="Which workers would take it.", examples=["cpu"])
    tensors_selected: list[dict[str, Any]] = Field(
        description="What is converted and what becomes of it; at most 1,000 are listed."
    )
    selected_count: int = Field(description="How many in truth.", examples=[24])
    tensors_skipped: list[dict[str, Any]] = Field(
        description="What passes through unchanged, each with its reason; at most 1,000."
    )
    skipped_count: int = Field(description="How many in truth.", examples=[77])
    input_bytes: int = Field(description="Bytes of the input files.", examples=[90868376])
    output_bytes: int = Field(
        description="Bytes of the result; an upper bound where ranks are found on the way.",
        examples=[90868376],
    )
    peak_memory_bytes: int = Field(
        description="Estimated memory of the worker's processes; 0 where it is not known.",
        examples=[425721856],
    )
    training: TrainingPlanView | None = Field(
        default=None, description="Layers and steps of a training job.", examples=[None]
    )
    warnings: list[str] = Field(default_factory=list, description="What may surprise.")
