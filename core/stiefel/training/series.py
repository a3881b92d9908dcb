"""Named curves of one run: told to the host as they grow, kept for the files at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stiefel.run import Run


class Series:
    """(step, value) points by name, and the wall-clock second of each step that has one."""

    def __init__(self, run: Run | None) -> None:
        self._run = run
        self._points: dict[str, list[tuple[int, float]]] = {}
        self._times: dict[int, float] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append one point to each named curve and tell the host."""
        self._times[step] = time.time()
        for name, value in values.items():
            self._points.setdefault(name, []).append((step, float(value)))
        if self._run is not None:
            self._run.metrics(step, values)

    def points(self) -> Iterator[tuple[str, int, float, float]]:
        """(name, step, value, time) of every point, curve by curve."""
        for name, curve in sorted(self._points.items()):
            for step, value in curve:
                yield name, step, value, self._times[step]

    def curve(self, name: str) -> list[tuple[int, float]]:
        """The points of one curve."""
        return self._points.get(name, [])

    def state_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"points": self._points, "times": self._times}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the curves of a checkpoint."""
        self._points = {
            name: [(step, value) for step, value in curve]
            for name, curve in state["points"].items()
        }
        self._times = dict(state["times"])


def write_parquet(series: Series, path: Path) -> None:
    """Columns name, step, value, time (seconds since 1970)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*series.points(), strict=True)) or [(), (), (), ()]
    table = pa.table(
        {
            "name": pa.array(columns[0], pa.string()),
            "step": pa.array(columns[1], pa.int64()),
            "value": pa.array(columns[2], pa.float64()),
            "time": pa.array(columns[3], pa.float64()),
        }
    )
    pq.write_table(table, path)


def write_tensorboard(series: Series, folder: Path) -> Path:
    """Write a TensorBoard event file into ``folder`` and return its path."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):  # of an attempt that died here
        old.unlink()
    writer = SummaryWriter(str(folder))
    for name, step, value, at in series.points():
        writer.add_scalar(name, value, step, walltime=at)
    writer.close()
    return next(folder.glob("events.out.tfevents.*"))
