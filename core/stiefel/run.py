"""One attempt at a job, as the algorithm sees it.

An algorithm reads ``run.input``, works in ``run.state`` and reports. It sees no database, broker,
credential or network; a test runs it with two folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Run(Protocol):
    """One attempt at a job, seen from inside the method.

    ``state`` is what a checkpoint keeps. One rule makes checkpoints cheap: a file in
    ``state`` only ever grows; it is never rewritten, and a file no longer needed is
    deleted. At a checkpoint the bytes written so far become durable; on resume the
    folder holds exactly those bytes.
    """

    @property
    def input(self) -> Path:
        """Folder of staged inputs by name; read-only."""

    @property
    def state(self) -> Path:
        """Folder whose files survive the death of this process, as of the last checkpoint."""

    @property
    def lineage(self) -> Mapping[str, Any]:
        """Facts for certificates that only the service knows: job, input digests, code version."""

    @property
    def stop_requested(self) -> bool:
        """Whether the next checkpoint will raise; methods with rare checkpoints ask each step."""

    def progress(self, done: int, total: int, *, unit: str, bytes_done: int = 0) -> None:
        """Report progress; cheap, may be dropped when reports come faster than they are read."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one point to each named series; never dropped."""

    def event(self, type: str, data: Mapping[str, Any]) -> None:  # noqa: A002 - the protocol's word
        """Append an event such as ``job.spectrum`` or ``job.log`` (under 16 kB of JSON)."""

    def expect_memory(self, nbytes: int) -> None:
        """Say how much memory the run will take at its peak, before it takes it.

        Raises:
            TooLargeError: more than it may have here; let it propagate.
        """

    def checkpoint(self, step: int) -> None:
        """Make ``state`` durable as it is now; returns at once.

        Raises:
            StopRequested: the run was asked to stop. ``state`` is safe: let it propagate.
        """
