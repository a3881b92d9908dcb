"""What the command line prints: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from stiefel_client.errors import StiefelApiError, StiefelClientError
from stiefel_client.models import Job
from stiefel_client.transport import OnBytes

# A pipe has no width: nothing that another program reads is cut.
_WIDE = 240
out = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _WIDE)

_COLOURS = {"succeeded": "green", "failed": "red", "expired": "red", "cancelled": "yellow"}


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def print_json_line(value: Any) -> None:
    """One JSON document on one line of stdout, at once."""
    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A notice on stderr."""
    err.print(escape(text))


def complain(error: StiefelClientError) -> None:
    """An error on stderr: what is wrong, where, and what to do."""
    err.print(f"[red]error:[/red] {escape(str(error))}")
    if isinstance(error, StiefelApiError):
        for entry in error.errors:
            err.print(f"  {escape(str(entry.get('pointer', '')))}: {escape(_message(entry))}")
        if error.allowed_actions:
            err.print(f"  possible now: {', '.join(map(escape, error.allowed_actions))}")
        if error.status >= 500 and error.request_id:
            err.print(f"  request: {escape(error.request_id)}")
    if error.fix:
        err.print(f"  {escape(error.fix)}")


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    """A plain table; every cell is text, never markup."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def job_row(job: Job) -> tuple[str, ...]:
    """One line of `stiefel jobs`."""
    created = _ago(job.timestamps.get("created"))
    return (job.id, job.method_name, job.status, _percent(job), created)


def show_job(job: Job) -> None:
    """A finished or present state on stderr, with its files or its error."""
    colour = _COLOURS.get(job.status, "cyan")
    err.print(f"{escape(job.id)} [{colour}]{escape(job.status)}[/{colour}]")
    if job.error is not None:
        blame = f" ({job.error.blame})" if job.error.blame else ""
        err.print(f"  {escape(job.error.detail or job.error.code or 'no detail')}{escape(blame)}")
        if job.error.fix:
            err.print(f"  {escape(job.error.fix)}")
    if job.result is not None:
        for name, file in job.result.files.items():
            err.print(f"  {escape(name)}  {file.bytes:,} bytes  {escape(file.artifact)}")
        for name, value in job.result.metrics.items():
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            err.print(f"  {escape(name)} = {escape(shown)}")


@contextmanager
def byte_bar(title: str, *, quiet: bool) -> Iterator[OnBytes | None]:
    """A progress bar for a transfer on stderr; None where nobody would see it."""
    if quiet or not err.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=err) as bars:
        bar = bars.add_task(escape(title), total=None)

        def update(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        yield update


@contextmanager
def job_bar(job_id: str, *, quiet: bool) -> Iterator[Callable[[Job], None]]:
    """A progress bar that follows a job; plain lines of status where stderr is no terminal."""
    if quiet:
        yield lambda job: None
        return
    if not err.is_terminal:
        yield _StatusLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bars:
        bar = bars.add_task(escape(job_id), total=None)

        def update(job: Job) -> None:
            progress = job.progress
            total = progress.total if progress else None
            done = (progress.done if progress else None) or 0
            stage = progress.stage if progress else None
            title = " ".join(filter(None, (job_id, job.status, stage)))
            bars.update(bar, description=escape(title), completed=done, total=total)

        yield update


class _StatusLines:
    """Prints a job's status whenever it is another than before."""

    def __init__(self) -> None:
        self._last: str | None = None

    def __call__(self, job: Job) -> None:
        if job.status != self._last and not job.finished:
            say(f"{job.id} {job.status}")
        self._last = job.status


def _message(entry: Any) -> str:
    return str(entry.get("message") or entry.get("detail") or "")


def _percent(job: Job) -> str:
    percent = job.progress.percent if job.progress else None
    return "" if percent is None else f"{percent:.0f} %"


def _ago(at: datetime | None) -> str:
    if at is None:
        return ""
    seconds = int((datetime.now(UTC) - at.replace(tzinfo=at.tzinfo or UTC)).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{max(0, seconds)} s ago"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
