"""Whole services, started from the outside as an operator would, each on free ports."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from s3_server import S3Server, free_port
from stiefel_client import Job, Stiefel
from stiefel_client.serve import answers
from stiefel_jobs.database import Database
from stiefel_jobs.store.keys import create_key

PYTHON = sys.executable
# Recovery from a killed worker is a matter of the lease: seconds here, half a minute by default.
QUICK = {
    "STIEFEL_LEASE_S": "4",
    "STIEFEL_BEAT_S": "1",
    "STIEFEL_POLL_S": "1",
    "STIEFEL_SWEEP_S": "1",
    "STIEFEL_DRAIN_S": "5",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass
class Stack:
    """A running service; ``root`` are the processes that were started."""

    url: str
    key: str
    database: str
    home: Path
    log: Path
    roots: list[psutil.Process] = field(default_factory=list)

    def client(self, key: str | None = None) -> Stiefel:
        return Stiefel(self.url, key or self.key)

    def workers(self) -> list[psutil.Process]:
        """The worker processes themselves, not what they forked."""
        found = {p.pid: p for root in self.roots for p in [root, *root.children(recursive=True)]}
        return [p for p in found.values() if _is_worker(p) and not _is_worker(p.parent())]

    def environment(self) -> dict[str, str]:
        """What a user's shell would have."""
        return clean_environment() | {"HOME": str(self.home), "STIEFEL_URL": self.url}


def _is_worker(process: psutil.Process | None) -> bool:
    try:
        return process is not None and "stiefel_worker" in process.cmdline()
    except psutil.Error:
        return False


def clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STIEFEL_", "XDG_"))}
    return kept | {"PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def embedded(home: Path) -> Iterator[Stack]:
    """``stiefel serve`` on a free port, with everything below ``home``."""
    port = free_port()
    env = clean_environment() | QUICK | {"HOME": str(home)}
    with started([_stiefel(), "serve", "--port", str(port)], env, home / "log") as process:
        url = f"http://127.0.0.1:{port}"
        key_file = home / ".local" / "share" / "stiefel" / "api_key"
        wait_until(lambda: answers(url) and key_file.exists(), process, home / "log")
        key = key_file.read_text().strip()
        yield Stack(
            url,
            key,
            f"sqlite:///{key_file.parent}/stiefel.db",
            home,
            home / "log",
            [psutil.Process(process.pid)],
        )


@contextmanager
def distributed(home: Path, *, database: str, broker: str, s3: S3Server) -> Iterator[Stack]:
    """One API and two workers that share nothing but PostgreSQL, Redis and S3."""
    port = free_port()
    shared = {
        "HOME": str(home),
        "STIEFEL_DATABASE_URL": database,
        "STIEFEL_BROKER_URL": broker,
        "STIEFEL_STORE_URL": s3.bucket("stiefel"),
        "STIEFEL_S3_ENDPOINT": s3.endpoint,
        "STIEFEL_S3_ACCESS_KEY_ID": s3.access_key,
        "STIEFEL_S3_SECRET_ACCESS_KEY": s3.secret_key,
        "STIEFEL_API_PORT": str(port),
    }
    env = clean_environment() | QUICK | shared
    log = home / "log"
    key = make_key(database, "acme")
    with (
        started([PYTHON, "-m", "stiefel_api"], env | _data(home, "api"), log) as api,
        started([PYTHON, "-m", "stiefel_worker"], env | _data(home, "one"), log) as one,
        started([_stiefel(), "worker"], env | _data(home, "two"), log) as two,
    ):
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url), api, log)
        yield Stack(url, key, database, home, log, [psutil.Process(p.pid) for p in (api, one, two)])


def with_checkpoint(client: Stiefel, job: Job) -> Job:
    """The job, still running, once a checkpoint of it is durable: progress is seen before that."""
    while not client.jobs.checkpoints(job.id)["data"]:
        time.sleep(0.02)
        job = client.jobs.get(job.id)
        assert not job.finished, job.error
    return client.jobs.get(job.id)


def make_key(database: str, tenant: str) -> str:
    """A key of a tenant, made where an operator would make it: in the database."""
    scopes = ("jobs:read", "jobs:write", "artifacts:read", "artifacts:write")
    db = Database(database)
    _, secret = create_key(db, tenant=tenant, name="e2e", scopes=scopes)
    db.close()
    return secret


def _data(home: Path, name: str) -> dict[str, str]:
    (home / name).mkdir(exist_ok=True)
    return {"STIEFEL_DATA_DIR": str(home / name)}


def _stiefel() -> str:
    return str(Path(PYTHON).with_name("stiefel"))


@contextmanager
def started(
    command: list[str], env: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the block ends; SIGTERM first, and SIGKILL to what outlives it."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=log.parent, env=env, stdout=out, stderr=out)
    root = psutil.Process(process.pid)
    try:
        yield process
    finally:
        family = root.children(recursive=True) if root.is_running() else []
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in family:
            if child.is_running():
                child.kill()
        process.wait()


def wait_until(condition, process, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.05)
