"""How long training has taken, attempts before this one included."""

from __future__ import annotations

import time


class Clock:
    """Seconds and examples of all attempts; evaluations and checkpoints count, waiting does not."""

    def __init__(self) -> None:
        self._before = 0.0
        self._started = time.perf_counter()
        self.examples = 0

    @property
    def seconds(self) -> float:
        """Seconds since the first attempt began to train, without the gaps between attempts."""
        return self._before + time.perf_counter() - self._started

    @property
    def examples_per_second(self) -> float:
        """Throughput over the whole run."""
        return self.examples / self.seconds

    def state_dict(self) -> dict[str, float | int]:
        """As JSON."""
        return {"seconds": self.seconds, "examples": self.examples}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from a checkpoint."""
        self._before = float(state["seconds"])
        self._started = time.perf_counter()
        self.examples = int(state["examples"])
