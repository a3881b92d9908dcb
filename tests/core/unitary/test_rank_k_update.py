"""Oracles of the rank-k update: float64 to 1e-12 N, float32 to 1e-5 beside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.unitary.rank_k_update import (
    Products,
    add_product_,
    generator_factors,
    rank_k_update,
    rank_k_update_,
    update_factors,
)

MAPS = ["tangent", "direct", "cayley"]
WIDE = [torch.float64, torch.complex128]
NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64}
ALL = [*WIDE, *NARROW.values()]
N = 24
Oracle = Callable[[str, Tensor, Tensor, Tensor], Tensor]


def distance(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max())


def bound(dtype: torch.dtype, wide: float = 1e-12 * N) -> float:
    """Of the oracles: ``wide`` in double precision, 1e-5 in single."""
    return wide if dtype in WIDE else 1e-5


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize(("n", "p", "k"), [(N, N, 1), (N, N, 2), (N, N, 7), (N, N, N), (40, N, 3)])
def test_equals_its_dense_definition(
    draw: Any, oracle: Oracle, variant: str, dtype: torch.dtype, n: int, p: int, k: int
) -> None:
    """Oracles 1, 2, 3, with both precisions."""
    W = draw.frame(n, p, dtype=dtype)
    a, b = draw.step(n, p, k, dtype=dtype)
    expected = oracle(variant, W, a, b)
    assert distance(rank_k_update(W, a, b, variant=variant), expected) < 1e-12 * n
    low = NARROW[dtype]
    narrow = rank_k_update(W.to(low), a.to(low), b.to(low), variant=variant)
    assert distance(narrow.to(dtype), expected) < 1e-5


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("size", [3.0, 40.0, 3000.0])
def test_tangent_and_cayley_are_exact_for_any_step_size(
    draw: Any, oracle: Oracle, defect: Any, dtype: torch.dtype, size: float
) -> None:
    W = draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, 3, dtype=dtype, size=size)
    for variant in ("tangent", "cayley"):
        moved = rank_k_update(W, a, b, variant=variant)
        assert defect(moved) < bound(dtype) * max(1, size)
        assert distance(moved, oracle(variant, W, a, b)) < bound(dtype) * max(1, size)


def test_direct_near_a_singular_sum_stays_orthogonal(draw: Any, oracle: Oracle) -> None:
    W = draw.frame(N, N)
    b = draw.normal(N, 1)
    b /= b.norm()
    a = -(1 - 1e-3) * (W @ b)  # sigma_min(W + X) = 1e-3
    assert distance(rank_k_update(W, a, b, variant="direct"), oracle("direct", W, a, b)) < 1e-9


def test_tangent_and_direct_differ_by_third_order(draw: Any) -> None:
    """Oracle 4: halving a tangent step divides the difference by 8."""
    W = draw.frame(N, N)
    S = draw.normal(N, 3)
    a = W @ torch.cat((S, draw.normal(N, 3)), -1) / 40
    b = torch.cat((-a[:, 3:], a[:, :3]), -1)
    b = W.mT @ b  # X = W (u v^T - v u^T): tangent
    gaps = []
    for scale in (1.0, 0.5, 0.25):
        t = rank_k_update(W, a * scale, b, variant="tangent")
        gaps.append(float((t - rank_k_update(W, a * scale, b, variant="direct")).norm()))
    assert gaps[0] / gaps[1] == pytest.approx(8, rel=0.05)
    assert gaps[1] / gaps[2] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("dtype", ALL)
def test_only_the_product_of_the_factors_counts(
    draw: Any, variant: str, dtype: torch.dtype
) -> None:
    """Oracle 5, and that scaling the factors against each other changes nothing."""
    W = draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, 4, dtype=dtype)
    T = draw.normal(4, 4, dtype=dtype)
    expected = rank_k_update(W, a, b, variant=variant)
    mixed = rank_k_update(W, a @ T, b @ torch.linalg.inv(T).mH, variant=variant)
    assert distance(mixed, expected) < bound(dtype, 1e-11)
    far = 1e120 if dtype in WIDE else 1e18
    for scale in (1 / far, far):
        assert distance(rank_k_update(W, a * scale, b / scale, variant=variant), expected) < bound(
            dtype
        )


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("size", [1e-18, 1e-12, 1e-6])
@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_small_steps_keep_their_relative_accuracy(
    draw: Any, variant: str, size: float, k: int, dtype: torch.dtype
) -> None:
    """A step far below rounding of W still has the right direction in the correction itself."""
    W = draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, k, size=1.0, dtype=dtype)
    X = a @ b.mH
    left, right = update_factors(W, a * size, b, variant=variant)
    S = X @ W.mT - W @ X.mT
    expected = (
        S @ W / 2 if variant != "direct" else X - W @ (W.mT @ X + X.mT @ W) / 2
    )  # first order of each map
    relative = float((left @ right / size - expected).norm() / expected.norm())
    assert relative < bound(dtype, 1e-12) + 2 * size


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("dtype", ALL)
def test_equivariance(draw: Any, variant: str, dtype: torch.dtype) -> None:
    """Oracle 6."""
    W, Q = draw.frame(N, N, dtype=dtype), draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, 2, dtype=dtype)
    moved = rank_k_update(W, a, b, variant=variant)
    assert distance(rank_k_update(Q @ W, Q @ a, b, variant=variant), Q @ moved) < bound(dtype)
    assert distance(rank_k_update(W @ Q, a, Q.mH @ b, variant=variant), moved @ Q) < bound(dtype)


@pytest.mark.parametrize("dtype", ALL)
def test_the_geodesic_can_be_walked_back(draw: Any, dtype: torch.dtype) -> None:
    """Oracle 7."""
    W = draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, 3, dtype=dtype)
    X = a @ b.mH
    S = (W.mH @ X - X.mH @ W) / 2
    back = rank_k_update(W, a, b) @ torch.linalg.matrix_exp(-S)
    assert distance(back, W) < bound(dtype)


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, *WIDE])
def test_a_zero_step_returns_the_same_bits(draw: Any, variant: str, dtype: torch.dtype) -> None:
    """Oracle 8, batched: the reference returns NaN."""
    W = draw.frame(3, N, N, dtype=dtype)
    a, b = draw.step(N, N, 2, 3, dtype=dtype)
    zero = torch.zeros_like
    for left, right in ((zero(a), b), (a, zero(b)), (zero(a), zero(b))):
        assert torch.equal(rank_k_update(W, left, right, variant=variant), W)
    a[1] = 0
    moved = rank_k_update(W, a, b, variant=variant)
    assert torch.equal(moved[1], W[1])
    assert not torch.equal(moved[0], W[0])


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("dtype", ALL)
def test_degenerate_factors(
    draw: Any, oracle: Oracle, defect: Any, variant: str, dtype: torch.dtype
) -> None:
    """Oracle 8: b parallel to W^H a, repeated columns, deficient rank."""
    W = draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, 1, dtype=dtype)
    parallel = W.mH @ a
    cases = [(a, parallel), (a, parallel + 1e-9 * b)]
    cases.append((torch.cat((a, a, a), -1), torch.cat((b, b, b), -1)))
    cases.append((torch.cat((a, 0 * a), -1), torch.cat((b, b), -1)))
    for left, right in cases:
        moved = rank_k_update(W, left, right, variant=variant)
        assert defect(moved) < bound(dtype)
        assert distance(moved, oracle(variant, W, left, right)) < bound(dtype)


def test_determinant(draw: Any) -> None:
    """Oracle 9: tangent and cayley keep it; direct has the sign of det(W + X)."""
    W = draw.frame(N, N)
    b = draw.normal(N, 1)
    b /= b.norm()
    before = torch.linalg.det(W).sign()
    for size, flips in ((0.5, 1), (1.5, -1)):
        a = -size * (W @ b)  # a reflection once size > 1
        for variant, sign in (("tangent", 1), ("cayley", 1), ("direct", flips)):
            moved = rank_k_update(W, a, b, variant=variant)
            assert torch.linalg.det(moved).sign() == sign * before


@pytest.mark.parametrize("variant", ["tangent", "cayley"])
@pytest.mark.parametrize("dtype", WIDE)
def test_first_order(draw: Any, variant: str, dtype: torch.dtype) -> None:
    """Oracle 10: the velocity at 0 is the tangent projection. Differences need float64."""
    W = draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, 2, dtype=dtype)
    X, G, h = a @ b.mH, draw.normal(N, N, dtype=dtype), 1e-5
    ends = [rank_k_update(W, t * a, b, variant=variant) for t in (h, -h)]
    slope = (G.conj() * (ends[0] - ends[1])).sum().real / (2 * h)
    expected = (G.conj() * (X - W @ X.mH @ W) / 2).sum().real
    assert float(slope) == pytest.approx(float(expected), rel=1e-8)


def test_products_known_from_a_linear_layer(draw: Any, oracle: Oracle) -> None:
    """Oracle 11: W b is the layer's output, W^T a the gradient of its input."""
    weight = draw.frame(N, N, dtype=torch.float32)
    x = draw.normal(5, N, dtype=torch.float32).requires_grad_()
    W = weight.clone().requires_grad_()
    y = torch.nn.functional.linear(x, W)
    delta = draw.normal(5, N, dtype=torch.float32)
    grad_input, grad = torch.autograd.grad(y, (x, W), delta)
    eta = 0.01
    a, b = -eta * delta.mT, x.detach().mT
    known = Products(y.detach().mT, -eta * grad_input.mT)
    moved = rank_k_update(weight, a, b, products=known)
    expected = oracle("tangent", weight.double(), -eta * grad.double(), torch.eye(N).double())
    assert distance(moved.double(), expected) < 1e-5


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("dtype", ALL)
def test_batched_equals_looped_and_in_place_equals_pure(
    draw: Any, variant: str, dtype: torch.dtype
) -> None:
    """Oracle 17, over two leading dimensions and transposed storage."""
    W = draw.frame(2, 3, N, N, dtype=dtype)
    a, b = draw.step(N, N, 2, 2, 3, dtype=dtype)
    moved = rank_k_update(W, a, b, variant=variant)
    for i in range(2):
        for j in range(3):
            alone = rank_k_update(W[i, j], a[i, j], b[i, j], variant=variant)
            assert distance(moved[i, j], alone) < bound(dtype, 1e-13)
    transposed = W.mT.contiguous().mT
    assert not transposed.is_contiguous()
    assert rank_k_update_(transposed, a, b, variant=variant) is transposed
    assert distance(transposed, moved) < bound(dtype, 1e-13)


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
def test_complex_equals_its_real_embedding(draw: Any, variant: str, dtype: torch.dtype) -> None:
    """Oracle 17: z -> [[Re, -Im], [Im, Re]] doubles the rank and commutes with every map."""

    def embed(z: Tensor) -> Tensor:
        return torch.cat((torch.cat((z.real, -z.imag), -1), torch.cat((z.imag, z.real), -1)), -2)

    W = draw.frame(N, N, dtype=dtype)
    a, b = draw.step(N, N, 2, dtype=dtype)
    moved = rank_k_update(W, a, b, variant=variant)
    assert distance(
        rank_k_update(embed(W), embed(a), embed(b), variant=variant), embed(moved)
    ) < bound(dtype)


@pytest.mark.parametrize("variant", MAPS)
@pytest.mark.parametrize("dtype", ALL)
def test_generator_update_equals_its_dense_definition(
    draw: Any, variant: str, dtype: torch.dtype
) -> None:
    W = draw.frame(32, N, dtype=dtype)
    F = draw.normal(32, 6, dtype=dtype) / math.sqrt(32)
    K = draw.normal(6, 6, dtype=dtype)
    K = (K - K.mH) / 2
    S = F @ K @ F.mH
    eye = torch.eye(32, dtype=dtype)
    expected = {
        "tangent": torch.linalg.matrix_exp(S) @ W,
        "cayley": torch.linalg.solve(eye - S / 2, (eye + S / 2) @ W),
        "direct": torch.linalg.solve((S @ W).mH @ (S @ W) + eye[:N, :N], eye[:N, :N]),
    }
    if variant == "direct":
        left, _, right = torch.linalg.svd(W + S @ W, full_matrices=False)
        expected["direct"] = left @ right
    moved = add_product_(W.clone(), *generator_factors(W, F, K, variant=variant))
    if variant == "direct":  # a generator acts on the whole space, so compare the square case
        Q = draw.frame(32, 32, dtype=dtype)
        left, _, right = torch.linalg.svd(Q + S @ Q, full_matrices=False)
        moved = add_product_(Q.clone(), *generator_factors(Q, F, K, variant=variant))
        expected["direct"] = left @ right
    assert distance(moved, expected[variant]) < bound(dtype, 1e-12 * 32)


def test_what_cannot_be_a_step_is_refused(draw: Any) -> None:
    W = draw.frame(N, N)
    a, b = draw.step(N, N, 2)
    with pytest.raises(InvalidInputError, match="n >= p"):
        rank_k_update(W[:4], a[:4], b)
    with pytest.raises(InvalidInputError, match="got"):
        rank_k_update(W, a[:4], b)
    with pytest.raises(InvalidInputError, match="rank 25"):
        rank_k_update(W, *draw.step(N, N, N + 1))
    with pytest.raises(InvalidInputError, match="share a dtype"):
        rank_k_update(W, a.float(), b)
    with pytest.raises(InvalidInputError, match="float16"):
        rank_k_update(W.half(), a.half(), b.half())
    with pytest.raises(InvalidInputError, match="unknown variant"):
        rank_k_update(W, a, b, variant="geodesic")  # type: ignore[arg-type]
