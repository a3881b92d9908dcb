"""The same results on a GPU as on the CPU. Left out where there is none; ``test_gpu`` says so.

``STIEFEL_TEST_DEVICE=cpu`` runs what does not need CUDA itself on the CPU, to try the tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_DEVICE = os.environ.get("STIEFEL_TEST_DEVICE", "cuda")

if _DEVICE == "cuda" and not torch.cuda.is_available():
    rooms = Path(__file__).parent.glob("test_*.py")
    collect_ignore = [room.name for room in rooms if room.name != "test_gpu.py"]


@pytest.fixture
def device() -> torch.device:
    """The device under test."""
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
