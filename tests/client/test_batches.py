"""Batches through the client and the command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from stub_service import Answer, problem

from stiefel_client import AsyncStiefel, BadRequestError, WaitTimeoutError
from stiefel_client.cli.options import read_grid

PATH = "/v1/batches/batch_1"
CELL = {"custom_id": "seed=0", "job": "job_1", "status": "succeeded", "cell": {"seed": 0}}
REPORT = {
    "batch": "batch_1",
    "status": "succeeded",
    "varying": ["tau", "seed"],
    "metrics": ["test_accuracy", "rank/0"],
    "shown": ["test_accuracy"],
    "rows": [
        {
            "number": number,
            "custom_id": f"tau=0.1,seed={number}",
            "job": f"job_{number}",
            "status": "succeeded",
            "cell": {"tau": 0.1, "seed": number},
            "metrics": {"test_accuracy": 0.96875, "rank/0": 3},
            "on_front": number == 1,
        }
        for number in range(2)
    ],
    "groups": [
        {
            "custom_id": "tau=0.1",
            "cell": {"tau": 0.1},
            "rows": [0, 1],
            "metrics": {"test_accuracy": {"mean": 0.96875, "std": 0.0125, "count": 2}},
            "on_front": True,
        }
    ],
    "front": {"size": "parameters_after", "quality": "test_accuracy", "better": "more"},
}


def batch(status: str, **counts: int) -> dict[str, object]:
    known = {"id": "batch_1", "status": status, "size": 2, "counts": counts}
    return {**known, "jobs": [CELL], "links": {"self": PATH}}


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from stiefel_client.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.fixture
def at(service) -> list[str]:
    return ["--url", service.url, "--key", "stf_test"]


def test_a_grid_is_sent_once_and_read_back(service, client) -> None:
    service.on(
        "POST",
        "/v1/batches",
        problem(503, "starting", "not yet"),
        Answer(202, batch("queued", queued=2)),
    )
    made = client.batches.create(
        {"method": "train.dense"},
        grid={"seed": [0, 1]},
        jobs=[{"custom_id": "a", "spec": {}}],
        name="a table",
        labels={"team": "nlp"},
        device=None,
    )
    assert (made.id, made.size, made.finished) == ("batch_1", 2, False)
    assert made.jobs[0].cell == {"seed": 0}
    first, second = service.seen("POST", "/v1/batches")
    assert json.loads(first.body) == {
        "spec": {"method": "train.dense"},
        "grid": {"seed": [0, 1]},
        "jobs": [{"custom_id": "a", "spec": {}}],
        "name": "a table",
        "labels": {"team": "nlp"},
    }
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


def test_a_refused_batch_names_the_cells(service, client) -> None:
    errors = [{"pointer": "/grid/seed/1", "message": "too small", "cells": ["seed=-1"]}]
    service.on("POST", "/v1/batches", problem(422, "batch_refused", "1 of 2", errors=errors))
    with pytest.raises(BadRequestError) as caught:
        client.batches.create({}, grid={"seed": [0, -1]})
    assert caught.value.errors[0]["cells"] == ["seed=-1"]


def test_waiting_follows_every_change_to_the_end(service, client) -> None:
    service.on(
        "GET",
        PATH,
        Answer(200, batch("queued", queued=2), {"ETag": '"2"', "Retry-After": "0.05"}),
        Answer(304, headers={"ETag": '"2"'}),
        Answer(200, batch("running", running=1, failed=1)),
        Answer(200, batch("failed", succeeded=1, failed=1)),
    )
    seen = []
    done = client.batches.wait("batch_1", on_change=lambda b: seen.append((b.status, b.ended)))
    assert seen == [("queued", 0), ("running", 1), ("failed", 2)]
    assert not done.succeeded
    service.on("GET", PATH, Answer(200, batch("running", running=2)))
    with pytest.raises(WaitTimeoutError, match="batch_1 is still running"):
        client.batches.wait("batch_1", timeout=0.2)


def test_listing_cancelling_planning_and_reporting(service, client) -> None:
    service.on("GET", "/v1/batches", Answer(200, {"data": [batch("running")], "has_more": False}))
    service.on("POST", f"{PATH}/cancel", Answer(202, batch("cancelled", cancelled=2)))
    plan = {"object": "batch_plan", "size": 1, "cells": [{"custom_id": "spec", "plan": {}}]}
    service.on("POST", "/v1/batches", Answer(200, plan))
    service.on("GET", f"{PATH}/report", Answer(200, REPORT))
    assert [found.id for found in client.batches.list(limit=3).data] == ["batch_1"]
    assert client.batches.cancel("batch_1").counts == {"cancelled": 2}
    assert client.batches.plan({"method": "train.dense"}).cells[0].custom_id == "spec"
    found = client.batches.report("batch_1", quality="-test_loss")
    assert found.rows[1].on_front
    assert found.groups[0].metrics["test_accuracy"].std == 0.0125
    assert service.requests[-1].query == "format=json&quality=-test_loss"
    service.on("GET", f"{PATH}/report", Answer(200, b"kind,custom_id\n"))
    assert client.batches.table("batch_1", "csv") == "kind,custom_id\n"


def test_the_asynchronous_client_does_the_same(service) -> None:
    service.on("POST", "/v1/batches", Answer(202, batch("queued")))
    service.on("POST", f"{PATH}/cancel", Answer(202, batch("cancelled")))
    service.on("GET", PATH, Answer(200, batch("running")), Answer(200, batch("succeeded")))
    service.on("GET", "/v1/batches", Answer(200, {"data": [batch("running")]}))
    service.on("GET", f"{PATH}/report", Answer(200, REPORT))

    async def scene() -> None:
        async with AsyncStiefel(service.url, "stf_test") as client:
            made = await client.batches.create({"method": "train.dense"}, grid={"seed": [0]})
            assert (await client.batches.wait(made.id)).succeeded
            assert (await client.batches.get(made.id)).id == "batch_1"
            assert (await client.batches.report(made.id)).rows[0].job == "job_0"
            assert "batch_1" in await client.batches.table(made.id)
            assert (await client.batches.cancel(made.id)).status == "cancelled"
            assert len((await client.batches.list()).data) == 1

    asyncio.run(scene())


def test_grids_are_read_as_json_or_text() -> None:
    assert read_grid(["seed=0,1", "optimizer.name=sgd, adam", "network.hidden=[5,5],[1]"]) == {
        "seed": [0, 1],
        "optimizer.name": ["sgd", "adam"],
        "network.hidden": [[5, 5], [1]],
    }


def test_sweep_sends_the_batch_and_prints_the_table(service, at, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"method": "train.dlrt", "epochs": 2}')
    service.on("POST", "/v1/batches", Answer(202, batch("queued", queued=2)))
    service.on("GET", PATH, Answer(200, batch("succeeded", succeeded=2)))
    service.on("GET", f"{PATH}/report", Answer(200, REPORT))
    done = run(
        *["sweep", spec, "--grid", "tau=0.1", "--grid", "seed=0,1", "-p", "epochs=3"],
        *["--name", "a table", "--label", "team=nlp", "--wait", *at],
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(service.seen("POST", "/v1/batches")[0].body) == {
        "spec": {"method": "train.dlrt", "epochs": 3},
        "grid": {"tau": [0.1], "seed": [0, 1]},
        "name": "a table",
        "labels": {"team": "nlp"},
    }
    assert "submitted batch_1: 2 jobs" in done.stderr
    header, first, second, *rest = done.stdout.splitlines()
    assert header.split() == ["tau", "seed", "status", "test_accuracy", "front"]
    assert first.split() == ["0.1", "0", "succeeded", "0.9688"]
    assert second.split() == ["0.1", "1", "succeeded", "0.9688", "●"]
    assert rest[-1].split() == ["0.1", "2", "0.9688", "±", "0.0125", "●"]


def test_sweep_takes_a_whole_batch_in_toml(service, at, tmp_path: Path) -> None:
    file = tmp_path / "table.toml"
    file.write_text(
        'name = "a table"\n[grid]\nseed = [0, 1]\n[spec]\nmethod = "train.dlrt"\n'
        '[[jobs]]\ncustom_id = "dense"\nspec = {method = "train.dense"}\n'
    )
    service.on("POST", "/v1/batches", Answer(202, batch("queued", queued=2)))
    done = run("sweep", file, *at)
    assert (done.returncode, done.stdout) == (0, "batch_1\n"), done.stderr
    assert "stiefel report batch_1" in done.stderr
    body = json.loads(service.requests[0].body)
    assert body["jobs"] == [{"custom_id": "dense", "spec": {"method": "train.dense"}}]
    assert body["grid"] == {"seed": [0, 1]}


def test_commands_say_by_their_exit_how_it_ended(service, at) -> None:
    service.on("GET", PATH, Answer(200, batch("failed", succeeded=1, failed=1)))
    service.on("GET", f"{PATH}/report", Answer(200, REPORT))
    service.on("GET", "/v1/batches", Answer(200, {"data": [batch("running", running=2)]}))
    service.on("POST", f"{PATH}/cancel", Answer(202, batch("cancelled", cancelled=2)))
    watched = run("watch", "batch_1", "--json", *at)
    assert (watched.returncode, json.loads(watched.stdout)["batch"]) == (1, "batch_1")
    assert "2 running" in run("batches", *at).stdout
    assert "2 cancelled" in run("cancel", "batch_1", *at).stderr
    assert run("sweep", "--grid", "seed=0", *at).returncode == 2
    assert run("sweep", "absent.json", *at).returncode == 2
    service.on("GET", f"{PATH}/report", Answer(200, b"| tau |\n"))
    assert run("report", "batch_1", "--format", "markdown", *at).stdout == "| tau |\n"
