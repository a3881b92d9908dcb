"""What the accuracy benchmarks share: data, one training recipe, and the counting of parameters."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stiefel.lowrank import LowRankIntegrator, LowRankLayer


@dataclass(frozen=True)
class Recipe:
    """One training run. ``shift``: each training image moves by up to so many pixels per batch."""

    epochs: int = 30
    batch: int = 256
    lr: float = 1e-3
    phase: int = 5
    variant: str = "exact"
    decay: float = 0.0
    smoothing: float = 0.0
    shift: int = 0
    warmup: float = 0.02
    frozen_ranks: float = 0.2
    frozen_bases: float = 0.0

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """One option per field."""
        for entry in dataclasses.fields(Recipe):
            kind = str if entry.name == "variant" else type(entry.default)
            parser.add_argument(
                f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default
            )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Recipe:
        """Read the options back."""
        return cls(**{entry.name: getattr(args, entry.name) for entry in dataclasses.fields(cls)})


class Results:
    """A file of runs, written after every run; several processes may add to one file.

    Args:
        path: the JSON file, or None to keep nothing.
        head: what all its runs share.
        append: keep the runs that the file already holds, whose head must be the same.
    """

    def __init__(self, path: Path | None, head: dict[str, object], *, append: bool) -> None:
        self.path, self.head, self.append = path, json.loads(json.dumps(head)), append
        if append and path is not None and path.exists():
            found = json.loads(path.read_text())
            if any(found.get(key) != value for key, value in self.head.items()):
                raise SystemExit(f"{path} holds runs of another recipe; give another --out")
        self.fresh = not append

    def __contains__(self, point: tuple[float | None, int]) -> bool:
        """Whether the point (tolerance, seed) has run."""
        return any((run["tolerance"], run["seed"]) == point for run in self._runs())

    def add(self, run: dict[str, object]) -> None:
        """Print the run and write it down."""
        print(json.dumps(run), flush=True)
        if self.path is None:
            return
        runs = [*self._runs(), run]
        self.fresh = False
        runs.sort(key=lambda run: (run["tolerance"] is None, run["tolerance"], run["seed"]))
        record = {**describe(), **self.head, "runs": runs}
        self.path.write_text(json.dumps(record, indent=1) + "\n")

    def _runs(self) -> list[dict[str, object]]:
        if self.fresh or self.path is None or not self.path.exists():
            return []
        runs: list[dict[str, object]] = json.loads(self.path.read_text())["runs"]
        return runs


class Images(NamedTuple):
    """MNIST in memory."""

    train: Tensor  # (N, 1, 28, 28) in 0..1
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Result(NamedTuple):
    """One finished run."""

    accuracy: float
    ranks: list[int]


def load_images(folder: Path) -> Images:
    parts = []
    for split in ("train", "test"):
        parts += _decode(folder / f"{split}.parquet")
    return Images(*parts)


def _decode(path: Path) -> list[Tensor]:
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(path)
    pixels = [
        np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()
    ]
    images = torch.from_numpy(np.stack(pixels)).float().div_(255)[:, None]
    return [images, torch.tensor(table["label"].to_pylist())]


def train(
    network: nn.Module,
    data: Images,
    recipe: Recipe,
    *,
    tolerance: float | None,
    generator: torch.Generator,
    shape: Callable[[Tensor], Tensor],
) -> Result:
    """Train with AdamW and a cosine; ``tolerance=None`` trains the dense network the same way."""
    optimizer = torch.optim.AdamW(_groups(network, recipe.decay), lr=recipe.lr, fused=True)
    integrator = (
        None
        if tolerance is None
        else LowRankIntegrator(
            network, optimizer, tolerance=tolerance, phase=recipe.phase, variant=recipe.variant
        )
    )
    steps = recipe.epochs * math.ceil(len(data.train) / recipe.batch)
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
    step = 0
    for _ in range(recipe.epochs):
        network.train()
        for index in torch.randperm(len(data.train), generator=generator).split(recipe.batch):
            _set_rate(optimizer, recipe, step / steps)
            if integrator is not None:
                _freeze(integrator, recipe, step / steps)
            optimizer.zero_grad()
            images = shifted(data.train[index], recipe.shift, generator)
            loss_of(network(shape(images)), data.train_labels[index]).backward()
            (optimizer if integrator is None else integrator).step()
            step += 1
    ranks = []
    if integrator is not None:
        integrator.finish()
        ranks = list(integrator.ranks.values())
    return Result(accuracy(network, data, shape), ranks)


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Move every image by its own whole number of pixels; the border enters black."""
    if reach == 0:
        return images
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (reach,) * 4)
    offset = torch.randint(0, 2 * reach + 1, (2, count), generator=generator)
    rows = offset[0][:, None] + torch.arange(height)
    columns = offset[1][:, None] + torch.arange(width)
    each = torch.arange(count)[:, None, None]
    return padded[:, 0][each, rows[:, :, None], columns[:, None, :]][:, None]


@torch.no_grad()
def accuracy(network: nn.Module, data: Images, shape: Callable[[Tensor], Tensor]) -> float:
    network.eval()
    hits = sum(
        int((network(shape(images)).argmax(1) == labels).sum())
        for images, labels in zip(data.test.split(2000), data.test_labels.split(2000), strict=True)
    )
    return 100 * hits / len(data.test)


def saved_share(network: nn.Module, dense_weights: int) -> float:
    """Percent of the weights (biases aside, as the authors count) that inference does without."""
    kept = 0
    for module in network.modules():
        if isinstance(module, LowRankLayer):
            kept += module.parameter_count() - (0 if module.bias is None else module.bias.numel())
        elif isinstance(module, nn.Linear | nn.Conv2d):
            kept += module.weight.numel()
    return 100 * (1 - kept / dense_weights)


def describe() -> dict[str, str]:
    return {
        "command": " ".join(["python", *(_neutral(word) for word in sys.argv)]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }


def _neutral(word: str) -> str:
    """A path outside the repository says nothing to a reader."""
    path = Path(word)
    return f"benchmarks/{path.name}" if path.suffix == ".py" else ("DIR" if path.is_dir() else word)


def _groups(network: nn.Module, decay: float) -> list[dict[str, object]]:
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


def _set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    rise = min(1.0, (done + 1e-4) / recipe.warmup) if recipe.warmup else 1.0
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * rise * 0.5 * (1 + math.cos(math.pi * done))


def _freeze(integrator: LowRankIntegrator, recipe: Recipe, done: float) -> None:
    if done >= 1 - recipe.frozen_ranks and integrator.adaptive:
        integrator.freeze_ranks()
    if done >= 1 - recipe.frozen_bases and recipe.frozen_bases and not integrator.bases_frozen:
        integrator.freeze_bases()
