"""Epochs to a fixed accuracy: a deep normalisation-free unitary network from five starts.

    python benchmarks/uwpa_network.py [--depth 20] [--seeds 3] [--epochs 40] [--target 0.95]
        [--out benchmarks/results/uwpa_network] [--plot docs/uwpa_network.png]

The experiment of arXiv 2102.10052 at the size of sklearn's digits: train a deep fully connected
network with batch normalisation, absorb the normalisation, project every hidden layer, fine-tune
with unitary weights and no normalisation. Starts: random unitary, UWPA, polar factor, data-aware
Procrustes, and UWPA carried to the whole network. Everything else (data, optimizer, rates, batches,
gain and bias per layer) is the same for all.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stiefel.linalg import orthogonality_defect
from stiefel.manifold import project_tangent, random_point, retract_polar
from stiefel.projection.nearest import nearest_unitary
from stiefel.projection.network_fit import NetworkFitter
from stiefel.projection.normalisation import absorb_normalisations
from stiefel.projection.procrustes import procrustes
from stiefel.projection.uwpa import uwpa

WIDTH, BATCH = 64, 128
Data = tuple[Tensor, Tensor, Tensor, Tensor]
Start = tuple[Tensor, Tensor, Tensor]  # (depth, 64, 64) unitary, (depth,) gains, (depth, 64) biases


def digits(seed: int) -> Data:
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16 - 0.3, y, test_size=0.25, random_state=seed, stratify=y)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.tensor(part) for part in parts[2:])
    return train_x, train_y, test_x, test_y


def batches(count: int, generator: torch.Generator) -> list[Tensor]:
    return list(torch.randperm(count, generator=generator).split(BATCH))[:-1]


def pretrained(depth: int, data: Data, seed: int, epochs: int) -> tuple[nn.Sequential, float]:
    """A network with batch normalisation, trained, then with the normalisation absorbed."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for chosen in batches(len(data[0]), generator):
            optimizer.zero_grad()
            cross_entropy(model(data[0][chosen]), data[1][chosen]).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    plain = absorb_normalisations(model)
    with torch.no_grad():
        accuracy = float((plain(data[2]).argmax(1) == data[3]).double().mean())
    return plain, accuracy


def hidden(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)][:-1]


def kept(model: nn.Sequential) -> Tensor:
    return torch.stack([layer.bias.detach() for layer in hidden(model)])


def start_random(model: nn.Sequential, data: Data, seed: int) -> Start:
    depth = len(hidden(model))
    q = random_point(depth, WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    # The gain is what a ReLU needs to keep the second moment.
    return q, torch.full((depth,), 2**0.5), torch.zeros(depth, WIDTH)


def start_uwpa(model: nn.Sequential, data: Data, seed: int) -> Start:
    fits = [uwpa(layer.weight) for layer in hidden(model)]
    return torch.stack([f.factor for f in fits]), torch.tensor([f.gain for f in fits]), kept(model)


def start_polar(model: nn.Sequential, data: Data, seed: int) -> Start:
    fits = [nearest_unitary(layer.weight.detach(), scale="mean") for layer in hidden(model)]
    return torch.stack([f.factor for f in fits]), torch.tensor([f.gain for f in fits]), kept(model)


def start_data_aware(model: nn.Sequential, data: Data, seed: int) -> Start:
    """Layer by layer, on the inputs that the projected layers below really give; means by bias."""
    factors, gains, biases, x, wanted = [], [], [], data[0], data[0]
    with torch.no_grad():
        for layer in hidden(model):
            wanted = layer(wanted)
            mean_x, mean_y = x.mean(0), wanted.mean(0)
            centred = x - mean_x
            fit = procrustes(layer.weight, centred, outputs=wanted - mean_y, scale="mean")
            # The least-squares gain shrinks what does not fit, layer after layer; keep the energy.
            gain = float((wanted - mean_y).norm() / (centred @ fit.factor.mT).norm())
            biases.append(mean_y - gain * fit.factor @ mean_x)
            x = (gain * x @ fit.factor.mT + biases[-1]).relu()
            wanted = wanted.relu()
            factors.append(fit.factor)
            gains.append(gain)
    return torch.stack(factors), torch.tensor(gains), torch.stack(biases)


def start_network(model: nn.Sequential, data: Data, seed: int) -> Start:
    names = [name for name, layer in model.named_children() if isinstance(layer, nn.Linear)][:-1]
    fit = NetworkFitter(
        model, data[0], layers=names, iterations=60, learning_rate=3e-3, batch=256
    ).fit()
    gains = torch.tensor([fit.gains[name] for name in names])
    weights = torch.stack([fit.network.get_parameter(f"{name}.weight") for name in names])
    return weights.detach() / gains[:, None, None], gains, kept(model)


STARTS: dict[str, Callable[[nn.Sequential, Data, int], Start]] = {
    "random unitary": start_random,
    "UWPA": start_uwpa,
    "polar": start_polar,
    "data-aware": start_data_aware,
    "UWPA, whole network": start_network,
}


class Unitary:
    """h <- relu(s Q h + b) per layer, Q on the orthogonal group, then a linear head."""

    def __init__(self, start: Start, model: nn.Sequential, fresh: bool, seed: int) -> None:
        head = [m for m in model if isinstance(m, nn.Linear)][-1]
        self.q = start[0].clone().requires_grad_()
        gains, bias = start[1].clone(), start[2].clone()
        weight, shift = head.weight.detach().clone(), head.bias.detach().clone()
        if fresh:
            generator = torch.Generator().manual_seed(seed)
            shift = torch.zeros_like(shift)
            weight = torch.randn(weight.shape, generator=generator) / WIDTH**0.5
        self.others = [t.requires_grad_() for t in (gains, bias, weight, shift)]
        self.moment = torch.zeros_like(self.q)
        self.second = torch.zeros(len(self.q), 1, 1)
        self.steps = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(batch, 10)``."""
        gains, bias, weight, shift = self.others
        for q, s, b in zip(self.q, gains, bias, strict=True):
            x = (s * (x @ q.mT) + b).relu()
        return x @ weight.mT + shift

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Riemannian Adam, one second moment per matrix; all layers are retracted at once."""
        assert self.q.grad is not None
        self.steps += 1
        gradient = project_tangent(self.q, self.q.grad)
        self.moment = project_tangent(self.q, 0.9 * self.moment + 0.1 * gradient)
        power = gradient.square().mean(dim=(-2, -1), keepdim=True)
        self.second = 0.99 * self.second + 0.01 * power
        scale = (self.second / (1 - 0.99**self.steps)).sqrt() + 1e-12
        move = -rate * self.moment / (1 - 0.9**self.steps) / scale
        self.q.copy_(retract_polar(self.q.detach(), move))
        self.q.grad = None


def fine_tuned(net: Unitary, data: Data, seed: int, epochs: int, rate: float) -> list[float]:
    """Test accuracy before training and after every epoch."""
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(net.others, lr=rate)
    curve = [accuracy(net, data)]
    for _ in range(epochs):
        for chosen in batches(len(data[0]), generator):
            optimizer.zero_grad()
            cross_entropy(net(data[0][chosen]), data[1][chosen]).backward()
            optimizer.step()
            net.step(rate)
        curve.append(accuracy(net, data))
    return curve


@torch.no_grad()
def accuracy(net: Unitary, data: Data) -> float:
    return float((net(data[2]).argmax(1) == data[3]).double().mean())


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    data = digits(seed)
    model, reached = pretrained(options.depth, data, seed, options.pretraining)
    result: dict[str, Any] = {"seed": seed, "pretrained_accuracy": reached, "starts": {}}
    for name, make in STARTS.items():
        begin = time.thread_time()
        start = make(model, data, seed)
        seconds = time.thread_time() - begin
        net = Unitary(start, model, fresh=name == "random unitary", seed=seed)
        curve = fine_tuned(net, data, seed, options.epochs, options.rate)
        epochs = next((k for k, a in enumerate(curve) if a >= options.target), None)
        defect = float(orthogonality_defect(net.q.detach()).max())
        result["starts"][name] = {
            "epochs_to_target": epochs,
            "projection_s": seconds,
            "curve": curve,
            "defect": defect,
        }
        print(seed, name, f"{seconds:.2f} s", epochs, [round(a, 3) for a in curve[:8]], flush=True)
    return result


def reached(curve: list[float], accuracy: float) -> str:
    epochs = next((k for k, a in enumerate(curve) if a >= accuracy), None)
    return "not reached" if epochs is None else str(epochs)


def table(report: dict[str, Any]) -> str:
    runs, target = report["runs"], report["target"]
    lines = [
        f"# Epochs to a fixed test accuracy: {report['depth']} unitary layers, 64 x 64, digits",
        "",
        f"`{report['command']}`; {report['device']}, torch {report['torch']}, 1 thread; one figure "
        "per seed. Accuracy of the pretrained network with batch normalisation: "
        + ", ".join(f"{run['pretrained_accuracy']:.1%}" for run in runs)
        + ".",
        "",
        f"| start | epochs to 90 % | to {target:.0%} | accuracy before any epoch | after 5 | best "
        "| projection, CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in STARTS:
        rows = [run["starts"][name] for run in runs]
        first, second = (", ".join(reached(row["curve"], a) for row in rows) for a in (0.9, target))
        means = [
            statistics.mean(pick(row["curve"]) for row in rows)
            for pick in (lambda c: c[0], lambda c: c[min(5, len(c) - 1)], max)
        ]
        seconds = statistics.median(row["projection_s"] for row in rows)
        lines.append(
            f"| {name} | {first} | {second} | {means[0]:.1%} | {means[1]:.1%} | {means[2]:.1%} "
            f"| {seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    for name in STARTS:
        curves = torch.tensor([run["starts"][name]["curve"] for run in report["runs"]])
        (line,) = axes.plot(curves.mean(0), label=name)
        low, high = curves.min(0).values, curves.max(0).values
        axes.fill_between(range(len(low)), low, high, alpha=0.15, color=line.get_color())
    axes.axhline(report["target"], color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("epochs of normalisation-free unitary training")
    axes.set_ylabel("test accuracy on digits")
    axes.set_title(f"{report['depth']} unitary layers; mean and range of the seeds")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--pretraining", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/uwpa_network"))
    parser.add_argument("--plot", type=Path, default=Path("docs/uwpa_network.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "command": f"python benchmarks/uwpa_network.py --depth {options.depth} "
        f"--seeds {options.seeds} --epochs {options.epochs} --target {options.target}",
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "depth": options.depth,
        "target": options.target,
        "runs": [one_seed(options, seed) for seed in range(options.seeds)],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(report) + "\n")
    options.out.with_suffix(".md").write_text(table(report))
    plot(report, options.plot)


if __name__ == "__main__":
    main()
