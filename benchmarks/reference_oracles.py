"""Which correctness oracles the authors' code fails, and ours beside it.

    python benchmarks/reference_oracles.py --reference PATH

Each row: one oracle, the authors' figure, ours, and the bound a correct implementation meets.
"""

from __future__ import annotations

import argparse
import importlib
import math
import warnings
from typing import Any

import torch
from side_by_side import REFERENCE_HELP, reference, write
from torch import Tensor

from stiefel.unitary import FourierConv2d, ProjUNN, manifold_parameters, rank_k_update
from stiefel.unitary.gradients import column_sampling, lsi
from stiefel.unitary.initialisation import haar_

N = 64


def frame(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return haar_(torch.empty(*shape, dtype=dtype), generator=torch.Generator().manual_seed(0))


def step(k: int, *batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(*batch, N, k, dtype=dtype, generator=generator)
    b = torch.randn(*batch, N, k, dtype=dtype, generator=generator)
    return a * (0.5 / torch.linalg.matrix_norm(a @ b.mH)[..., None, None]), b


def tangent(W: Tensor, X: Tensor) -> Tensor:
    return W @ torch.linalg.matrix_exp((W.mH @ X - X.mH @ W) / 2)


def direct(W: Tensor, X: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(W + X)
    return left @ right


def defect(W: Tensor) -> float:
    eye = torch.eye(W.shape[-1], dtype=W.dtype)
    return float(torch.linalg.matrix_norm(W.mH @ W - eye).max())


def updates(authors: Any) -> list[dict[str, Any]]:
    rows = []
    W, (a, b) = frame(N, N), step(1)
    for name, theirs, oracle in (
        ("tangent", authors.projUNN_T, tangent),
        ("direct", authors.projUNN_D, direct),
    ):
        expected = oracle(W, a @ b.mH)
        rows.append(
            row(
                f"{name}, k=1, float64: error",
                float((theirs(W, a.clone(), b.clone()) - expected).norm()),
                float((rank_k_update(W, a, b, variant=name) - expected).norm()),
                1e-12 * N,
            )
        )
    W, (a, b) = W.float(), tuple(x.float() for x in (a, b))
    unit, other = a / a.norm(), b / b.norm()
    a = unit / 2
    near = [gap * other - W.mT @ unit for gap in (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)]
    rows.append(
        row(
            "direct, b parallel or nearly so to W^T a: largest defect",
            max(defect(authors.projUNN_D(W, a.clone(), x.clone()).double()) for x in near),
            max(defect(rank_k_update(W, a, x, variant="direct").double()) for x in near),
            1e-5,
        )
    )
    W3, zero = frame(3, N, N, dtype=torch.float32), torch.zeros(3, N, 1)
    rows.append(
        row(
            "batched zero step: defect",
            defect(authors.projUNN_T(W3, zero.clone(), zero.clone()).double()),
            defect(rank_k_update(W3, zero, zero).double()),
            1e-5,
        )
    )
    return rows


def sketches(authors: Any) -> list[dict[str, Any]]:
    rows = []
    a, b = step(8, dtype=torch.float32)
    X = (a @ b.mT) / 0.5
    generator = torch.Generator().manual_seed(2)
    for size in (1e-3, 1e-5):
        left, right = authors.LSI_approximation(X * size, 8)
        mine = lsi(X * size, 8, generator=generator)
        error = float((left @ right.mT / size - X).norm())
        ours = float((mine.a @ mine.b.mT / size - X).norm())
        rows.append(row(f"LSI of a rank-8 step of size {size:g}, k=8: error", error, ours, 1e-5))
    U, V = frame(N, N), frame(N, N).mT
    G = U @ torch.diag(0.8 ** torch.arange(N, dtype=torch.float64)) @ V
    torch.manual_seed(0)
    left, right = authors.column_sampling_approximation(G, 4, c=32)
    mine = column_sampling(G, 4, generator=generator, samples=32)
    best = float((0.8 ** torch.arange(4, N, dtype=torch.float64)).norm())
    rows.append(
        row(
            "column sampling, 32 samples, k=4: error over the best",
            float((G - left @ right.mT).norm()) / best,
            float((G - mine.a @ mine.b.mT).norm()) / best,
            1.5,
        )
    )
    return rows


def convolution(authors: Any) -> dict[str, Any]:
    layers = importlib.import_module("projunn.layers")
    optimizers = importlib.import_module("projunn.optimizers")
    torch.manual_seed(0)
    theirs = layers.FullWidthConv2d(3, 3, 6, bias=False)

    def project(parameter: Tensor, update: Tensor) -> Tensor:
        a, b = authors.LSI_approximation(update, 1)
        moved: Tensor = authors.projUNN_T(parameter, a, b, project_on=False)
        return moved

    train(theirs, optimizers.RMSprop(theirs.parameters(), projector=project, lr=1e-2))
    ours = FourierConv2d(3, 3, (6, 6))
    train(ours, ProjUNN(manifold_parameters(ours), lr=1e-2, scaling="rmsprop"))
    return row(
        "real convolution after 200 RMSprop steps: largest deviation of a singular value from 1",
        deviation(theirs),
        deviation(ours),
        1e-5,
    )


def train(layer: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 3, 6, 6, generator=generator)
    target = torch.randn(8, 3, 6, 6, generator=generator)
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()


def deviation(layer: torch.nn.Module) -> float:
    basis = torch.eye(108).view(108, 3, 6, 6)
    with torch.no_grad():
        values = torch.linalg.svdvals(layer(basis).flatten(1))
    return float((values - 1).abs().max())


def row(oracle: str, theirs: float, ours: float, bound: float) -> dict[str, Any]:
    passes = [
        "pass" if math.isfinite(value) and value <= bound else "FAIL" for value in (theirs, ours)
    ]
    found: dict[str, Any] = {"oracle": oracle, "authors": theirs, "authors pass": passes[0]}
    return found | {"ours": ours, "ours pass": passes[1], "bound": bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", required=True, help=REFERENCE_HELP)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    authors = reference(options.reference)
    rows = [*updates(authors), *sketches(authors), convolution(authors)]
    write("reference_oracles", title="Oracles that the authors' code fails", rows=rows)


if __name__ == "__main__":
    main()
