"""Random kills and freezes of workers: no job lost, none committed twice, stale writes refused.

    python benchmarks/chaos.py [--databases sqlite postgresql] [--jobs 100] [--faults 60]
        [--lease 6] [--workers 3] [--out chaos]

Three workers run jobs of about four seconds that checkpoint every step. A fault hits a random
worker that holds a job: half of them ``kill -9`` (a new worker takes its place), half SIGSTOP for
1.2 to 2 leases, then SIGCONT. Faults are spread over the run. The lease is 6 s here instead of the
default 30 s, and beat, poll and sweep intervals a fifth of theirs, so that the run takes minutes.
Recovery is the time from the fault to the next claim of the job that was hit: at most lease + 15 s.
Every job must succeed once, with the very bytes of an undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from stage import ROOT, Service, command_line, publish, service

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database, migrate
from stiefel_jobs.doorbell import CeleryDoorbell
from stiefel_jobs.records import Submission
from stiefel_jobs.settings import Settings
from stiefel_jobs.states import TERMINAL
from stiefel_jobs.store.submit import submit
from stiefel_jobs.tables import artifacts, attempts, job_events, jobs

TENANT = "chaos"
PLUGINS = ROOT / "tests" / "worker" / "plugins"


@dataclass
class Fault:
    """One kill or freeze of the worker that held ``job_id``; times by this machine's clock."""

    kind: str
    job_id: str
    attempt: int
    at: float
    recovered_s: float | None = None


@dataclass
class Crew:
    """The workers, kept at their number."""

    made: Service
    size: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    frozen: dict[int, float] = field(default_factory=dict)  # pid -> when to wake it

    def tend(self) -> None:
        """Wake those that are due, replace the dead."""
        for pid, until in list(self.frozen.items()):
            if time.time() > until:
                os.kill(pid, signal.SIGCONT)
                del self.frozen[pid]
        self.processes = [p for p in self.processes if p.poll() is None]
        while len(self.processes) < self.size:
            self.processes.append(self.made.start_worker(wait=False))

    def kill(self, pid: int) -> None:
        """SIGKILL, as the kernel or an operator does it."""
        os.kill(pid, signal.SIGKILL)

    def freeze(self, pid: int, seconds: float) -> None:
        """SIGSTOP until ``seconds`` have passed."""
        os.kill(pid, signal.SIGSTOP)
        self.frozen[pid] = time.time() + seconds


def main() -> int:
    options = _options()
    rows, faults = [], []
    for database in options.databases:
        mode = "embedded" if database == "sqlite" else "distributed"
        pace = {"lease_s": options.lease, "beat_s": 1, "poll_s": 1, "sweep_s": 1}
        with (
            tempfile.TemporaryDirectory() as folder,
            service(Path(folder), mode, **pace, plugins="trial", worker_threads=1) as made,
        ):
            made.env["PYTHONPATH"] = str(PLUGINS)
            row, hit = _run(made, database, options)
        rows.append(row)
        faults.append({database: [vars(fault) for fault in hit]})
    publish(options.out, "Chaos", command_line(), rows, detail=faults)
    good = all(
        row["committed"] == options.jobs
        and row["lost"] == row["duplicates"] == row["wrong_bytes"] == row["orphans"] == 0
        and row["recovery_max_s"] <= options.lease + 15
        for row in rows
    )
    return int(not good)


def _run(
    made: Service, database: str, options: argparse.Namespace
) -> tuple[dict[str, Any], list[Fault]]:
    prefix = "STIEFEL_"
    chosen = {n.removeprefix(prefix).lower(): v for n, v in made.env.items() if prefix in n}
    settings = Settings(**chosen)
    migrate(settings.database_url)
    db, blobs, bell = Database(settings.database_url), Blobs.of(settings), CeleryDoorbell(settings)
    crew = Crew(made, options.workers)
    crew.tend()
    began = time.time()
    ids = [_submit(db, bell, options) for _ in range(options.jobs)]
    faults = _disturb(db, crew, ids, options)
    while crew.frozen:
        crew.tend()
        time.sleep(0.1)
    took = time.time() - began
    time.sleep(3)  # let the woken notice what they lost
    return _account(db, blobs, made, faults, options) | {"seconds": round(took)}, faults


def _submit(db: Database, bell: CeleryDoorbell, options: argparse.Namespace) -> str:
    spec = {"method": "test.trial", "act": "count", "steps": options.steps, "step_s": 0.1}
    terms = Submission("test.trial", spec, max_attempts=1000)
    job_id = submit(db, tenant=TENANT, submission=terms).job.id
    bell.ring("cpu", job_id)
    return job_id


def _disturb(db: Database, crew: Crew, ids: list[str], options: argparse.Namespace) -> list[Fault]:
    """Hit workers at random moments until all jobs are over; faults keep pace with the jobs."""
    chance = random.Random(options.seed)
    faults: list[Fault] = []
    while True:
        crew.tend()
        rows = _rows(db)
        over = sum(row.state in TERMINAL for row in rows)
        if over == len(ids):
            return faults
        due = options.faults * (over + 1) / (0.9 * len(ids))
        if len(faults) < min(due, options.faults):
            fault = _hit(crew, chance, rows, options.lease)
            if fault is not None:
                faults.append(fault)
        time.sleep(chance.uniform(0.2, 1.0))


def _hit(crew: Crew, chance: random.Random, rows: list[Any], lease_s: float) -> Fault | None:
    """Kill or freeze a worker that holds a job, if one is awake."""
    able = {p.pid for p in crew.processes if p.poll() is None} - set(crew.frozen)
    held = [(row, _pid(row.worker)) for row in rows if row.worker and row.state == "running"]
    held = [(row, pid) for row, pid in held if pid in able]
    if not held:
        return None
    row, pid = chance.choice(held)
    kind = chance.choice(["kill", "freeze"])
    fault = Fault(kind, row.id, row.attempt, time.time())
    if kind == "kill":
        crew.kill(pid)
    else:
        crew.freeze(pid, chance.uniform(1.2, 2.0) * lease_s)
    return fault


def _pid(worker: str) -> int:
    return int(worker.split("-")[-2])


def _rows(db: Database) -> list[Any]:
    columns = (jobs.c.id, jobs.c.state, jobs.c.worker, jobs.c.attempt)
    with db.read() as connection:
        return list(connection.execute(select(*columns)))


def _account(
    db: Database, blobs: Blobs, made: Service, faults: list[Fault], options: argparse.Namespace
) -> dict[str, Any]:
    with db.read() as connection:
        finished = connection.execute(select(jobs.c.id, jobs.c.state, jobs.c.result)).all()
        events = connection.execute(select(job_events).order_by(job_events.c.seq)).all()
        tries = connection.execute(select(attempts)).all()
        files = connection.execute(select(artifacts.c.job_id, artifacts.c.name)).all()
    commits = [e.job_id for e in events if e.data.get("state") == "succeeded"]
    for fault in faults:
        later = [t for t in tries if t.job_id == fault.job_id and t.number == fault.attempt + 1]
        if later:
            fault.recovered_s = round(later[0].started_at - fault.at, 2)
    recoveries = [f.recovered_s for f in faults if f.recovered_s is not None] or [0.0]
    wanted = b"head:" + bytes(range(options.steps))
    succeeded = [row for row in finished if row.state == "succeeded"]
    wrong = sum(_read(blobs, row.result) != wanted for row in succeeded)
    sequences: dict[str, list[int]] = {}
    for event in events:
        sequences.setdefault(event.job_id, []).append(event.seq)
    gaps = sum(seq != list(range(1, len(seq) + 1)) for seq in sequences.values())
    logs = "".join(path.read_text() for path in made.folder.glob("worker-*.log"))
    return {
        "database": "sqlite" if db.sqlite else "postgresql",
        "jobs": len(finished),
        "kills": sum(f.kind == "kill" for f in faults),
        "freezes": sum(f.kind == "freeze" for f in faults),
        "committed": len(succeeded),
        "lost": len(finished) - len(succeeded),
        "duplicates": len(commits) - len(set(commits)) + len(files) - len(set(files)),
        "wrong_bytes": wrong,
        "event_gaps": gaps,
        "stale_writes_refused": logs.count("stale fence"),
        "attempts": len(tries),
        "orphans": _orphans(made),
        "recovery_median_s": round(statistics.median(recoveries), 2),
        "recovery_max_s": max(recoveries),
    }


def _read(blobs: Blobs, result: dict[str, Any]) -> bytes:
    return b"".join(blobs.open_range(TENANT, result["files"]["counted.bin"]["sha256"]))


def _orphans(made: Service) -> int:
    """Children that still run although every job is over: they work inside the scratch folder."""
    scratch = str(made.folder / "data" / "scratch")
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            count += str((process / "cwd").readlink()).startswith(scratch)
        except OSError:  # it has ended, or is not ours to look at
            continue
    return count


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lease", type=float, default=6.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="chaos")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
