"""Whether this folder runs at all."""

from __future__ import annotations

import pytest
import torch


def test_a_gpu_computes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: tests/cuda is left out")
    assert float(torch.ones(3, device="cuda").sum()) == 3
