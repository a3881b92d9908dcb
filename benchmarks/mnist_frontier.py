"""Accuracy against parameters saved: 5-layer MLP of width 500 on MNIST, one run per point.

    python benchmarks/mnist_frontier.py --data DIR [--tolerances 0.05 0.1] [--seeds 0 1 2]

DIR holds train.parquet and test.parquet (columns image.bytes, label). Each point is one training
run from scratch with variant A; no fine-tuning follows. Test accuracy is that of the last epoch:
nothing is selected on the test set.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from frontier import Recipe, Results, load_images, saved_share, train
from torch import Tensor, nn

DENSE_WEIGHTS = 784 * 500 + 3 * 500 * 500 + 500 * 10


def build(rank: int, generator: torch.Generator) -> nn.Sequential:
    from stiefel.lowrank import LowRankLinear

    sizes = [784, 500, 500, 500, 500]
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(sizes):
        layers += [LowRankLinear(m, n, rank, generator=generator), nn.ReLU()]
    head = nn.Linear(500, 10)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.uniform_(-(500**-0.5), 500**-0.5, generator=generator)
    return nn.Sequential(*layers, head)


def build_dense(generator: torch.Generator) -> nn.Sequential:
    sizes = [784, 500, 500, 500, 500, 10]
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(sizes):
        layer = nn.Linear(m, n)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-(m**-0.5), m**-0.5, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def flat(images: Tensor) -> Tensor:
    return images.reshape(len(images), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.05, 0.09, 0.1, 0.15, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rank", type=int, default=100)
    parser.add_argument("--dense", action="store_true", help="also train the dense network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="add the points --out lacks")
    Recipe.add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe.from_arguments(args)
    data = load_images(args.data)
    results = Results(args.out, {"recipe": recipe.__dict__, "rank": args.rank}, append=args.append)
    points = [(tau, seed) for seed in args.seeds for tau in args.tolerances]
    points += [(None, seed) for seed in args.seeds] if args.dense else []
    for tau, seed in points:
        if (tau, seed) in results:
            continue
        generator = torch.Generator().manual_seed(seed)
        network = build_dense(generator) if tau is None else build(args.rank, generator)
        started = time.perf_counter()
        result = train(network, data, recipe, tolerance=tau, generator=generator, shape=flat)
        run = {
            "tolerance": tau,
            "seed": seed,
            "accuracy": result.accuracy,
            "saved": round(saved_share(network, DENSE_WEIGHTS), 3),
            "ranks": result.ranks,
            "seconds": round(time.perf_counter() - started, 1),
        }
        results.add(run)


if __name__ == "__main__":
    main()
