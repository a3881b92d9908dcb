"""Every kernel takes the same step; the fused one also restores columns."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from stiefel.unitary import kernels_cpu, kernels_cuda
from stiefel.unitary.drift import (
    estimated_defect,
    next_columns,
    restore_columns_,
)
from stiefel.unitary.rank_k_update import Products, rank_k_update
from stiefel.unitary.stepping import step_

ALL = [torch.float32, torch.float64, torch.complex64, torch.complex128]
MAPS = ["tangent", "direct", "cayley"]
TOLERANCE = {
    torch.float32: 3e-6,
    torch.complex64: 3e-6,
    torch.float64: 1e-12,
    torch.complex128: 1e-12,
}


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize(("n", "p", "batch"), [(37, 37, 3), (50, 30, 1), (600, 515, 1)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_fused_equals_eager(
    draw: Any, dtype: torch.dtype, variant: Any, n: int, p: int, batch: int, k: int
) -> None:
    W = draw.frame(batch, n, p, dtype=dtype)
    a, b = draw.step(n, p, k, batch, size=0.3, dtype=dtype)
    expected = rank_k_update(W, a, b, variant=variant)
    moved = W.clone()
    assert kernels_cpu.step_(moved, a, b, variant=variant) is None
    assert float((moved - expected).abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ALL)
def test_threads_only_change_rounding_and_repeat_bit_for_bit(draw: Any, dtype: torch.dtype) -> None:
    W = draw.frame(200, 200, dtype=dtype)
    a, b = draw.step(200, 200, 3, size=0.3, dtype=dtype)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        moved = W.clone()
        kernels_cpu.step_(moved, a, b, columns=range(5, 7))
        results.append(moved)
    assert float((results[0] - results[1]).abs().max()) < TOLERANCE[dtype]
    assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("columns", [range(0, 1), range(3, 7), range(29, 30)])
@pytest.mark.parametrize("variant", MAPS)
def test_fused_drift_control_equals_eager(
    draw: Any, dtype: torch.dtype, columns: range, variant: Any
) -> None:
    """Columns first, then the step, with W visibly off the manifold; known products or not."""
    W = draw.frame(2, 41, 30, dtype=dtype) + 1e-3 * draw.normal(2, 41, 30, dtype=dtype)
    a, b = draw.step(41, 30, 2, 2, size=0.1, dtype=dtype)
    restored = W.clone()
    residual = restore_columns_(restored, columns)
    expected = rank_k_update(restored, a, b, variant=variant)
    for products in (None, Products(W @ b, W.mH @ a)):
        moved = W.clone()
        fused = kernels_cpu.step_(moved, a, b, variant=variant, products=products, columns=columns)
        assert fused is not None
        assert float((fused - residual).abs().max()) < TOLERANCE[dtype]
        assert float((moved - expected).abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ALL)
def test_fused_drift_control_without_a_step(draw: Any, dtype: torch.dtype) -> None:
    W = draw.frame(2, 41, 30, dtype=dtype) + 1e-3 * draw.normal(2, 41, 30, dtype=dtype)
    eager, fused = W.clone(), W.clone()
    residual = restore_columns_(eager, range(3, 5))
    difference = kernels_cpu.restore_columns_(fused, range(3, 5)) - residual
    assert float(difference.abs().max()) < TOLERANCE[dtype]
    assert float((fused - eager).abs().max()) < TOLERANCE[dtype]
    assert fused._version > 0  # torch knows that it changed


@pytest.mark.parametrize("variant", MAPS)
def test_known_products_are_used(draw: Any, variant: Any) -> None:
    W = draw.frame(64, 64)
    a, b = draw.step(64, 64, 4)
    known = Products(W @ b, W.mH @ a)
    moved, plain = W.clone(), W.clone()
    step_(moved, a, b, variant=variant, products=known)
    step_(plain, a, b, variant=variant)
    assert torch.allclose(moved, plain, atol=1e-13)


def test_a_zero_step_leaves_the_same_bits_in_the_fused_kernel(draw: Any) -> None:
    W = draw.frame(3, 33, 33, dtype=torch.float32)
    a, b = draw.step(33, 33, 2, 3, dtype=torch.float32)
    moved = W.clone()
    kernels_cpu.step_(moved, torch.zeros_like(a), b)
    assert torch.equal(moved, W)


@pytest.mark.parametrize("variant", MAPS)
def test_a_nan_in_one_matrix_does_not_reach_the_next(draw: Any, variant: Any) -> None:
    W = draw.frame(3, 33, 33)
    a, b = draw.step(33, 33, 2, 3)
    expected = rank_k_update(W, a, b, variant=variant)
    a[0, 0, 0] = torch.nan
    kernels_cpu.step_(W, a, b, variant=variant)
    assert bool(W[0].isnan().any())
    assert torch.allclose(W[1:], expected[1:], atol=1e-12)


def test_what_the_fused_kernel_leaves_to_eager(draw: Any) -> None:
    W = draw.frame(40, 40)
    assert kernels_cpu.supports(W, 16)
    assert not kernels_cpu.supports(W, 17)
    assert not kernels_cpu.supports(W.mT, 1)
    assert not kernels_cuda.supports(W, 1)
    a, b = draw.step(40, 40, 20)
    for start in (W, W.mT.contiguous().mT):
        moved = start.clone(memory_format=torch.preserve_format)
        residual = step_(moved, a, b, columns=range(0, 2))
        assert residual is not None
        assert residual.shape == (40, 2)
        assert torch.allclose(moved, rank_k_update(W, a, b), atol=1e-12)


def test_the_defect_is_read_from_the_residual(draw: Any) -> None:
    W = draw.frame(64, 64) + 1e-4 * draw.normal(64, 64)
    exact = float(torch.linalg.matrix_norm(W.mT @ W - torch.eye(64)))
    estimates = []
    for start in range(0, 64, 4):
        residual = restore_columns_(W.clone(), range(start, start + 4))
        estimates.append(float(estimated_defect(residual)))
    mean = math.sqrt(sum(e * e for e in estimates) / len(estimates))
    assert mean == pytest.approx(exact, rel=1e-6)
    assert max(estimates) < 2 * exact


def test_the_cycle_visits_every_column() -> None:
    cursor, seen = 0, []
    for _ in range(4):
        columns = next_columns(cursor, width=3, p=10)
        seen += list(columns)
        cursor = columns.stop % 10
    assert seen == list(range(10))


@pytest.mark.parametrize("variant", ["tangent", "direct"])
@pytest.mark.parametrize("size", [0.02, 0.3])
def test_drift_stays_flat(draw: Any, defect: Any, variant: Any, size: float) -> None:
    """A short soak; benchmarks/drift.py takes 20,000 steps."""
    n = 48
    W = draw.frame(n, n, dtype=torch.float32)
    for index in range(1500):
        a, b = draw.step(n, n, 1, size=size, dtype=torch.float32)
        step_(W, a, b, variant=variant, columns=range(index % n, index % n + 1))
    assert defect(W.double()) < 2e-6 * math.sqrt(n)


def test_importing_the_package_starts_nothing() -> None:
    """A fork server imports it: no numba, no thread, until a step asks."""
    code = (
        "import stiefel.unitary, sys, threading; "
        "assert 'numba' not in sys.modules; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
