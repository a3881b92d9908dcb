from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from stiefel.lowrank.steps import Factors


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def dtype() -> torch.dtype:
    """Of what ``normal`` and ``factors`` draw; a module may ask for several."""
    return torch.float64


@pytest.fixture
def normal(generator: torch.Generator, dtype: torch.dtype) -> Callable[..., Tensor]:
    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture
def factors(normal: Callable[..., Tensor]) -> Callable[..., Factors]:
    def build(n: int, m: int, r: int) -> Factors:
        left = torch.linalg.qr(normal(n, r)).Q
        right = torch.linalg.qr(normal(m, r)).Q
        return Factors(left, normal(r, r), right)

    return build
