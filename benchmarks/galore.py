"""GaLore on a language model: held-out loss, memory of the optimizer's state, time of a step.

    python benchmarks/galore.py --data DIR [--authors DIR] [--steps 600] [--seeds 3]
        --data DIR       holds input.txt, tiny Shakespeare
        --authors DIR    the unpacked wheel galore-torch, the authors' code

A transformer of four layers, width 256, learns the characters of 90 % of the text; the loss is that
of the last 10 %. Only the matrices of the layers are projected, as in the paper; every contestant
takes the rate of ``--rates`` that serves it best at a seed of its own. Contestants run in turn, so
that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stage import command_line, publish
from torch import Tensor, nn

from stiefel.lowrank import GaLoreAdamW

CONTEXT, BATCH, WIDTH, LAYERS, RANK, PERIOD = 64, 16, 256, 4, 32, 50
Optimizers = dict[str, Callable[[list[nn.Parameter], list[nn.Parameter], float], Any]]


class Outcome(NamedTuple):
    """Of one training run."""

    loss: float  # nats per character
    state_bytes: int
    seconds: float  # median of a step


class CharacterModel(nn.Module):
    """Decoder-only transformer on characters."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, WIDTH)
        self.place = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        for part in self.layers.parameters():  # copies of one draw otherwise
            if part.ndim > 1:
                nn.init.xavier_uniform_(part)
        self.head = nn.Linear(WIDTH, characters)
        self.mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)

    def forward(self, x: Tensor) -> Tensor:
        """Map characters ``(B, CONTEXT)`` to logits."""
        y: Tensor = self.head(
            self.layers(self.embed(x) + self.place, mask=self.mask, is_causal=True)
        )
        return y


def read(folder: Path) -> tuple[Tensor, Tensor, int]:
    text = (folder / "input.txt").read_text()
    letters = sorted(set(text))
    codes = {letter: i for i, letter in enumerate(letters)}
    data = torch.tensor([codes[letter] for letter in text])
    cut = len(data) * 9 // 10
    return data[:cut], data[cut:], len(letters)


def windows(data: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    rows = data[starts[:, None] + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(net(x).flatten(0, 1), y.flatten())


def optimizers(authors: Path | None) -> Optimizers:
    def galore(energy: float | None = None) -> Any:
        def made(matrices: list[nn.Parameter], others: list[nn.Parameter], rate: float) -> Any:
            groups = [{"params": matrices}, {"params": others, "rank": 10**6}]
            return GaLoreAdamW(groups, lr=rate, rank=RANK, period=PERIOD, energy=energy)

        return made

    def adamw(matrices: list[nn.Parameter], others: list[nn.Parameter], rate: float) -> Any:
        return torch.optim.AdamW(matrices + others, lr=rate, weight_decay=0.0)

    rows: Optimizers = {
        "AdamW": adamw,
        "GaLoreAdamW": galore(),
        "GaLoreAdamW, energy 0.9": galore(0.9),
    }
    if authors:
        theirs = load(authors)

        def peer(matrices: list[nn.Parameter], others: list[nn.Parameter], rate: float) -> Any:
            subspace = {"rank": RANK, "update_proj_gap": PERIOD, "scale": 1.0, "proj_type": "std"}
            groups = [{"params": others}, {"params": matrices, **subspace}]
            return theirs(groups, lr=rate, eps=1e-8, no_deprecation_warning=True)

        rows["authors' GaLore AdamW"] = peer
    return rows


def load(folder: Path) -> Any:
    # The package's own __init__ asks for an 8-bit library that is not needed here.
    package = types.ModuleType("galore_torch")
    package.__path__ = [str(folder / "galore_torch")]
    sys.modules["galore_torch"] = package
    from galore_torch.adamw import AdamW

    return AdamW


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all tensors in the state, those of a projector included."""

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.nbytes
        inside = vars(value).values() if hasattr(value, "__dict__") else ()
        return sum(part.nbytes for part in inside if isinstance(part, Tensor))

    return sum(size(v) for state in optimizer.state.values() for v in state.values())


def train(
    make: Callable[..., Any], rate: float, seed: int, steps: int, data: tuple[Tensor, Tensor, int]
) -> Outcome:
    learned, held_out, characters = data
    torch.manual_seed(seed)
    net = CharacterModel(characters)
    matrices = [p for p in net.layers.parameters() if p.ndim == 2]
    chosen = set(matrices)
    optimizer = make(matrices, [p for p in net.parameters() if p not in chosen], rate)
    times = []
    for i in range(steps):
        share = min(1.0, (i + 1) / 50) * (0.1 + 0.9 * (1 + math.cos(math.pi * i / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        x, y = windows(learned, torch.randint(len(learned) - CONTEXT, (BATCH,)))
        started = time.perf_counter()
        optimizer.zero_grad()
        loss_of(net, x, y).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    starts = torch.arange(0, len(held_out) - CONTEXT, CONTEXT)
    with torch.no_grad():
        losses = [float(loss_of(net, *windows(held_out, part))) for part in starts.split(256)[:-1]]
    return Outcome(statistics.mean(losses), state_bytes(optimizer), statistics.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(2)
    data, makers = read(args.data), optimizers(args.authors)
    trials = {
        name: {rate: train(make, rate, 1000, args.steps, data).loss for rate in args.rates}
        for name, make in makers.items()
    }
    runs: dict[str, list[Outcome]] = {name: [] for name in makers}
    for seed in range(args.seeds):
        for name, make in makers.items():
            best = min(trials[name], key=trials[name].__getitem__)
            runs[name].append(train(make, best, seed, args.steps, data))
    table = []
    for name, outcomes in runs.items():
        losses = [outcome.loss for outcome in outcomes]
        table.append(
            {
                "optimizer": name,
                "rate": min(trials[name], key=trials[name].__getitem__),
                "held-out loss": f"{statistics.mean(losses):.4f}",
                "of the seeds": ", ".join(f"{loss:.4f}" for loss in losses),
                "state, MB": round(outcomes[0].state_bytes / 1e6, 2),
                "step, ms": round(statistics.median(o.seconds for o in outcomes) * 1e3, 1),
            }
        )
    facts = {"rank": RANK, "period": PERIOD, "width": WIDTH, "layers": LAYERS, "steps": args.steps}
    facts |= {"batch": BATCH, "context": CONTEXT}
    command = command_line()
    for folder in filter(None, (args.data, args.authors)):
        command = command.replace(str(folder), "DIR")
    publish("galore", "GaLore on characters", command, table, trials, setting=facts)


if __name__ == "__main__":
    main()
