"""What every supervisor of one worker process shares, built once at its start."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

import stiefel
from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database, normalize
from stiefel_jobs.records import Claim
from stiefel_jobs.settings import GIB, Settings
from stiefel_jobs.store.workers import MEMORY, MEMORY_FIELDS
from stiefel_worker.order import Order

MEMORY_SHARE = 0.9  # of the machine; the rest is for the worker itself and its neighbours


class WorkerSettings(BaseSettings):
    """Limits of one worker process, from ``STIEFEL_WORKER_*``; the defaults fit the machine."""

    model_config = SettingsConfigDict(env_prefix="STIEFEL_WORKER_", extra="ignore")

    memory_bytes: int | None = Field(default=None, gt=0)  # per job
    threads: int | None = Field(default=None, gt=0)  # per job
    pause_s: float = Field(default=300.0, ge=0)  # until a paused job must have reached a safe point
    idle_s: float = Field(default=60.0, gt=0)  # a poller silent for longer ends the process


@dataclass(frozen=True)
class Shop:
    """The tools of one worker process and what each of its jobs may use."""

    settings: Settings
    limits: WorkerSettings
    db: Database
    blobs: Blobs
    worker: str
    queues: tuple[str, ...]
    concurrency: int

    @staticmethod
    def open(settings: Settings, *, queues: tuple[str, ...], concurrency: int) -> Shop:
        """Connect; the worker's name is its host, process and a random suffix."""
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        db = Database(settings.database_url)
        return Shop(
            settings, WorkerSettings(), db, Blobs.of(settings), name, queues, max(1, concurrency)
        )

    @cached_property
    def code(self) -> str:
        """Version of the code, with the commit where this is a git checkout."""
        commit = _commit(Path(stiefel.__file__))
        return version("stiefel") + (f"+g{commit[:12]}" if commit else "")

    @cached_property
    def threads(self) -> int:
        """CPU threads of one job."""
        return self.limits.threads or max(1, len(os.sched_getaffinity(0)) // self.concurrency)

    @cached_property
    def memory_bytes(self) -> int:
        """Resident bytes that one job may hold."""
        share = int(_memory_of_this_machine() * MEMORY_SHARE) // self.concurrency
        return self.limits.memory_bytes or share

    def share_bytes(self, queue: str) -> int:
        """Bytes that one job of ``queue`` may have: of the machine, or of a GPU."""
        return self.cuda_memory_bytes or 2**62 if queue == "cuda" else self.memory_bytes

    def free_bytes(self, queue: str) -> int:
        """Bytes that one more job of ``queue`` may need: its share, and no more than are free now.

        Of a GPU only the share is looked at, and only where it is known.
        """
        share = self.share_bytes(queue)
        return share if queue == "cuda" else min(share, psutil.virtual_memory().available)

    @cached_property
    def cuda_memory_bytes(self) -> int | None:
        """Bytes of the smallest GPU that one job may have; None where no driver tells."""
        sizes = _memory_of_gpus() if "cuda" in self.queues else []
        return int(min(sizes) * MEMORY_SHARE) // self.concurrency if sizes else None

    @property
    def devices(self) -> dict[str, int]:
        """What one job may use here, as the worker reports it."""
        found = {"threads": self.threads, MEMORY: self.memory_bytes}
        gpu = self.cuda_memory_bytes
        return found if gpu is None else found | {MEMORY_FIELDS["cuda"]: gpu}

    def data_limit(self, queue: str) -> int | None:
        """Private bytes a job may map. A CUDA driver maps far more than it uses: no limit there."""
        return self.memory_bytes + 2 * GIB if queue == "cpu" else None

    def order(self, claim: Claim, scratch: Path) -> Order:
        """What the child of one attempt is told."""
        return Order(
            job_id=claim.job_id,
            attempt=claim.attempt,
            spec=claim.spec,
            scratch=str(scratch),
            inputs={name: artifact.sha256 for name, artifact in claim.inputs.items()},
            threads=self.threads,
            data_limit=self.data_limit(claim.queue),
            memory_bytes=self.share_bytes(claim.queue),
            device=claim.queue,
            code=self.code,
            private=private_folders(self.settings),
        )


def private_folders(settings: Settings) -> list[str]:
    """Folders of the service that no child may read, wherever an operator has put them."""
    folders = [settings.data_dir, settings.scratch_dir or settings.data_dir]
    if settings.store_url.startswith("file:"):
        folders.append(Path(unquote(urlsplit(settings.store_url).path)))
    database = normalize(settings.database_url)
    if database.get_backend_name() == "sqlite" and database.database:
        folders.append(Path(database.database).parent)  # its log lies beside it
    return sorted({str(folder.absolute()) for folder in folders})


def _memory_of_this_machine() -> int:
    total: int = psutil.virtual_memory().total
    group = Path("/sys/fs/cgroup/memory.max")
    limit = group.read_text().strip() if group.exists() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


def _memory_of_gpus() -> list[int]:
    """Bytes of every GPU, by the driver's own tool: the worker itself never opens a device."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603 - fixed arguments
    return [int(line) * 2**20 for line in answer.stdout.split() if line.isdigit()]


def _commit(source: Path) -> str | None:
    for folder in source.parents:
        head = folder / ".git" / "HEAD"
        if head.is_file():
            text = head.read_text().strip()
            reference = folder / ".git" / text.removeprefix("ref: ")
            if reference.is_file():
                return reference.read_text().strip()
            return None if text.startswith("ref: ") else text
    return None
