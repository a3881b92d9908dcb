"""Real servers for every room: S3, Redis, PostgreSQL."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from postgres_server import PostgresServer, postgres_server
from redis_server import redis_server
from s3_server import S3Server, s3_server
from stiefel_jobs.blobs import Blobs


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server; make a bucket of your own with ``s3.bucket(name)``."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def s3_blobs(s3: S3Server, tmp_path: Path) -> Blobs:
    """A store in a bucket of its own."""
    return Blobs(
        s3.bucket(f"bucket-{tmp_path.name.lower().replace('_', '-')}") + "/prefix",
        endpoint=s3.endpoint,
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
    )


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of the session's own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; take a migrated database of your own with ``postgres.database()``."""
    # Not below pytest's folder: as root the server runs as another user, and the next session of
    # pytest to start would shut that user out.
    with (
        tempfile.TemporaryDirectory(
            prefix="stiefel-postgres-", ignore_cleanup_errors=True
        ) as folder,
        postgres_server(Path(folder)) as running,
    ):
        yield running
