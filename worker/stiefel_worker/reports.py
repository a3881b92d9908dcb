"""The child's side of the pipe: the ``Run`` that a method sees.

Reports are cheap for the method: progress keeps only the newest, metric points travel in batches,
and one background thread sends what is waiting ten times a second and hears the wish to stop.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stiefel.errors import StopRequested, TooLargeError
from stiefel_worker.order import Order

REPORT_S = 0.1
BATCH = 500
EVENT_BYTES = 16_384

Message = dict[str, Any]


class ChildRun:
    """``stiefel.methods.protocol.Run`` over one pipe; all messages are JSON objects."""

    def __init__(self, order: Order, connection: Connection, lineage: Mapping[str, Any]) -> None:
        self.input = order.input
        self.state = order.state
        self.lineage = lineage
        self._connection = connection
        self._limit = order.memory_bytes
        self._split = int(order.spec.get("devices", 1)) if order.device == "cuda" else 1
        self._lock = threading.Lock()
        self._progress: Message | None = None
        self._points: list[tuple[int, str, float, float]] = []
        self._stop = threading.Event()
        threading.Thread(target=self._attend, name="reports", daemon=True).start()

    @property
    def stop_requested(self) -> bool:
        """Whether the supervisor asked for a stop."""
        return self._stop.is_set()

    def progress(self, done: int, total: int, *, unit: str, bytes_done: int = 0) -> None:
        """Keep the newest progress for the next report."""
        self._progress = {"done": done, "total": total, "unit": unit, "bytes_done": bytes_done}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queue one point per name; blocks only when the supervisor is 500 points behind."""
        now = time.time()
        with self._lock:
            self._points += [(step, name, float(value), now) for name, value in values.items()]
            full = len(self._points) >= BATCH
        if full:
            self._flush()

    def event(self, type: str, data: Mapping[str, Any]) -> None:  # noqa: A002 - the protocol's word
        """Send one event after all that was reported before it.

        Raises:
            ValueError: the data exceed 16 kB of JSON or are not JSON.
        """
        if len(json.dumps(data)) > EVENT_BYTES:
            raise ValueError(f"The data of event {type} exceed {EVENT_BYTES} bytes of JSON.")
        self.send({"type": "event", "event": type, "data": dict(data)})

    def expect_memory(self, nbytes: int) -> None:
        """Report what is expected; of several GPUs each has its part.

        Raises:
            TooLargeError: more than this job may have here.
        """
        needed = nbytes // self._split
        self.send({"type": "memory", "bytes": needed})
        if needed > self._limit:
            raise TooLargeError(
                f"The job needs about {needed / 2**30:.1f} GiB; it may have "
                f"{self._limit / 2**30:.1f} GiB here."
            )

    def checkpoint(self, step: int) -> None:
        """Report the sizes that ``state`` has now.

        Raises:
            StopRequested: a stop was asked for; the checkpoint has been reported.
        """
        self.send({"type": "checkpoint", "step": step, "files": sizes(self.state)})
        if self._stop.is_set():
            raise StopRequested("The run was asked to stop.")

    def send(self, message: Message) -> None:
        """Send everything waiting, then ``message``."""
        with self._lock:
            self._send_waiting()
            self._send(message)

    def _flush(self) -> None:
        with self._lock:
            self._send_waiting()

    def _send_waiting(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            self._send({"type": "progress", **progress})
        points, self._points = self._points, []
        if points:
            self._send({"type": "metrics", "points": points})

    def _send(self, message: Message) -> None:
        self._connection.send_bytes(json.dumps(message).encode())

    def _attend(self) -> None:
        """Hear the supervisor, send what waits; when the supervisor is gone, so are we."""
        try:
            while True:
                if self._connection.poll(REPORT_S):
                    if json.loads(self._connection.recv_bytes()).get("type") == "stop":
                        self._stop.set()
                else:
                    self._flush()
        except (EOFError, OSError):
            os.killpg(0, signal.SIGKILL)


def sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of every file below ``folder``, by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
