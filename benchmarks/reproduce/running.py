"""What every reproduction shares: a service, one batch of jobs, the paper's figures beside ours.

A reproduction is a list of cells. All cells go to the service in one ``POST /v1/batches``; the
table is written anew whenever a job ends, so an interrupted reproduction keeps what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from stage import publish, service

OVER = {"succeeded", "failed", "cancelled", "expired"}


@dataclass(frozen=True)
class Cell:
    """One line of the table: the mean over ``specs``, which differ in their seed alone.

    ``paper``: the authors' figure in the unit of :class:`Figure`, or None where they give none.
    """

    name: str
    specs: tuple[dict[str, Any], ...]
    paper: float | None


@dataclass(frozen=True)
class Figure:
    """What is compared: a metric of the job, times ``scale``; ``more`` are shown beside it."""

    metric: str = "test_accuracy"
    scale: float = 100.0
    more: tuple[str, ...] = ()


def seeded(spec: dict[str, Any], seeds: Iterable[int]) -> tuple[dict[str, Any], ...]:
    """The spec once per seed."""
    return tuple(spec | {"seed": seed} for seed in seeds)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every reproduction."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--url", help="a running service (key in STIEFEL_API_KEY); default: own")
    made.add_argument("--concurrency", type=int, default=2, help="jobs at once of the own service")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    return made


@contextlib.contextmanager
def connected(options: argparse.Namespace) -> Iterator[httpx.Client]:
    """A client of the named service, or of one started for the occasion."""
    if options.url:
        headers = {"Authorization": f"Bearer {os.environ['STIEFEL_API_KEY']}"}
        with httpx.Client(base_url=options.url, headers=headers, timeout=600) as client:
            yield client
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        # A long lease: a machine that sleeps for some minutes loses no attempt.
        service(Path(folder), "embedded", lease_s=900) as own,
    ):
        own.start_api()
        own.start_worker(concurrency=options.concurrency)
        yield own.client


def upload(client: httpx.Client, path: Path) -> str:
    """Stream a file up; its artifact id."""
    with path.open("rb") as file:
        answer = client.put(f"/v1/uploads/{path.name}", content=file)
    return str(_checked(answer)["id"])


def reproduce(
    client: httpx.Client,
    name: str,
    title: str,
    cells: list[Cell],
    figure: Figure,
    notes: str = "",
) -> None:
    """POST all cells as one batch, wait, and write ``results/<name>`` after every job."""
    jobs = [
        {"custom_id": f"{cell.name} #{index}", "spec": spec}
        for cell in cells
        for index, spec in enumerate(cell.specs)
    ]
    batch = _checked(client.post("/v1/batches", json={"name": title, "jobs": jobs}))
    print(f"{batch['id']}: {len(jobs)} jobs", flush=True)
    ended: dict[str, dict[str, Any]] = {}
    for job in _ends(client, batch["id"]):
        ended[job["custom_id"]] = job
        rows = [_row(cell, ended, figure) for cell in cells]
        _write(name, title, rows, ended, notes)


def _ends(client: httpx.Client, batch: str) -> Iterator[dict[str, Any]]:
    """Each job of the batch once it is over."""
    seen: set[str] = set()
    while True:
        members = _checked(client.get(f"/v1/batches/{batch}"))["jobs"]
        for member in members:
            if member["status"] in OVER and member["id"] not in seen:
                seen.add(member["id"])
                job = _checked(client.get(f"/v1/jobs/{member['id']}"))
                yield job | {"custom_id": member["custom_id"]}
        if len(seen) == len(members):
            return
        time.sleep(2)


def _row(cell: Cell, ended: dict[str, dict[str, Any]], figure: Figure) -> dict[str, Any]:
    jobs = [ended[key] for i in range(len(cell.specs)) if (key := f"{cell.name} #{i}") in ended]
    good = [job["result"]["metrics"] for job in jobs if job["status"] == "succeeded"]

    def mean(metric: str, scale: float = 1.0) -> float | str:
        found = [scale * metrics[metric] for metrics in good if metric in metrics]
        return float(f"{statistics.mean(found):.4g}") if found else ""

    ours = mean(figure.metric, figure.scale)
    known = isinstance(ours, float) and cell.paper is not None
    return {
        "run": cell.name,
        "paper": "" if cell.paper is None else cell.paper,
        "ours": ours,
        "difference": float(f"{ours - cell.paper:+.3g}") if known else "",  # type: ignore[operator]
        **{metric: mean(metric) for metric in figure.more},
        "minutes per job": mean("seconds_training", 1 / 60),
        "jobs": f"{len(good)} of {len(cell.specs)}",
    }


def _write(
    name: str, title: str, rows: list[dict[str, Any]], ended: dict[str, dict[str, Any]], notes: str
) -> None:
    command = "python benchmarks/reproduce/" + shlex.join([Path(sys.argv[0]).name, *_arguments()])
    detail = {
        key: {"status": job["status"], "spec": job["spec"], "result": job["result"]}
        | ({"error": job["error"]} if job.get("error") else {})
        for key, job in sorted(ended.items())
    }
    publish(f"reproduce_{name}", title, command, rows, detail, notes=notes)


def _arguments() -> list[str]:
    """The command line without what belongs to one machine."""
    given = list(sys.argv[1:])
    for option in ("--data", "--url"):
        if option in given:
            given[given.index(option) + 1] = option.removeprefix("--").upper()
    return given


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if not answer.is_success:
        raise SystemExit(f"{answer.status_code}: {answer.text}")
    body: dict[str, Any] = answer.json()
    return body
