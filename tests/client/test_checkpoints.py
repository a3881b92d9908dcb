"""Checkpoints: listed, fetched, and taken anew when the newest is dropped meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from stub_service import Answer, problem
from test_command_line import run

from stiefel_client import AsyncStiefel, TransferError

DATA = {1: b"old weights", 2: b"new weights"}


def checkpoint(number: int, *, whole: bool = True) -> dict[str, object]:
    name = f"step-{number}.weights.safetensors"
    return {
        "number": number,
        "step": 10 * number,
        "attempt": 1,
        "bytes": len(DATA[number]),
        "created_at": "2026-01-01T00:00:00Z",
        "files": [
            {
                "name": name,
                "bytes": len(DATA[number]),
                "sha256": hashlib.sha256(DATA[number]).hexdigest() if whole else None,
                "url": f"/v1/jobs/job_1/checkpoints/{number}/files/{name}",
            }
        ],
    }


def page(*checkpoints: dict[str, object]) -> Answer:
    return Answer(200, {"data": list(checkpoints), "has_more": False, "next": None})


def serve(service, *numbers: int) -> None:
    for number in numbers:
        (file,) = checkpoint(number)["files"]
        service.on("GET", file["url"], Answer(200, DATA[number]))


def test_the_newest_or_a_given_checkpoint_is_fetched(service, client, tmp_path) -> None:
    service.on("GET", "/v1/jobs/job_1/checkpoints", page(checkpoint(1), checkpoint(2)))
    serve(service, 1, 2)
    (newest,) = client.jobs.download_checkpoint("job_1", tmp_path)
    assert (newest.name, newest.read_bytes()) == ("step-2.weights.safetensors", DATA[2])
    (first,) = client.jobs.download_checkpoint("job_1", tmp_path, number=1)
    assert first.read_bytes() == DATA[1]
    with pytest.raises(TransferError, match="checkpoint 7") as caught:
        client.jobs.download_checkpoint("job_1", tmp_path, number=7)
    assert "1, 2" in str(caught.value.fix)

    async def fetch() -> bytes:
        async with AsyncStiefel(service.url, "stf_test") as other:
            (path,) = await other.jobs.download_checkpoint("job_1", tmp_path / "async")
            return path.read_bytes()

    assert asyncio.run(fetch()) == DATA[2]


def test_a_checkpoint_dropped_meanwhile_gives_way_to_the_next(service, client, tmp_path) -> None:
    lists = (page(checkpoint(1)), page(checkpoint(2)))
    service.on("GET", "/v1/jobs/job_1/checkpoints", *lists)
    (old,) = checkpoint(1)["files"]
    service.on("GET", old["url"], problem(404, "checkpoint_not_found", "dropped"))
    serve(service, 2)
    (path,) = client.jobs.download_checkpoint("job_1", tmp_path)
    assert path.read_bytes() == DATA[2]


def test_what_has_no_digest_is_not_trusted(service, client, tmp_path) -> None:
    service.on("GET", "/v1/jobs/job_1/checkpoints", page(checkpoint(1, whole=False)))
    with pytest.raises(TransferError, match="in pieces"):
        client.jobs.download_checkpoint("job_1", tmp_path)


def test_the_command_lists_and_fetches(service, tmp_path) -> None:
    at = ["--url", service.url, "--key", "stf_test"]
    service.on("GET", "/v1/jobs/job_1/checkpoints", page(checkpoint(1), checkpoint(2)))
    serve(service, 2)
    listed = run("checkpoints", "job_1", "--json", *at)
    assert [entry["number"] for entry in json.loads(listed.stdout)] == [1, 2], listed.stderr
    assert "20" in run("checkpoints", "job_1", *at).stdout
    done = run("checkpoints", "job_1", "--output", tmp_path / "out", *at)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "step-2.weights.safetensors").read_bytes() == DATA[2]
