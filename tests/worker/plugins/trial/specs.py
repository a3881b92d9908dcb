from __future__ import annotations

from typing import Literal

from stiefel.specs import MethodSpec


class Trial(MethodSpec):
    """What to do, and for how long."""

    method: Literal["test.trial"] = "test.trial"
    act: str = "count"
    steps: int = 3
    step_s: float = 0.0
    text: str = ""
    file: str | None = None

    def inputs(self) -> dict[str, str]:
        return {} if self.file is None else {"file": self.file}
