"""What every supervisor of one worker process shares, built once at its start."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import psutil
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

import stiefel
from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database
from stiefel_jobs.settings import GIB, Settings

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

    def data_limit(self, queue: str) -> int | None:
        """Private bytes a job may map. A CUDA driver maps far more than it uses: no limit there."""
        return self.memory_bytes + 2 * GIB if queue == "cpu" else None


def _memory_of_this_machine() -> int:
    total: int = psutil.virtual_memory().total
    group = Path("/sys/fs/cgroup/memory.max")
    limit = group.read_text().strip() if group.exists() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


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
