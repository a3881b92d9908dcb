"""A report as text: CSV for programs, markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stiefel_api.grids import plain
from stiefel_api.views.reports import GroupView, ReportView

_MARK = "●"


def as_csv(report: ReportView) -> str:
    """Return one table: a line per cell, then a line each for mean and deviation over the seeds.

    The column ``kind`` tells them apart: ``cell``, ``mean`` or ``std``.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fields, metrics = report.varying, report.metrics
    writer.writerow(["kind", "custom_id", "job", "status", *fields, *metrics, "on_front"])
    for row in report.rows:
        cell = _cells(row.cell, fields)
        figures = [_text(row.metrics, name) for name in metrics]
        head = ["cell", row.custom_id, row.job, row.status]
        writer.writerow([*head, *cell, *figures, _truth(row.on_front)])
    for group in report.groups:
        cell = _cells(group.cell, fields)
        for kind in ("mean", "std"):
            figures = [_number(group, name, kind) for name in metrics]
            mark = _truth(group.on_front) if kind == "mean" else ""
            writer.writerow([kind, group.custom_id, "", "", *cell, *figures, mark])
    return out.getvalue()


def as_markdown(report: ReportView) -> str:
    """Return the tables for people: every cell, and the means over the seeds."""
    cells = [row.cell for row in report.rows]
    # Where the varying fields do not tell the jobs apart, their names do.
    distinct = all(cell not in cells[:index] for index, cell in enumerate(cells))
    fields = report.varying if report.varying and distinct else ["custom_id", *report.varying]
    counts = ", ".join(f"{count} {state}" for state, count in report.counts.items())
    lines = [
        f"# {_escaped(report.name or report.batch)}",
        "",
        f"{len(report.rows)} jobs: {counts}.",
    ]
    if report.front.size and report.front.quality:
        lines += [
            "",
            f"{_MARK} on the front: least {report.front.size}, {report.front.better} "
            f"{report.front.quality} is better.",
        ]
    lines += ["", *_rows(report, fields)]
    if report.groups:
        lines += ["", "Mean ± standard deviation over the seeds:", ""]
        lines += _means(report, [path for path in fields if path != "seed"])
    return "\n".join(lines) + "\n"


def _rows(report: ReportView, fields: Sequence[str]) -> Iterable[str]:
    yield from _head([*fields, "status", *report.shown, "front"])
    for row in report.rows:
        known = {"custom_id": row.custom_id, **row.cell}
        yield _line(
            [
                *_cells(known, fields),
                row.status,
                *(_figure(row.metrics.get(name)) for name in report.shown),
                _MARK if row.on_front else "",
            ]
        )


def _means(report: ReportView, fields: Sequence[str]) -> Iterable[str]:
    yield from _head([*fields, "seeds", *report.shown, "front"])
    for group in report.groups:
        known = {"custom_id": group.custom_id, **group.cell}
        yield _line(
            [
                *_cells(known, fields),
                str(len(group.rows)),
                *(_spread(group, name) for name in report.shown),
                _MARK if group.on_front else "",
            ]
        )


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("\r", " ")


def _spread(group: GroupView, name: str) -> str:
    summary = group.metrics.get(name)
    if summary is None:
        return ""
    deviation = "" if summary.std is None else f" ± {_figure(summary.std)}"
    return _figure(summary.mean) + deviation


def _number(group: GroupView, name: str, kind: str) -> str:
    summary = group.metrics.get(name)
    value = getattr(summary, kind) if summary is not None else None
    return "" if value is None else repr(value)


def _figure(value: Any) -> str:
    """Four figures are what a reader compares; whole numbers stay whole."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _cells(known: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """A field that a spec lacks is left blank; one that is null says so."""
    return [plain(known[field]) if field in known else "" for field in fields]


def _text(metrics: Mapping[str, Any], name: str) -> str:
    return plain(metrics[name]) if metrics.get(name) is not None else ""


def _truth(value: bool) -> str:
    return "true" if value else "false"
