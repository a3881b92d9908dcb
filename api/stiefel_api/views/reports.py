"""The comparative report of a batch."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stiefel_api.views.base import BATCH_EXAMPLE, JOB_EXAMPLE, View
from stiefel_api.views.batches import AxisView
from stiefel_api.views.jobs import FailureView
from stiefel_jobs.states import State


class RowView(View):
    """One cell of the grid."""

    number: int = Field(description="Counted from 0, in grid order.", examples=[0])
    custom_id: str = Field(description="Its name within the batch.", examples=["seed=0"])
    job: str = Field(description="The job.", examples=[JOB_EXAMPLE])
    cell: dict[str, Any] = Field(description="The fields that vary.", examples=[{"seed": 0}])
    status: State = Field(description="Where the job stands.", examples=["succeeded"])
    error: FailureView | None = Field(description="Why it failed, if it did.", examples=[None])
    metrics: dict[str, Any] = Field(
        description="What the job delivered, and `wall_seconds` from its first start to its end.",
        examples=[{"test_accuracy": 0.97, "parameters_after": 30410}],
    )
    on_front: bool = Field(
        description="Whether no other cell is at once as small and as good.", examples=[True]
    )


class SummaryView(View):
    """A metric over the seeds."""

    mean: float = Field(description="Arithmetic mean.", examples=[0.968])
    std: float | None = Field(
        description="Sample standard deviation (n - 1); null for one value.", examples=[0.004]
    )
    count: int = Field(description="Values that it is taken over.", examples=[3])


class GroupView(View):
    """Cells that differ in nothing but the seed."""

    custom_id: str = Field(
        description="Name of its first row, without the seed.", examples=["dense"]
    )
    cell: dict[str, Any] = Field(
        description="The fields that vary, without the seed.", examples=[{"method": "train.dlrt"}]
    )
    rows: list[int] = Field(description="Numbers of its rows.", examples=[[0, 1, 2]])
    metrics: dict[str, SummaryView] = Field(
        description="Over the rows that have succeeded.", examples=[{}]
    )
    on_front: bool = Field(
        description="As for a row, by the means and among the groups.", examples=[True]
    )


class FrontView(View):
    """By what rows are compared."""

    size: str | None = Field(
        description="The metric of size; less is better.", examples=["parameters_after"]
    )
    quality: str | None = Field(description="The metric of quality.", examples=["test_accuracy"])
    better: str = Field(description="Which quality is better: `more` or `less`.", examples=["more"])


class ReportView(View):
    """A batch as one table: size against accuracy."""

    object: str = Field(default="batch_report", description="Always `batch_report`.")
    batch: str = Field(description="The batch.", examples=[BATCH_EXAMPLE])
    name: str | None = Field(description="As given.", examples=["tau on the digits"])
    status: str = Field(description="Where the batch stands.", examples=["succeeded"])
    counts: dict[str, int] = Field(description="Jobs by status.", examples=[{"succeeded": 9}])
    axes: list[AxisView] = Field(description="The fields that vary, as given.")
    varying: list[str] = Field(
        description="Paths in which the cells differ: columns of the table.",
        examples=[["method", "truncation_tolerance", "seed"]],
    )
    metrics: list[str] = Field(
        description="Metrics that any row has: more columns of the table.",
        examples=[["test_accuracy", "parameters_after"]],
    )
    shown: list[str] = Field(
        description="Those of them that a table for people shows.", examples=[["test_accuracy"]]
    )
    rows: list[RowView] = Field(description="One per cell, in grid order.")
    groups: list[GroupView] = Field(
        description="Mean and deviation over the seeds, where cells differ in the seed alone."
    )
    front: FrontView = Field(description="How the front was found.")
