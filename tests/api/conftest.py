"""Two running services: embedded, and on PostgreSQL, Redis and S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from house import House, running

from postgres_server import PostgresServer
from s3_server import S3Server


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """On SQLite, a folder, and messages in files."""
    with running(tmp_path_factory.mktemp("embedded"), part_bytes=5 * 2**20) as house:
        yield house


@pytest.fixture(scope="session")
def distributed(
    tmp_path_factory: pytest.TempPathFactory,
    postgres: PostgresServer,
    redis_url: str,
    s3: S3Server,
) -> Iterator[House]:
    """On PostgreSQL, Redis and S3."""
    with running(
        tmp_path_factory.mktemp("distributed"),
        database_url=postgres.database(),
        broker_url=redis_url,
        store_url=s3.bucket("api-tests") + "/prefix",
        s3_endpoint=s3.endpoint,
        s3_access_key_id=s3.access_key,
        s3_secret_access_key=s3.secret_key,
        part_bytes=5 * 2**20,
    ) as house:
        yield house


@pytest.fixture(params=["embedded", "distributed"])
def house(request: pytest.FixtureRequest) -> House:
    """Each of the two in turn."""
    found: House = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """A tenant that no other test has."""
    return f"ten_{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def client(house: House, tenant: str) -> Iterator[httpx.Client]:
    """A client with a key of a fresh tenant."""
    with house.client(house.new_key(tenant)) as open_client:
        yield open_client
