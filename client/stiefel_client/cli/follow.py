"""Waiting for a job in a terminal: progress, detaching, exit codes."""

from __future__ import annotations

from pathlib import Path

import typer

from stiefel_client.cli.options import EXIT_DETACHED, EXIT_FAILED
from stiefel_client.cli.show import byte_bar, job_bar, out, print_json, say, show_job
from stiefel_client.client import Stiefel
from stiefel_client.models import Job


def follow(
    client: Stiefel,
    job_id: str,
    *,
    timeout: float | None,
    download: Path | None,
    json: bool,
) -> list[Path]:
    """Wait for the job's end and fetch its files; Ctrl-C leaves the job running.

    Returns:
        The files that were fetched: none without ``download``.

    Raises:
        typer.Exit: 1 unless the job succeeded, 130 on Ctrl-C.
        WaitTimeoutError: not finished in time.
    """
    try:
        job = _wait(client, job_id, timeout=timeout, quiet=json)
        paths = fetch(client, job, download, quiet=json) if download and job.succeeded else []
    except KeyboardInterrupt:
        say(f"detached; {job_id} goes on. Follow it again with: stiefel watch {job_id}")
        raise typer.Exit(EXIT_DETACHED) from None
    if json:
        print_json(job)
    else:
        show_job(job)
        for path in paths:
            out.print(str(path), markup=False)
    if not job.succeeded:
        raise typer.Exit(EXIT_FAILED)
    return paths


def fetch(client: Stiefel, job: Job, folder: Path, *, quiet: bool) -> list[Path]:
    """Download a job's files with a bar."""
    with byte_bar("download", quiet=quiet) as on_bytes:
        return client.jobs.download(job, folder, on_bytes=on_bytes)


def _wait(client: Stiefel, job_id: str, *, timeout: float | None, quiet: bool) -> Job:
    with job_bar(job_id, quiet=quiet) as on_change:
        return client.jobs.wait(job_id, timeout=timeout, on_change=on_change)
