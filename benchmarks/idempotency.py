"""Count the jobs that 100 parallel identical submissions with one Idempotency-Key make: one.

    python benchmarks/idempotency.py [--rounds 200] [--parallel 100]

Runs on SQLite and on PostgreSQL (started from a wheel, or STIEFEL_TEST_POSTGRES_URL) and writes
``benchmarks/results/idempotency.json``. Exits with 1 if any round made more or less than one job.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import func, select, text

from stiefel_jobs.database import Database, migrate
from stiefel_jobs.records import Submission
from stiefel_jobs.store.submit import submit
from stiefel_jobs.tables import jobs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from postgres_server import postgres_server  # noqa: E402  (the tests' server, found above)


def one_round(db: Database, pool: ThreadPoolExecutor, number: int, parallel: int) -> dict:
    """Send one request ``parallel`` times at once; count jobs, first answers and replays."""
    submission = Submission(method="project.unitary", spec={"seed": number})
    start = threading.Barrier(parallel)

    def send(_: int) -> tuple[str, bool]:
        start.wait()
        answer = submit(
            db, tenant="bench", submission=submission, idempotency_key=f"round-{number}"
        )
        return answer.job.id, answer.replayed

    begin = time.perf_counter()
    answers = list(pool.map(send, range(parallel)))
    seconds = time.perf_counter() - begin
    return {
        "ids": len({job_id for job_id, _ in answers}),
        "first": sum(not replayed for _, replayed in answers),
        "seconds": seconds,
    }


def measure(url: str, rounds: int, parallel: int) -> dict:
    migrate(url)
    db = Database(url)
    with ThreadPoolExecutor(parallel) as pool:
        results = [one_round(db, pool, number, parallel) for number in range(rounds)]
    with db.read() as connection:
        made = connection.execute(select(func.count()).select_from(jobs)).scalar_one()
        version = (
            f"SQLite {sqlite3.sqlite_version}"
            if db.sqlite
            else f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar_one()}"
        )
    db.close()
    return {
        "database": version,
        "rounds": rounds,
        "parallel": parallel,
        "jobs": made,
        "rounds_with_one_job": sum(r["ids"] == 1 and r["first"] == 1 for r in results),
        "median_round_s": round(statistics.median(r["seconds"] for r in results), 4),
        "requests_per_s": round(rounds * parallel / sum(r["seconds"] for r in results)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=100)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "idempotency.json"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = [measure(f"sqlite:///{folder}/jobs.db", options.rounds, options.parallel)]
        with postgres_server(Path(folder)) as server:
            found.append(measure(server.empty(), options.rounds, options.parallel))
    report = {
        "command": f"python benchmarks/idempotency.py --rounds {options.rounds}"
        f" --parallel {options.parallel}",
        "python": platform.python_version(),
        "results": found,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    held = all(r["jobs"] == r["rounds_with_one_job"] == r["rounds"] for r in found)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
