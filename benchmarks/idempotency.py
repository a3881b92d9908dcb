"""Count the jobs that 100 parallel identical POSTs with one Idempotency-Key make: one.

    python benchmarks/idempotency.py [--rounds 200] [--parallel 100]

Requests go over HTTP to a running API, on SQLite and on PostgreSQL. No worker runs: the jobs are
counted, not worked on. Exits with 1 if any round made more or less than one job.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from stage import Service, checkpoint, publish, service


def measure(mode: str, rounds: int, parallel: int, folder: Path) -> dict[str, Any]:
    with service(folder, mode) as running:
        running.start_api()
        size, content = checkpoint(1, 8)
        artifact = running.upload("model.safetensors", content, size)
        body = {"spec": {"method": "project.unitary", "input": artifact}}
        results = asyncio.run(all_rounds(running, body, rounds, parallel))
        made = count_jobs(running)
    return {
        "mode": mode,
        "rounds": rounds,
        "parallel": parallel,
        "jobs": made,
        "rounds_with_one_job": sum(r["one"] for r in results),
        "median_round_s": round(statistics.median(r["seconds"] for r in results), 3),
        "requests_per_s": round(rounds * parallel / sum(r["seconds"] for r in results)),
    }


async def all_rounds(
    running: Service, body: dict[str, Any], rounds: int, parallel: int
) -> list[dict[str, Any]]:
    limits = httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel)
    options = {"headers": running.client.headers, "timeout": 120.0, "limits": limits}
    async with httpx.AsyncClient(base_url=running.client.base_url, **options) as client:
        return [await one_round(client, body, number, parallel) for number in range(rounds)]


async def one_round(
    client: httpx.AsyncClient, body: dict[str, Any], number: int, parallel: int
) -> dict[str, Any]:
    """Send one request ``parallel`` times at once; every answer is 202 with the same job."""
    headers = {"Idempotency-Key": f"round-{number}"}
    begin = time.perf_counter()
    answers = await asyncio.gather(
        *(client.post("/v1/jobs", json=body, headers=headers) for _ in range(parallel))
    )
    seconds = time.perf_counter() - begin
    accepted = {answer.status_code for answer in answers} == {202}
    first = sum("Idempotency-Replayed" not in answer.headers for answer in answers)
    jobs = {answer.json().get("id") for answer in answers}
    return {"one": accepted and first == 1 and len(jobs) == 1, "seconds": seconds}


def count_jobs(running: Service) -> int:
    count, after = 0, ""
    while True:
        page = running.get(f"/v1/jobs?limit=100{after}")
        count += len(page["data"])
        if not page["has_more"]:
            return count
        after = f"&after={page['next']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = [
            measure(mode, options.rounds, options.parallel, Path(folder) / mode)
            for mode in ("embedded", "distributed")
        ]
    publish(
        "idempotency",
        "Parallel identical POSTs with one Idempotency-Key",
        f"python benchmarks/idempotency.py --rounds {options.rounds} --parallel {options.parallel}",
        rows,
    )
    held = all(r["jobs"] == r["rounds_with_one_job"] == r["rounds"] for r in rows)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
