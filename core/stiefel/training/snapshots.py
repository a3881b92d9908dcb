"""Checkpoints as files that are written once: the newest few, and the best.

``step-000000100.weights.safetensors`` holds the network and can be used as it is;
``step-000000100.run.safetensors`` holds the rest of the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from stiefel.training.snapshot import load_tensors, load_tree, save_tensors, save_tree

_RUN = re.compile(r"step-(\d{9})\.run\.safetensors")


class Snapshots:
    """The checkpoints of one run in ``folder``.

    Args:
        folder: the run's state folder.
        keep: how many of the newest to keep, besides the best.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def save(self, step: int, weights: dict[str, Any], run: dict[str, Any], best: int) -> None:
        """Write the checkpoint of ``step`` and delete what is no longer kept."""
        self._write(self._path(step, "weights"), lambda path: save_tensors(path, weights))
        self._write(self._path(step, "run"), lambda path: save_tree(path, run))
        steps = self.steps()
        for old in steps[: -self._keep]:
            if old != best:
                self._path(old, "weights").unlink(missing_ok=True)
                self._path(old, "run").unlink(missing_ok=True)

    def newest(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(weights, run) of the newest checkpoint, or None at a first start."""
        steps = self.steps()
        return self.load(steps[-1]) if steps else None

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(weights, run) of the checkpoint of ``step``."""
        return self.weights(step), load_tree(self._path(step, "run"))

    def weights(self, step: int) -> dict[str, Tensor]:
        """The network's weights at ``step``."""
        return load_tensors(self._path(step, "weights"))

    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        found = (_RUN.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        if not path.exists():
            # Whole or not at all: a process killed here leaves no name that looks finished.
            partial = path.with_suffix(".partial")
            write(partial)
            partial.replace(path)

    def _path(self, step: int, part: str) -> Path:
        return self._folder / f"step-{step:09d}.{part}.safetensors"
