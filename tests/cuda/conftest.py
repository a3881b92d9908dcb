"""The same results on a GPU as on the CPU. Skipped, with the reason, where there is none.

``STIEFEL_TEST_DEVICE=cpu`` runs what does not need CUDA itself on the CPU, to try the tests.
"""

from __future__ import annotations

import os

import pytest
import torch

_DEVICE = os.environ.get("STIEFEL_TEST_DEVICE", "cuda")


@pytest.fixture
def device() -> torch.device:
    """The device under test."""
    if _DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(_DEVICE)


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """The device under test, which must be a GPU."""
    if device.type != "cuda":
        pytest.skip("needs CUDA itself")
    return device


@pytest.fixture
def generator() -> torch.Generator:
    """On the CPU: every device gets the same numbers."""
    return torch.Generator().manual_seed(0)
