"""A migrated database of each kind, a clock that tests may set forward, and a yard of jobs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

sys.path.insert(0, str(Path(__file__).parent))

from yard import Yard

from postgres_server import PostgresServer
from stiefel_jobs.database import Database, migrate
from stiefel_jobs.tables import metadata


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_database(postgres: PostgresServer) -> Iterator[Database]:
    """One database for all tests: emptying it is far cheaper than making another."""
    url = postgres.database()
    database = Database(url)
    yield database
    database.close()
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty, migrated database of each kind."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "jobs.db")
        database = Database(f"sqlite:///{tmp_path / 'jobs.db'}")
        yield database
        database.close()
        return
    database = request.getfixturevalue("postgres_database")
    clock = database.now
    yield database
    database.now = clock
    with database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))


@pytest.fixture
def yard(db: Database) -> Yard:
    return Yard(db)
