"""The Triton kernels against PyTorch in float64, on the GPU itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stiefel.unitary import kernels_cuda
from stiefel.unitary.drift import restore_columns_
from stiefel.unitary.rank_k_update import rank_k_update_, skinny_products

# Tiles are 16 or 128 by 64 or 256: whole ones, rests, one matrix, stacks, tall, padded ranks.
CASES: list[tuple[tuple[int, ...], int]] = [
    ((64, 64), 1),
    ((700, 300), 2),
    ((3, 130, 65), 3),
    ((2, 257, 257), 8),
    ((6, 6), 1),
]
# The direct step of a tall frame is PyTorch's.
STEPS = [
    (shape, k, variant)
    for shape, k in CASES
    for variant in ("tangent", "direct", "cayley")
    if variant != "direct" or shape[-1] == shape[-2]
]


@pytest.fixture(autouse=True)
def _fused(gpu: torch.device) -> None:
    pytest.importorskip("triton", reason="triton is not installed")


def drawn(shape: tuple[int, ...], k: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    W = torch.linalg.qr(torch.randn(shape, generator=generator)).Q.contiguous()
    a = torch.randn(*shape[:-1], k, generator=generator) * (0.3 / shape[-2])
    b = torch.randn(*shape[:-2], k, shape[-1], generator=generator).mT
    return W.cuda(), a.cuda(), b.cuda()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("columns", [range(0), range(2, 3), range(2, 5)], ids=len)
@pytest.mark.parametrize(("shape", "k", "variant"), STEPS)
def test_a_step_is_the_one_of_float64(
    shape: tuple[int, ...],
    k: int,
    variant: Any,
    columns: range,
    known: bool,
    generator: torch.Generator,
) -> None:
    W, a, b = drawn(shape, k, generator)
    assert kernels_cuda.supports(W, k, variant)
    exact, residual = W.double(), None
    if len(columns) == 1:
        residual = restore_columns_(exact, columns)
    rank_k_update_(exact, a.double(), b.double(), variant=variant)
    if len(columns) > 1:
        residual = restore_columns_(exact, columns)
    products = skinny_products(W, a, b) if known else None
    found = kernels_cuda.step_(W, a, b, variant=variant, columns=columns, products=products)
    assert float((exact - W).abs().max()) < 3e-6
    if residual is None:
        assert found is None
    else:
        assert found is not None
        assert float((residual - found).abs().max()) < 3e-6


def test_equal_inputs_give_equal_bits(generator: torch.Generator) -> None:
    W, a, b = drawn((2, 300, 300), 5, generator)
    first, second = W.clone(), W.clone()
    for each in (first, second):
        kernels_cuda.step_(each, a, b, columns=range(7, 8))
    assert torch.equal(first, second)


def test_a_step_can_be_part_of_a_graph(generator: torch.Generator) -> None:
    W, a, b = drawn((256, 256), 4, generator)
    eager = W.clone()
    for _ in range(3):
        kernels_cuda.step_(eager, a, b, columns=range(1))
    kernels_cuda.step_(W.clone(), a, b, columns=range(1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernels_cuda.step_(W, a, b, columns=range(1))
    for _ in range(3):
        graph.replay()
    assert torch.equal(W, eager)


def test_drift_stays_where_float32_puts_it(generator: torch.Generator) -> None:
    W, a, b = drawn((128, 128), 1, generator)
    for index in range(4000):
        column = index % 128
        kernels_cuda.step_(W, a, b, columns=range(column, column + 1))
    eye = torch.eye(128, device="cuda")
    assert float(torch.linalg.matrix_norm(W.T @ W - eye)) < 2e-6 * 128**0.5
