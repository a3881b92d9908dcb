"""Submit to running code: from POST /v1/jobs to the first line that the isolated child runs.

    python benchmarks/latency.py [--jobs 50] [--modes embedded distributed] [--out latency]

Beside it, on the same broker, the bare trip of a no-op Celery task: from ``send_task`` to the
task's first line, and until its sender hears of it. The bar: a median of at most 250 ms.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from celery import Celery
from stage import Service, checkpoint, command_line, publish, service, wait_for

from stiefel_jobs.doorbell import celery_options
from stiefel_jobs.settings import Settings

BAR_MS = 250
NOOP = "bench.noop"


def main() -> int:
    options = _options()
    if options.noop_worker:
        _serve_noop(options.noop_worker)
        return 0
    rows = []
    for mode in options.modes:
        with tempfile.TemporaryDirectory() as folder, service(Path(folder), mode) as made:
            rows += _measure(made, mode, options.jobs)
    publish(options.out, "Submit to running code", command_line(), rows)
    medians = [row["median_ms"] for row in rows if "child" in row["trip"]]
    return int(max(medians) > BAR_MS)


def _measure(made: Service, mode: str, jobs: int) -> list[dict[str, Any]]:
    made.start_api()
    made.start_worker()
    size, content = checkpoint(1, 8)
    artifact = made.upload("model.safetensors", content, size)
    _submit(made, artifact)  # the first job pays for imports and connections
    trips = [_submit(made, artifact) for _ in range(jobs)]
    answered, running = zip(*trips, strict=True)
    noop, heard = zip(*_noop(made, jobs), strict=True)
    return [
        _row(mode, "POST to 202", answered),
        _row(mode, "POST to first line in the child", running),
        _row(mode, "no-op Celery task, send to first line", noop),
        _row(mode, "no-op Celery task, send until heard of", heard),
    ]


def _submit(made: Service, artifact: str) -> tuple[float, float]:
    """Seconds to the answer and to the child's first line."""
    time.sleep(random.uniform(0.05, 0.15))  # no rhythm with anybody's polling
    began = time.time()
    spec = {"method": "project.unitary", "input": artifact}
    job = made.post("/v1/jobs", {"spec": spec})
    answered = time.time() - began
    made.wait(job["id"])
    events = made.get(f"/v1/jobs/{job['id']}/events")
    found = next(e for e in events["data"] if e["type"] == "job.process")
    return answered, found["data"]["at"] - began


def _noop(made: Service, rounds: int) -> list[tuple[float, float]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears:
        ears.bind(("127.0.0.1", 0))
        ears.settimeout(60)
        port = str(ears.getsockname()[1])
        log = made.folder / "noop.log"
        made.spawn(__file__, "--noop-worker", port, log="noop.log", PYTHONUNBUFFERED="1")
        wait_for(lambda: log.exists() and "ready" in log.read_text(), 60)
        app = Celery(set_as_current=False)
        app.conf.update(celery_options(_settings(made)))
        trips = []
        for _ in range(rounds + 1):
            time.sleep(random.uniform(0.05, 0.15))
            began = time.time()
            app.send_task(NOOP, queue="noop", ignore_result=True)
            ran = float(ears.recv(64))
            trips.append((ran - began, time.time() - began))
        app.close()
        return trips[1:]


def _settings(made: Service) -> Settings:
    prefix = "STIEFEL_"
    return Settings(
        **{n.removeprefix(prefix).lower(): v for n, v in made.env.items() if n.startswith(prefix)}
    )


def _serve_noop(port: int) -> None:
    app = Celery(set_as_current=False)
    app.conf.update(celery_options(Settings()))
    mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    @app.task(name=NOOP)
    def noop() -> None:
        mouth.sendto(str(time.time()).encode(), ("127.0.0.1", port))

    print("ready", flush=True)
    app.Worker(
        pool_cls="threads",
        concurrency=1,
        queues=["noop"],
        loglevel="WARNING",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    ).start()


def _row(mode: str, trip: str, seconds: tuple[float, ...]) -> dict[str, Any]:
    milliseconds = sorted(1000 * s for s in seconds)
    return {
        "mode": mode,
        "trip": trip,
        "median_ms": round(statistics.median(milliseconds), 1),
        "p95_ms": round(milliseconds[int(0.95 * (len(milliseconds) - 1))], 1),
        "max_ms": round(milliseconds[-1], 1),
        "runs": len(milliseconds),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--modes", nargs="+", default=["embedded", "distributed"])
    parser.add_argument("--out", default="latency")
    parser.add_argument("--noop-worker", type=int, metavar="PORT")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
