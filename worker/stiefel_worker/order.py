"""What the supervisor tells a child before it starts: plain JSON, no secret among it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Order:
    """One attempt: what to run, where, and within which limits."""

    job_id: str
    attempt: int
    spec: dict[str, Any]
    scratch: str
    inputs: dict[str, str]  # staged file name -> sha256
    threads: int
    data_limit: int | None
    memory_bytes: int  # one job may have, of the GPU on the queue cuda
    device: str  # cpu | cuda, as the queue is called
    code: str
    private: list[str]  # folders that no child may read

    @property
    def input(self) -> Path:
        """Staged inputs."""
        return Path(self.scratch) / "input"

    @property
    def state(self) -> Path:
        """What checkpoints keep."""
        return Path(self.scratch) / "state"

    def encode(self) -> str:
        """JSON; the only form in which an order crosses to the child."""
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> Order:
        """The inverse of ``encode``."""
        return Order(**json.loads(text))
