"""Commands about batches: sweep, batches, report."""

from __future__ import annotations

import json as jsonlib
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stiefel_client.cli.options import (
    EXIT_DETACHED,
    EXIT_FAILED,
    Json,
    Key,
    Url,
    read_grid,
    read_labels,
    read_parameters,
)
from stiefel_client.cli.show import out, print_json, say, table
from stiefel_client.cli.show_batches import batch_bar, counts, show_report
from stiefel_client.client import Stiefel

Form = Annotated[
    Literal["table", "csv", "markdown"], typer.Option("--format", help="How to print the report.")
]
Size = Annotated[str | None, typer.Option(help="Metric of size; default: parameters.")]
Quality = Annotated[
    str | None, typer.Option(help="Metric of quality, -NAME: less is better; default: accuracy.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (sweep, batches, report):
        app.command()(command)


def sweep(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A spec, or a whole batch with its grid and jobs; JSON, TOML, or - for stdin.",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="Field and its values: seed=0,1,2; may repeat.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="See `stiefel methods`.")
    ] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Field of the spec: name=value.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Headline of the report.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="name=value; may repeat.")] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal or high.")] = None,
    deadline: Annotated[str | None, typer.Option(help="ISO 8601, such as PT2H.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key never makes a second batch.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check and plan.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait; print the report.")] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait; then exit 3.")
    ] = None,
    form: Form = "table",
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Submit a grid of jobs, and compare them."""
    body = _read(source)
    fields = read_parameters(param or []) | ({"method": method} if method else {})
    if fields:
        body["spec"] = {**(body.get("spec") or {}), **fields}
    body["grid"] = {**(body.get("grid") or {}), **read_grid(grid or [])}
    given = {"name": name, "priority": priority, "deadline": deadline, "device": device}
    body |= {option: value for option, value in given.items() if value is not None}
    if label:
        body["labels"] = read_labels(label)
    if not body.get("spec") and not body.get("jobs"):
        raise typer.BadParameter("name a FILE with the spec, or a --method")
    with Stiefel(url, key) as client:
        if dry_run:
            print_json(client.batches.plan(**body))
            return
        batch = client.batches.create(**body, idempotency_key=idempotency_key)
        if wait:
            say(f"submitted {batch.id}: {batch.size} jobs")
            follow_batch(client, batch.id, timeout=timeout, form=form, json=json)
        elif json:
            print_json(batch)
        else:
            out.print(batch.id, markup=False)
            say(f"follow it with: stiefel watch {batch.id}")
            say(f"compare with:   stiefel report {batch.id}")


def batches(
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many at most.")] = 20,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """List batches, newest first."""
    with Stiefel(url, key) as client:
        found = client.batches.list(limit=limit).data
    if json:
        print_json(found)
    else:
        rows = [(b.id, b.name or "", b.status, counts(b)) for b in found]
        out.print(table(("batch", "name", "status", "jobs"), rows))


def report(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="Batch id.")],
    form: Form = "table",
    size: Size = None,
    quality: Quality = None,
    url: Url = None,
    key: Key = None,
    json: Json = False,
) -> None:
    """Compare the jobs of a batch: size against accuracy."""
    with Stiefel(url, key) as client:
        _print_report(client, batch, form, json=json, size=size, quality=quality)


def follow_batch(
    client: Stiefel, batch_id: str, *, timeout: float | None, form: str, json: bool
) -> None:
    """Wait for the last job and print the report; Ctrl-C leaves the jobs running.

    Raises:
        typer.Exit: 1 unless every job succeeded, 130 on Ctrl-C.
        WaitTimeoutError: not finished in time.
    """
    try:
        with batch_bar(batch_id, quiet=json) as on_change:
            batch = client.batches.wait(batch_id, timeout=timeout, on_change=on_change)
    except KeyboardInterrupt:
        say(f"detached; {batch_id} goes on. Follow it again with: stiefel watch {batch_id}")
        raise typer.Exit(EXIT_DETACHED) from None
    _print_report(client, batch_id, form, json=json)
    if not batch.succeeded:
        raise typer.Exit(EXIT_FAILED)


def _print_report(
    client: Stiefel,
    batch_id: str,
    form: str,
    *,
    json: bool,
    size: str | None = None,
    quality: str | None = None,
) -> None:
    if form in ("csv", "markdown") and not json:
        known: Literal["csv", "markdown"] = "csv" if form == "csv" else "markdown"
        sys.stdout.write(client.batches.table(batch_id, known, size=size, quality=quality))
        return
    found = client.batches.report(batch_id, size=size, quality=quality)
    if json:
        print_json(found)
    else:
        show_report(found)


def _read(source: str | None) -> dict[str, Any]:
    """The body that a file holds: itself where it has a spec or jobs, else it is the spec."""
    if source is None:
        return {}
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        body = tomllib.loads(text) if source.endswith(".toml") else jsonlib.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{source}: {error}") from error
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{source}: a spec is an object")
    return body if {"spec", "jobs"} & body.keys() else {"spec": body}
