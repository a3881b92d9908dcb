from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from certified_files import Certified, make_certified
from stub_service import StubService, stub_service

from stiefel_client import RetryPolicy, Stiefel

QUICK = RetryPolicy(attempts=3, first=0.01, longest=0.02, patience=5.0)


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    return make_certified(tmp_path)


@pytest.fixture(autouse=True)
def own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's own service or key."""
    for name in ("STIEFEL_URL", "STIEFEL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STIEFEL_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def service() -> Iterator[StubService]:
    with stub_service() as running:
        yield running


@pytest.fixture
def client(service: StubService) -> Iterator[Stiefel]:
    with Stiefel(service.url, "stf_test_key", retry=QUICK) as connected:
        yield connected
