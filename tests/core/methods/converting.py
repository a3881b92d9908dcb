"""Small checkpoints, runs that stop where they are told, and what came out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stiefel.methods import METHODS
from stiefel.methods.local import FolderRun, assemble
from stiefel.methods.protocol import Outcome
from stiefel.specs import parse_spec

Checkpoint = dict[str, Tensor]
TIMED = {"report.json", "README.md", "metrics.parquet", "events.out.tfevents"}


def small_checkpoint(seed: int = 0) -> Checkpoint:
    """Square, tall, wide, kernel, complex, half, double; and what is not converted."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "square.weight": normal(24, 24),
        "tall.weight": normal(40, 12),
        "wide.weight": normal(12, 40),
        "kernel.weight": normal(16, 3, 3, 3),
        "complex.weight": normal(10, 10, dtype=torch.complex64),
        "half.weight": normal(16, 16).to(torch.bfloat16),
        "double.weight": normal(14, 14, dtype=torch.float64),
        "square.bias": normal(24),
        "ids": torch.arange(7),
        "flags": torch.ones(5, dtype=torch.bool),
        "tiny.weight": normal(3, 5).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
    }


@dataclass
class Job:
    """One job on folders of its own."""

    folder: Path
    spec: dict[str, Any]

    @property
    def input(self) -> Path:
        return self.folder / "input"

    def stage(self, tensors: Checkpoint, name: str = "model.safetensors") -> Job:
        self.input.mkdir(parents=True, exist_ok=True)
        save_file(tensors, self.input / name, metadata={"format": "pt"})
        return self

    def attempt(self, should_stop: Callable[[int], bool] = lambda step: False) -> Outcome:
        self.run = FolderRun(self.input, self.folder / "state", should_stop=should_stop)
        spec = parse_spec(self.spec)
        return METHODS[spec.method].run(spec, self.run)

    def finish(self) -> Result:
        outcome = self.attempt()
        output = self.folder / "output"
        output.mkdir(exist_ok=True)
        for delivery in outcome.deliveries:
            assemble(delivery, output / delivery.name)
        return Result(output, outcome)


@dataclass(frozen=True)
class Sample:
    """A small job of one method, for the conformance suite."""

    spec: dict[str, Any]
    stage: Callable[[Job], Job]


@dataclass
class Result:
    """The delivered files of one finished job."""

    folder: Path
    outcome: Outcome

    def tensors(self, name: str = "model.safetensors") -> Checkpoint:
        return load_file(self.folder / name)

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text())
        return content

    @property
    def claims(self) -> dict[str, dict[str, float]]:
        return {row["name"]: row["claims"] for row in self.json("certificate.json")["tensors"]}

    @property
    def skipped(self) -> dict[str, str]:
        return {row["name"]: row["code"] for row in self.json("report.json")["skipped"]}

    def bits(self) -> dict[str, bytes]:
        """Every delivered byte but those that tell the time."""
        return {
            path.name: path.read_bytes() for path in self.folder.iterdir() if path.name not in TIMED
        }


def unitary(folder: Path, tensors: Checkpoint, **spec: Any) -> Result:
    return _finished(folder, tensors, {"method": "project.unitary", **spec})


def low_rank(folder: Path, tensors: Checkpoint, **spec: Any) -> Result:
    return _finished(folder, tensors, {"method": "factorize.low_rank", **spec})


def _finished(folder: Path, tensors: Checkpoint, spec: dict[str, Any]) -> Result:
    return Job(folder, {"input": "art", **spec}).stage(tensors).finish()


def as_matrix(x: Tensor) -> Tensor:
    """out x rest, transposed to be tall, in double precision."""
    matrix = x.reshape(x.shape[0], -1)
    wide = matrix.to(torch.complex128 if x.is_complex() else torch.float64)
    return wide.mH if wide.shape[0] < wide.shape[1] else wide


def polar_of(x: Tensor) -> Tensor:
    """The polar factor by the SVD, of ``as_matrix(x)``."""
    U, _, Vh = torch.linalg.svd(as_matrix(x), full_matrices=False)
    return U @ Vh
