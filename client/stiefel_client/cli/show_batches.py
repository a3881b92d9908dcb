"""How the command line shows batches: bars, and tables of the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stiefel_client.cli.show import err, out, say, table
from stiefel_client.models import Batch, Report, Summary

_MARK = "●"


@contextmanager
def batch_bar(batch_id: str, *, quiet: bool) -> Iterator[Callable[[Batch], None]]:
    """A bar of the jobs that have ended; plain lines of counts where stderr is no terminal."""
    if quiet:
        yield lambda batch: None
        return
    if not err.is_terminal:
        yield _CountLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as bars:
        bar = bars.add_task(escape(batch_id), total=None)

        def update(batch: Batch) -> None:
            title = escape(f"{batch_id} {counts(batch)}")
            bars.update(bar, description=title, completed=batch.ended, total=batch.size)

        yield update


class _CountLines:
    """Prints the counts whenever they are others than before."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, batch: Batch) -> None:
        now = counts(batch)
        if now != self._last and not batch.finished:
            say(f"{batch.id} {now}")
        self._last = now


def counts(batch: Batch) -> str:
    """The number of jobs in each state, in words."""
    return ", ".join(f"{count} {status}" for status, count in batch.counts.items())


def show_report(report: Report) -> None:
    """Every cell on stdout, then the means over the seeds; failures on stderr."""
    cells = [row.cell for row in report.rows]
    distinct = all(cell not in cells[:index] for index, cell in enumerate(cells))
    fields = report.varying if report.varying and distinct else ["custom_id", *report.varying]
    out.print(table([*fields, "status", *report.shown, "front"], _rows(report, fields)))
    if report.groups:
        out.print("\nmean ± standard deviation over the seeds")
        others = [field for field in fields if field != "seed"]
        out.print(table([*others, "seeds", *report.shown, "front"], _means(report, others)))
    for row in report.rows:
        if row.error is not None:
            say(f"{row.job} {row.custom_id}: {row.error.detail or row.error.code}")


def _rows(report: Report, fields: Sequence[str]) -> Iterator[list[str]]:
    for row in report.rows:
        known = {"custom_id": row.custom_id, **row.cell}
        figures = [_figure(row.metrics.get(name)) for name in report.shown]
        yield [*_cells(known, fields), row.status, *figures, _MARK if row.on_front else ""]


def _means(report: Report, fields: Sequence[str]) -> Iterator[list[str]]:
    for group in report.groups:
        known = {"custom_id": group.custom_id, **group.cell}
        figures = [_spread(group.metrics.get(name)) for name in report.shown]
        seeds = str(len(group.rows))
        yield [*_cells(known, fields), seeds, *figures, _MARK if group.on_front else ""]


def _cells(known: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    return [_plain(known[field]) if field in known else "" for field in fields]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _spread(summary: Summary | None) -> str:
    if summary is None:
        return ""
    deviation = "" if summary.std is None else f" ± {_figure(summary.std)}"
    return _figure(summary.mean) + deviation


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
