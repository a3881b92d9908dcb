"""One engine over SQLite or PostgreSQL, its clock, and its migrations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, Double, Engine, create_engine, event, literal_column, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.sql.elements import ColumnElement

# SQLite 3.40 lacks unixepoch('subsec'); a Julian day as a double resolves 40 microseconds.
_SQLITE_NOW = "((julianday('now') - 2440587.5) * 86400.0)"
_POSTGRES_NOW = "extract(epoch from clock_timestamp())::double precision"
_BUSY_MS = 30_000
_IDLE_MS = 10_000
_MIGRATION_LOCK = 0x5721EFE1


class Database:
    """A pool of connections that reads snapshots and writes one transaction at a time.

    Args:
        url: ``sqlite:////path/to/file`` or ``postgresql://user:password@host/name``.

    ``now`` is the database's own clock, in float seconds since 1970, as an SQL expression: no
    machine's wall clock ever decides over a lease.
    """

    def __init__(self, url: str) -> None:
        self.url = normalize(url)
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.sqlite else _postgres_engine(self.url)
        expression = _SQLITE_NOW if self.sqlite else _POSTGRES_NOW
        self.now: ColumnElement[float] = literal_column(expression, Double)
        # SQLite has one writer at a time and polls for its turn; threads queue up fairly instead.
        self._turn: AbstractContextManager[Any] = threading.Lock() if self.sqlite else nullcontext()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read-only transaction; nothing in it is committed."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits on leaving, or rolls back on an exception."""
        with self._turn, self.engine.connect() as connection:
            connection.execution_options(stiefel_write=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def normalize(url: str) -> URL:
    """Return the URL with the driver filled in: psycopg 3 for PostgreSQL."""
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _postgres_engine(url: URL) -> Engine:
    # Pre-ping: a restarted server costs a reconnect, not a failed request.
    engine = create_engine(url, pool_size=10, max_overflow=20, pool_pre_ping=True)
    event.listen(engine, "connect", _limit_idleness)
    return engine


def _limit_idleness(connection: Any, _record: Any) -> None:
    """Let the server drop a transaction whose process is frozen or whose host is gone.

    Its locks would keep everybody else from taking over the job.
    """
    connection.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MS}")
    connection.commit()


def _sqlite_engine(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=10, max_overflow=20)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin late and without IMMEDIATE
    for pragma in (
        f"busy_timeout={_BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("stiefel_write", False)
    # A transaction that upgrades from reading to writing can fail at once: take the lock first.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def migrate(url: str) -> None:
    """Bring the schema up to date; safe to call from several processes at once."""
    database = Database(url)
    try:
        with database.write() as connection:
            if not database.sqlite:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            alembic.command.upgrade(alembic_config(connection), "head")
    finally:
        database.close()


def alembic_config(connection: Connection) -> alembic.config.Config:
    """Return the migration settings bound to an open transaction."""
    config = alembic.config.Config()
    config.set_main_option("script_location", "stiefel_jobs:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
