"""The Triton twin agrees with PyTorch and compiles for a GPU, without a GPU.

Runs where triton can be imported (it comes with the CUDA builds of PyTorch, and as a wheel of one
gigabyte for Linux); elsewhere these tests are skipped and say so.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.parametrize("mode", ["interpret", "compile"])
def test_the_triton_twin(mode: str) -> None:
    script = Path(__file__).with_name("triton_agreement.py")
    done = subprocess.run(
        [sys.executable, str(script), mode], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
