from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from certified_files import Certified, make_certified


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    return make_certified(tmp_path)
