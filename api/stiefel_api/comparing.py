"""From the jobs of a batch to one report: rows, means over the seeds, and the front.

A row is on the front when no other row is at once as small and as good, and better in one of the
two. Only rows that have both figures take part.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stiefel_api.problems import Problem
from stiefel_api.views.batches import AxisView, BatchView, cell_of, varying_of
from stiefel_api.views.jobs import failure_of
from stiefel_api.views.reports import FrontView, GroupView, ReportView, RowView, SummaryView
from stiefel_jobs.batch_records import Batch
from stiefel_jobs.records import Job
from stiefel_jobs.states import TERMINAL

#: Metrics that a reader looks at first, in this order: those that a table for people shows.
_LEADING = (
    "test_accuracy",
    "test_loss",
    "parameters_before",
    "parameters_after",
    "parameters_saved",
    "trainable_share",
    "bytes_before",
    "bytes_after",
    "min_retained_energy",
    "max_relative_error",
    "max_distance_to_input",
    "max_orthogonality_defect",
    "seconds_training",
    "seconds_converting",
    "wall_seconds",
)
_SEED = re.compile(r"(^|[,/])seed=\d+")
_SIZES = ("parameters_after", "bytes_after")
_QUALITIES = (
    "test_accuracy",
    "-test_loss",
    "min_retained_energy",
    "-max_relative_error",
    "-max_distance_to_input",
)


@dataclass(frozen=True)
class Aim:
    """What counts as small and as good; a quality is told as ``name``, or ``-name``: less is."""

    size: str | None
    quality: str | None

    @property
    def metric(self) -> str | None:
        """The metric of quality, without its sign."""
        return None if self.quality is None else self.quality.lstrip("-")

    def point(self, metrics: Mapping[str, Any]) -> tuple[float, float] | None:
        """Return (size, badness), or None where a figure is missing."""
        if self.size is None or self.quality is None:
            return None
        size, quality = _number(metrics, self.size), _number(metrics, self.quality.lstrip("-"))
        if size is None or quality is None:
            return None
        return size, quality if self.quality.startswith("-") else -quality


def compare(
    batch: Batch, jobs: list[Job], *, size: str | None = None, quality: str | None = None
) -> ReportView:
    """Return the report of a batch as it stands; jobs that go on have no metrics yet.

    Args:
        batch: the batch.
        jobs: its jobs, in grid order.
        size: the metric of size; by default parameters, else bytes.
        quality: the metric of quality, with a minus where less is better; by default the
            accuracy, else the loss, else what the conversion certifies.

    Raises:
        Problem: rows have metrics, and none of them the one asked for.
    """
    varying = varying_of(batch, jobs)
    rows = [_row(number, job, varying) for number, job in enumerate(jobs)]
    known = _columns(row.metrics for row in rows)
    aim = Aim(_choose(size, _SIZES, known, "size"), _choose(quality, _QUALITIES, known, "quality"))
    front = pareto([aim.point(row.metrics) for row in rows])
    for row in rows:
        row.on_front = row.number in front
    view = BatchView.of(batch)
    return ReportView(
        batch=batch.id,
        name=batch.name,
        status=view.status,
        counts=view.counts,
        axes=[AxisView(**axis) for axis in batch.axes],
        varying=varying,
        metrics=known,
        shown=[name for name in known if name in _LEADING],
        rows=rows,
        groups=_groups(jobs, rows, aim),
        front=FrontView(
            size=aim.size,
            quality=aim.metric,
            better="less" if (aim.quality or "").startswith("-") else "more",
        ),
    )


def pareto(points: Sequence[tuple[float, float] | None]) -> set[int]:
    """Return which points no other one dominates; less is better in both coordinates."""

    def dominated(point: tuple[float, float]) -> bool:
        return any(
            other is not None and other != point and other[0] <= point[0] and other[1] <= point[1]
            for other in points
        )

    return {
        index for index, point in enumerate(points) if point is not None and not dominated(point)
    }


def _row(number: int, job: Job, varying: list[str]) -> RowView:
    metrics = dict((job.result or {}).get("metrics", {}))
    if job.state in TERMINAL and job.started_at is not None and job.finished_at is not None:
        metrics["wall_seconds"] = round(job.finished_at - job.started_at, 3)
    return RowView(
        number=number,
        custom_id=job.custom_id or job.id,
        job=job.id,
        cell=cell_of(job, varying),
        status=job.state,
        error=failure_of(job),
        metrics=metrics,
        on_front=False,
    )


def _groups(jobs: Sequence[Job], rows: Sequence[RowView], aim: Aim) -> list[GroupView]:
    """Gather the cells that differ in the seed alone; none where every cell stands by itself."""
    gathered: dict[str, list[RowView]] = {}
    for job, row in zip(jobs, rows, strict=True):
        rest = {name: value for name, value in job.spec.items() if name != "seed"}
        gathered.setdefault(json.dumps(rest, sort_keys=True), []).append(row)
    if all(len(members) == 1 for members in gathered.values()):
        return []
    groups = [_group(members) for members in gathered.values()]
    means = [{name: each.mean for name, each in group.metrics.items()} for group in groups]
    front = pareto([aim.point(each) for each in means])
    for index, group in enumerate(groups):
        group.on_front = index in front
    return groups


def _group(members: Sequence[RowView]) -> GroupView:
    first = members[0]
    summaries = {}
    for name in _columns(row.metrics for row in members):
        found = (_number(row.metrics, name) for row in members)
        values = [value for value in found if value is not None]
        if values:
            summaries[name] = SummaryView(
                mean=statistics.fmean(values),
                std=statistics.stdev(values) if len(values) > 1 else None,
                count=len(values),
            )
    return GroupView(
        custom_id=_SEED.sub("", first.custom_id).strip(",/"),
        cell={path: value for path, value in first.cell.items() if path != "seed"},
        rows=[row.number for row in members],
        metrics=summaries,
        on_front=False,
    )


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of all metrics: the leading ones, then the others as they come."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in _LEADING if name in names] + [n for n in names if n not in _LEADING]


def _choose(
    asked: str | None, candidates: Sequence[str], known: Sequence[str], parameter: str
) -> str | None:
    if asked is None:
        return next((name for name in candidates if name.lstrip("-") in known), None)
    if known and asked.lstrip("-") not in known:
        raise Problem(
            422,
            "unknown_metric",
            f"No job of the batch has a metric {asked[:100]!r}.",
            fix=f"Use one of: {', '.join(known[:40])}.",
            errors=[{"parameter": parameter, "in": "query", "message": "unknown metric"}],
        )
    return asked


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)
