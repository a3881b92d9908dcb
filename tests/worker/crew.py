"""A service without its API, and real workers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database, migrate
from stiefel_jobs.doorbell import CeleryDoorbell
from stiefel_jobs.records import Artifact, Event, Job, NewArtifact, Submission
from stiefel_jobs.settings import Settings
from stiefel_jobs.states import TERMINAL, State
from stiefel_jobs.store.artifacts import add_artifact
from stiefel_jobs.store.queries import attempts, events, get_job
from stiefel_jobs.store.submit import submit

TENANT = "tenant"
HERE = Path(__file__).parent
LEASE_S = 3.0
PACE = {"STIEFEL_LEASE_S": LEASE_S, "STIEFEL_BEAT_S": 0.5, "STIEFEL_POLL_S": 0.5}
PACE |= {"STIEFEL_SWEEP_S": 0.5, "STIEFEL_WORKER_THREADS": 1}


@dataclass
class Site:
    """One service without its API: database, broker, store, and the workers started here."""

    folder: Path
    env: dict[str, str]
    queue: str = "cpu"
    settings: Settings = field(init=False)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = Settings(
            **{name.removeprefix("STIEFEL_").lower(): v for name, v in self.env.items()}
        )
        migrate(self.settings.database_url)
        self.db = Database(self.settings.database_url)
        self.blobs = Blobs.of(self.settings)
        self.bell = CeleryDoorbell(self.settings)

    def start(self, *, concurrency: int = 1, wait: bool = True, **env: object) -> Worker:
        worker = Worker(self, concurrency, {name: str(value) for name, value in env.items()})
        self.workers.append(worker)
        if wait:
            worker.wait_until_warm()
        return worker

    def crew(self, count: int) -> list[Worker]:
        """Top up to ``count`` living, warm workers; tests may do them any harm."""
        living = [worker for worker in self.workers if worker.process.poll() is None]
        fresh = [self.start(wait=False) for _ in range(count - len(living))]
        for worker in fresh:
            worker.wait_until_warm()
        return living + fresh

    def submit(self, act: str, *, ring: bool = True, **options: Any) -> str:
        known = ("max_attempts", "deadline_s")
        terms = {name: options.pop(name) for name in known if name in options}
        spec = {"method": "test.trial", "act": act, **options}
        inputs = {"file": options["file"]} if "file" in options else {}
        request = Submission("test.trial", spec, inputs, queue=self.queue, **terms)
        job_id = submit(self.db, tenant=TENANT, submission=request).job.id
        if ring:
            assert self.bell.ring(self.queue, job_id)
        return job_id

    def upload(self, data: bytes) -> Artifact:
        blob = self.blobs.put_stream(TENANT, [data])
        new = NewArtifact("text", "file", blob.sha256, blob.size)
        return add_artifact(self.db, tenant=TENANT, new=new, ttl_s=None)

    def job(self, job_id: str) -> Job:
        return get_job(self.db, tenant=TENANT, job_id=job_id)

    def events(self, job_id: str, kind: str | None = None) -> list[Event]:
        found = events(self.db, tenant=TENANT, job_id=job_id)
        assert [event.seq for event in found] == list(range(1, len(found) + 1))
        return [event for event in found if kind is None or event.type == kind]

    def reasons(self, job_id: str) -> list[str | None]:
        return [a.reason for a in attempts(self.db, tenant=TENANT, job_id=job_id)]

    def wait(self, job_id: str, *states: State, seconds: float = 30) -> Job:
        wanted = states or tuple(TERMINAL)
        until(lambda: self.job(job_id).state in wanted, seconds, lambda: str(self.job(job_id)))
        return self.job(job_id)

    def began(self, job_id: str, times: int = 1) -> dict[str, Any]:
        """Data of the event that an act emits when its code runs for the ``times``-th time."""
        until(lambda: len(self.events(job_id, "trial.began")) >= times, 30)
        return self.events(job_id, "trial.began")[times - 1].data

    def read(self, job: Job, name: str) -> bytes:
        assert job.result is not None, job
        file = job.result["files"][name]
        data = b"".join(self.blobs.open_range(TENANT, file["sha256"]))
        assert len(data) == file["bytes"]
        return data

    def writable(self) -> bool:
        """Whether nobody keeps the database from being written."""
        if not self.db.sqlite:
            return True
        try:
            with sqlite3.connect(str(self.db.url.database), timeout=0.5) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True

    def scratch(self) -> list[Path]:
        assert self.settings.scratch_dir is not None
        folder = self.settings.scratch_dir
        return list(folder.iterdir()) if folder.exists() else []

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.bell.close()
        self.db.close()


class Worker:
    """``python -m stiefel_worker`` on a site."""

    def __init__(self, site: Site, concurrency: int, env: dict[str, str]) -> None:
        self.site = site
        self.log_path = site.folder / f"worker-{len(site.workers)}.log"
        clean = {n: v for n, v in os.environ.items() if not n.startswith("STIEFEL_")}
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "stiefel_worker"),
                    *("--queues", site.queue, "--concurrency", str(concurrency)),
                ],
                cwd=site.folder.parent,  # where a child would see its data, if anywhere
                env=clean | site.env | env,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until_warm(self) -> None:
        """Until its fork server has loaded torch and it looks for jobs."""
        until(lambda: "looks at" in self.log, 90, lambda: self.log)

    def stop(self, seconds: float = 30) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @contextlib.contextmanager
    def freeze(self) -> Iterator[None]:
        """Stop the process between two transactions, until the block ends.

        Inside one it would hold the only write lock that SQLite has: no job of the service moves
        until it wakes, which is nothing a lease could mend.
        """
        try:
            while True:
                self.process.send_signal(signal.SIGSTOP)
                until(lambda: self._stopped, 10)
                if self.site.writable():
                    break
                self.process.send_signal(signal.SIGCONT)
                time.sleep(0.01)
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @property
    def _stopped(self) -> bool:
        """Whether every thread has stopped, which takes a while where processors are busy."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return all(_state(task / "stat") == "T" for task in tasks)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)


def until(
    true: Callable[[], object], seconds: float, show: Callable[[], str] = lambda: "waited in vain"
) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, show()
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process computes still; a zombie does not."""
    try:
        return _state(Path(f"/proc/{pid}/stat")) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _state(stat: Path) -> str:
    return stat.read_text().rpartition(")")[2].split()[0]


def environment(folder: Path, **more: object) -> dict[str, str]:
    plugins = os.pathsep.join([str(HERE / "plugins"), os.environ.get("PYTHONPATH", "")])
    base = {"STIEFEL_DATA_DIR": folder, "STIEFEL_PLUGINS": "trial", "PYTHONPATH": plugins}
    return {name: str(value) for name, value in (PACE | base | more).items()}


def embedded_site(folder: Path) -> Site:
    return Site(folder, environment(folder))


def distributed_site(folder: Path, request: pytest.FixtureRequest) -> Site:
    s3 = request.getfixturevalue("s3")
    urls = {
        "STIEFEL_DATABASE_URL": request.getfixturevalue("postgres").database(),
        "STIEFEL_BROKER_URL": request.getfixturevalue("redis_url"),
        "STIEFEL_STORE_URL": s3.bucket(folder.name.lower().replace("_", "-")),
        "STIEFEL_S3_ENDPOINT": s3.endpoint,
        "STIEFEL_S3_ACCESS_KEY_ID": s3.access_key,
        "STIEFEL_S3_SECRET_ACCESS_KEY": s3.secret_key,
    }
    return Site(folder, environment(folder, **urls))
