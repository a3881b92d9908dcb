from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, Table, func, inspect, select, text

from postgres_server import PostgresServer
from stiefel_jobs.database import Database, alembic_config, migrate
from stiefel_jobs.store.queries import get_job
from stiefel_jobs.tables import jobs, metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'folder to be made' / 'jobs.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.empty()


def test_the_migrated_schema_is_the_one_in_tables(empty_url: str) -> None:
    migrate(empty_url)
    database = Database(empty_url)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_processes_that_start_at_once_migrate_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [empty_url] * 4))
    database = Database(empty_url)
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == 0
    database.close()


def test_migrations_can_be_undone(empty_url: str) -> None:
    migrate(empty_url)
    database = Database(empty_url)
    with database.write() as connection:
        alembic.command.downgrade(alembic_config(connection), "base")
    with database.read() as connection:
        assert set(inspect(connection).get_table_names()) == {"alembic_version"}
    database.close()


def test_jobs_of_an_older_release_stay(empty_url: str) -> None:
    database = Database(empty_url)
    with database.write() as connection:
        alembic.command.upgrade(alembic_config(connection), "0002")
        values = {"id": "job_1", "tenant": "acme", "method": "m", "queue": "cpu", "state": "queued"}
        older = Table("jobs", MetaData(), autoload_with=connection)
        for column in older.columns:
            if not column.nullable and column.name not in values:
                values[column.name] = "{}" if column.name in ("spec", "inputs", "labels") else 0
        connection.execute(older.insert().values(values))
    migrate(empty_url)
    found = get_job(database, tenant="acme", job_id="job_1")
    assert (found.batch_id, found.custom_id) == (None, None)
    database.close()


def test_a_failing_migration_leaves_nothing_behind(empty_url: str) -> None:
    def upgrade_and_fail() -> None:
        with database.write() as connection:
            alembic.command.upgrade(alembic_config(connection), "head")
            raise RuntimeError("power cut")

    database = Database(empty_url)
    with pytest.raises(RuntimeError, match="power cut"):
        upgrade_and_fail()
    with database.read() as connection:
        assert inspect(connection).get_table_names() == []
    database.close()


def test_the_clock_is_the_databases_and_has_fractions(db: Database) -> None:
    with db.read() as connection:
        times = [connection.execute(select(db.now)).scalar_one() for _ in range(20)]
        reference = connection.execute(
            text("SELECT strftime('%s')" if db.sqlite else "SELECT extract(epoch FROM now())")
        ).scalar_one()
    assert times == sorted(times)
    assert any(time % 1 for time in times)
    assert abs(times[0] - float(reference)) < 2


def test_a_failed_write_is_rolled_back(db: Database) -> None:
    def write_and_fail() -> None:
        with db.write() as connection:
            connection.execute(text("CREATE TABLE leftover (x INTEGER)"))
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed"):
        write_and_fail()
    with db.read() as connection:
        assert "leftover" not in inspect(connection).get_table_names()
