from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool

from postgres_server import PostgresServer
from stiefel_jobs.database import Database, normalize
from stiefel_jobs.outages import is_outage


def fault_of(action: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the question
        action()
    return caught.value


def ask(url: str, *statements: str, **options: object) -> None:
    engine = create_engine(normalize(url), **options)
    try:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        engine.dispose()


def test_a_server_that_does_not_answer() -> None:
    assert is_outage(fault_of(lambda: ask("postgresql://u:p@127.0.0.1:1/x", "SELECT 1")))


def test_a_lock_that_sqlite_does_not_give(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with create_engine(url).connect() as holder:
        holder.exec_driver_sql("PRAGMA journal_mode=WAL")
        holder.exec_driver_sql("CREATE TABLE t (x)")
        holder.commit()
        holder.exec_driver_sql("BEGIN IMMEDIATE")
        late = fault_of(lambda: ask(url, "INSERT INTO t VALUES (1)", connect_args={"timeout": 0}))
    assert is_outage(late)


def test_a_pool_that_is_used_up() -> None:
    options = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 0.01}
    engine = create_engine("sqlite://", **options)
    with engine.connect():
        assert is_outage(fault_of(engine.connect))


def test_a_connection_that_the_server_ends(postgres: PostgresServer) -> None:
    end = "SELECT pg_terminate_backend(pg_backend_pid())"
    assert is_outage(fault_of(lambda: ask(postgres.url, end)))


def test_a_primary_that_has_become_a_standby(postgres: PostgresServer) -> None:
    statements = "SET TRANSACTION READ ONLY", "CREATE TABLE t (x int)"
    assert is_outage(fault_of(lambda: ask(postgres.url, *statements)))


@pytest.mark.parametrize(
    "statement",
    ["SELECT * FROM nothing_of_that_name", "SELEC", "INSERT INTO jobs (id) VALUES ('x')"],
)
def test_a_refused_statement_is_no_outage(db: Database, statement: str) -> None:
    def refused() -> None:
        with db.write() as connection:
            connection.execute(text(statement))

    assert not is_outage(fault_of(refused))


def test_other_errors_are_no_outage() -> None:
    assert not is_outage(ValueError("x"))
    assert not is_outage(TimeoutError("of something else"))
