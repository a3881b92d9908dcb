"""Accuracy against parameters saved: LeNet5 on MNIST, one training run per point.

    python benchmarks/lenet_frontier.py --data DIR [--tolerances 0.2 0.3] [--seeds 0]

The network is that of the method's authors: 20 and 50 kernels of 5 x 5, then 800 - 500 - 10. Both
convolutions and the wide layer are low-rank. Shares count weights of the whole network, biases
aside, with U S merged. Pooling comes before the ReLU, which is the same function and cheaper.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from frontier import Recipe, Results, load_images, saved_share, train
from torch import Tensor, nn

from stiefel.lowrank import to_low_rank

DENSE_WEIGHTS = 20 * 25 + 50 * 500 + 800 * 500 + 500 * 10
RANKS = {"0": 8, "3": 12, "7": 32}


def build(generator: torch.Generator) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = layer.weight[0].numel() ** -0.5
                for parameter in layer.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
    return to_low_rank(net, RANKS, keep_norm=True, evaluation="auto").model


def images(batch: Tensor) -> Tensor:
    """Channels last, said by the strides: with one channel both layouts hold the same numbers."""
    height, width = batch.shape[-2:]
    return batch.contiguous().as_strided(batch.shape, (height * width, 1, width, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.15, 0.2, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="add the points --out lacks")
    Recipe.add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe.from_arguments(args)
    data = load_images(args.data)
    results = Results(args.out, {"recipe": recipe.__dict__, "ranks": RANKS}, append=args.append)
    for seed in args.seeds:
        for tolerance in args.tolerances:
            if (tolerance, seed) in results:
                continue
            generator = torch.Generator().manual_seed(seed)
            net = build(generator)
            started = time.perf_counter()
            result = train(
                net, data, recipe, tolerance=tolerance, generator=generator, shape=images
            )
            run = {
                "tolerance": tolerance,
                "seed": seed,
                "accuracy": result.accuracy,
                "saved": round(saved_share(net, DENSE_WEIGHTS), 3),
                "ranks": result.ranks,
                "seconds": round(time.perf_counter() - started, 1),
            }
            results.add(run)


if __name__ == "__main__":
    main()
