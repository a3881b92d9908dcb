"""Commands about jobs that exist: watch, jobs, cancel, pause, resume, retry."""

from __future__ import annotations

from typing import Annotated

import typer

from stiefel_client.cli.follow import follow
from stiefel_client.cli.options import EXIT_DETACHED, EXIT_FAILED, JobId, Json, Key, Url
from stiefel_client.cli.show import job_row, out, print_json, print_json_line, say, show_job, table
from stiefel_client.cli.show_batches import counts
from stiefel_client.cli.sweep import follow_batch
from stiefel_client.client import Stiefel
from stiefel_client.models import Job

BATCH = "batch_"  # ids of batches begin with it


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (watch, jobs, cancel, pause, resume, retry):
        app.command()(command)


def watch(
    job: JobId,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds; then exit 3.")] = None,
    events: Annotated[bool, typer.Option("--events", help="Print every event.")] = False,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Follow a job or a batch to its end; Ctrl-C detaches."""
    with Stiefel(url, key) as client:
        if job.startswith(BATCH):
            follow_batch(client, job, timeout=timeout, form="table", json=json)
            return
        if events:
            _print_events(client, job, timeout=timeout, json=json)
        follow(client, job, timeout=timeout, download=None, json=json)


def _print_events(client: Stiefel, job_id: str, *, timeout: float | None, json: bool) -> None:
    try:
        for event in client.jobs.events(job_id, timeout=timeout):
            if json:
                print_json_line(event)
            else:
                out.print(f"{event.seq:>6}  {event.type}  {event.data}", markup=False)
    except KeyboardInterrupt:
        say(f"detached; {job_id} goes on. Follow it again with: stiefel watch {job_id}")
        raise typer.Exit(EXIT_DETACHED) from None


def jobs(
    status: Annotated[list[str] | None, typer.Option(help="Only these; may repeat.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="name=value; may repeat.")] = None,
    batch: Annotated[str | None, typer.Option(help="Only of this batch.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    found: list[Job] = []
    with Stiefel(url, key) as client:
        after: str | None = None
        while len(found) < limit:
            page = client.jobs.list(
                status=status or (),
                label=label or (),
                batch=batch,
                after=after,
                limit=min(100, limit - len(found)),
            )
            found += page.data
            after = page.next
            if not page.has_more or after is None:
                break
    if json:
        print_json(found)
    else:
        columns = ("job", "method", "status", "done", "submitted")
        out.print(table(columns, (job_row(job) for job in found)))


def cancel(job: JobId, url: Url = None, key: Key = None, json: Json = False) -> None:
    """End a job, or every job of a batch, without its result."""
    with Stiefel(url, key) as client:
        if job.startswith(BATCH):
            batch = client.batches.cancel(job)
            print_json(batch) if json else say(f"{batch.id} {counts(batch)}")
            return
        _show(client.jobs.cancel(job), json=json)


def pause(job: JobId, url: Url = None, key: Key = None, json: Json = False) -> None:
    """Stop a job at its next checkpoint; resume continues there."""
    with Stiefel(url, key) as client:
        _show(client.jobs.pause(job), json=json)


def resume(job: JobId, url: Url = None, key: Key = None, json: Json = False) -> None:
    """Let a paused job go on."""
    with Stiefel(url, key) as client:
        _show(client.jobs.resume(job), json=json)


def retry(job: JobId, url: Url = None, key: Key = None, json: Json = False) -> None:
    """Start a failed or cancelled job again."""
    with Stiefel(url, key) as client:
        _show(client.jobs.retry(job), json=json)


def _show(job: Job, *, json: bool) -> None:
    if json:
        print_json(job)
    else:
        show_job(job)
    if job.status == "failed":
        raise typer.Exit(EXIT_FAILED)
