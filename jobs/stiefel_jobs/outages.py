"""Tell a database that cannot be reached now from one that refuses what it was asked."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

# SQLSTATEs that say nothing about the statement: a broken connection, a transaction that lost to
# others, too many connections, a server that stops or starts, a primary that has become a standby.
_PASSING = ("08", "40", "53300", "57P0", "25006")
_SQLITE_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED")


def is_outage(error: Exception) -> bool:
    """Say whether the database was out of reach, so that the same request may succeed soon."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    # SQLite has one class of error for a lock that was not given and for a missing table.
    if (sqlite_name := getattr(error.orig, "sqlite_errorname", None)) is not None:
        return str(sqlite_name).startswith(_SQLITE_PASSING)
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_PASSING)
    # Without a state the error is the driver's own: no server has seen the statement.
    return isinstance(error, OperationalError | InterfaceError)
