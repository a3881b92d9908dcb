"""Progress, metrics and events of a child on their way to the store, one write a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from stiefel_jobs.records import NewEvent, Point, Progress
from stiefel_worker.pace import Pace

# Every write wakes whoever follows the job: at 0.4 s it cost two jobs on two cores some percent.
FLUSH_S = 1.0

Write = Callable[[Progress | None, list[Point], list[NewEvent]], bool]


class Journal:
    """Collects what a child reports; ``take`` hands it over when it is time."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._points: list[Point] = []
        self._events: list[NewEvent] = []
        self._due = 0.0
        self._refused = False
        self._pace = Pace()

    def progress(self, message: dict[str, Any]) -> None:
        """Keep the newest progress, and how fast it came about."""
        done, total = float(message["done"]), float(message["total"])
        unit = str(message["unit"])[:32]
        self._pace.add(time.monotonic(), done, total=total, unit=unit)
        extra = {"bytes_done": int(message["bytes_done"]), **self._pace.rates()}
        self._progress = Progress(stage="running", done=done, total=total, unit=unit, extra=extra)

    def metrics(self, message: dict[str, Any]) -> None:
        """Add points ``[step, name, value, at]``."""
        self._points += [
            Point(
                name=str(name)[:255],
                step=int(step),
                value=None if value is None else float(value),
                at=float(at),
            )
            for step, name, value, at in message["points"]
        ]

    def event(self, message: dict[str, Any]) -> None:
        """Add one event."""
        data = message["data"]
        if not isinstance(data, dict):
            raise TypeError("an event's data must be an object")
        self._events.append(NewEvent(str(message["event"])[:255], data))

    def add(self, event: NewEvent) -> None:
        """Add an event of the supervisor's own."""
        self._events.append(event)

    @property
    def waiting(self) -> bool:
        """Whether there is something that the store has not got yet."""
        return self._progress is not None or bool(self._points or self._events)

    def flush(self, write: Write, *, at_once: bool = False) -> None:
        """Hand over what waits, when it is time; what ``write`` did not take is tried again later.

        ``at_once`` waits for no time, unless the last write was refused.

        Raises:
            StaleFenceError: the job has moved on.
        """
        early = time.monotonic() < self._due and not (at_once and not self._refused)
        if not self.waiting or early:
            return
        self._due = time.monotonic() + FLUSH_S
        self._refused = not write(self._progress, self._points, self._events)
        if not self._refused:
            self._progress, self._points, self._events = None, [], []
