"""What every reproduction shares: a service, one batch of jobs, the paper's figures beside ours.

A reproduction is a list of cells. All cells go to the service in one ``POST /v1/batches``; the
table is written anew whenever a job ends, so an interrupted reproduction keeps what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stiefel_jobs.states import TERMINAL

sys.path.insert(0, str(Path(__file__).parents[1]))

from stage import publish, service


@dataclass(frozen=True)
class Cell:
    """One line of the table: the mean over the seeds.

    ``paper``: the authors' figure in the unit of :class:`Figure`, or None where they give none.
    """

    name: str
    spec: dict[str, Any]
    paper: float | None

    @property
    def custom_id(self) -> str:
        """The name as the API takes it."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")


@dataclass(frozen=True)
class Figure:
    """What is compared: a metric of the job, times ``scale``; ``more`` are shown beside it."""

    metric: str = "test_accuracy"
    scale: float = 100.0
    more: tuple[str, ...] = ()


def both_variants(spec: dict[str, Any], paper: float) -> list[Cell]:
    """projUNN-T and -D at k = 1 under one recipe."""
    named = (("T", "tangent"), ("D", "direct"))
    return [
        Cell(f"projUNN-{name}, k=1", spec | {"rank": 1, "variant": variant}, paper)
        for name, variant in named
    ]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options of every reproduction."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--url", help="a running service (key in STIEFEL_API_KEY); default: own")
    made.add_argument("--concurrency", type=int, default=2, help="jobs at once of the own service")
    made.add_argument("--device", default="cpu", help="queue of the own service: cpu or cuda")
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
        own.start_worker(concurrency=options.concurrency, queues=options.device)
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
    *,
    seeds: list[int],
    notes: str = "",
) -> None:
    """POST all cells as one batch, wait, and write ``results/<name>`` after every job."""
    entries = [
        {"custom_id": cell.custom_id, "spec": cell.spec, "grid": {"seed": seeds}} for cell in cells
    ]
    batch = _checked(client.post("/v1/batches", json={"name": title, "jobs": entries}))
    print(f"{batch['id']}: {batch['size']} jobs", flush=True)
    ended: dict[str, dict[str, Any]] = {}
    for job in _ends(client, batch["id"]):
        ended[job["id"]] = job
        # The batch keeps the order of the cells, and in each that of the seeds.
        ids = [member["job"] for member in batch["jobs"]]
        rows = []
        for at, cell in enumerate(cells):
            own = [ended[id_] for id_ in ids[at * len(seeds) :][: len(seeds)] if id_ in ended]
            rows.append(_row(cell, own, figure, seeds))
        _write(name, title, rows, ended, notes)


def _ends(client: httpx.Client, batch: str) -> Iterator[dict[str, Any]]:
    """Each job of the batch once it is over."""
    seen: set[str] = set()
    while True:
        members = _checked(client.get(f"/v1/batches/{batch}?wait=50"))["jobs"]
        for member in members:
            if member["status"] in TERMINAL and member["job"] not in seen:
                seen.add(member["job"])
                yield _checked(client.get(f"/v1/jobs/{member['job']}"))
        if len(seen) == len(members):
            return


def _row(
    cell: Cell, jobs: list[dict[str, Any]], figure: Figure, seeds: list[int]
) -> dict[str, Any]:
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
        "seeds": f"{len(good)} of {len(seeds)}",
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
