"""Dense oracles and random inputs. Everything here is written the slow, obvious way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

WIDE = [torch.float64, torch.complex128]
ALL = [torch.float32, torch.float64, torch.complex64, torch.complex128]
MAPS = ["tangent", "direct", "cayley"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Draw:
    """Random orthogonal matrices, frames and steps from one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=self.generator)

    def frame(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.linalg.qr(self.normal(*shape, dtype=wide)).Q.to(dtype).contiguous()

    def step(
        self,
        n: int,
        p: int,
        k: int,
        *batch: int,
        size: float = 0.5,
        dtype: torch.dtype = torch.float64,
    ) -> tuple[Tensor, Tensor]:
        """Factors of a step of Frobenius norm ``size``, in the layout that layers hand over."""
        a = self.normal(*batch, k, n, dtype=dtype).mT
        b = self.normal(*batch, k, p, dtype=dtype).mT
        norm = torch.linalg.matrix_norm(a @ b.mH)[..., None, None]
        return a * (size / norm).to(dtype), b


@pytest.fixture
def draw() -> Draw:
    return Draw(0)


def dense_generator(W: Tensor, X: Tensor) -> Tensor:
    return (X @ W.mH - W @ X.mH) / 2


def dense_tangent(W: Tensor, X: Tensor) -> Tensor:
    return torch.linalg.matrix_exp(dense_generator(W, X)) @ W


def dense_cayley(W: Tensor, X: Tensor) -> Tensor:
    S = dense_generator(W, X)
    eye = torch.eye(S.shape[-1], dtype=S.dtype)
    return torch.linalg.solve(eye - S / 2, (eye + S / 2) @ W)


def dense_direct(W: Tensor, X: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(W + X, full_matrices=False)
    return left @ right


ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tangent": dense_tangent,
    "cayley": dense_cayley,
    "direct": dense_direct,
}


@pytest.fixture
def oracle() -> Callable[[str, Tensor, Tensor, Tensor], Tensor]:
    """Return ``oracle(map, W, a, b)``: the dense definition of each map."""

    def result(name: str, W: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return ORACLES[name](W, a @ b.mH)

    return result


def defect(W: Tensor) -> float:
    eye = torch.eye(W.shape[-1], dtype=W.dtype)
    return float(torch.linalg.matrix_norm(W.mH @ W - eye).max())


@pytest.fixture(name="defect")
def defect_fixture() -> Callable[[Tensor], float]:
    return defect
