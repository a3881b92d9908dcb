"""``python -m stiefel_api``: serve; or ``migrate``, ``openapi``, ``create-key``, ``collect``."""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn

from stiefel_api.app import create_app
from stiefel_api.security import DEFAULT_TENANT
from stiefel_api.waiting import Waiters
from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database, migrate
from stiefel_jobs.settings import Settings
from stiefel_jobs.store import keys
from stiefel_jobs.store.garbage import collect_garbage

KEY_FILE = "api_key"


def main() -> int:
    """Run the command on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stiefel_api", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve", help="serve HTTP (the default)")
    commands.add_parser("migrate", help="bring the database's schema up to date")
    commands.add_parser("openapi", help="print the OpenAPI document")
    commands.add_parser("collect", help="collect garbage now")
    create = commands.add_parser("create-key", help="create a key and print its secret")
    create.add_argument("--tenant", default=DEFAULT_TENANT)
    create.add_argument("--name", default="command line")
    create.add_argument("--scope", action="append", choices=keys.SCOPES)
    options = parser.parse_args()
    settings = Settings()
    if options.command == "migrate":
        migrate(settings.database_url)
    elif options.command == "openapi":
        _say(json.dumps(create_app(settings).openapi(), indent=2, sort_keys=True))
    elif options.command == "collect":
        collect_garbage(Database(settings.database_url), Blobs.of(settings))
    elif options.command == "create-key":
        db = Database(settings.database_url)
        scopes = options.scope or keys.SCOPES
        _, secret = keys.create_key(db, tenant=options.tenant, name=options.name, scopes=scopes)
        _say(secret)
    else:
        return serve(settings)
    return 0


def serve(settings: Settings) -> int:
    """Serve until told to stop; return 2 when it would be unsafe to begin."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # A filesystem broker has no host, which is worth no warning.
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)
    if settings.embedded:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        migrate(settings.database_url)
        _ensure_first_key(settings)
    if reason := _unsafe(settings):
        sys.stderr.write(f"stiefel: {reason}\n")
        return 2
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        http="h11",  # the other parser, where installed, puts no bound on the size of headers
        h11_max_incomplete_event_size=64 * 1024,
        log_config=None,
    )
    _Server(config, app.state.service.waiters).run()
    return 0


class _Server(uvicorn.Server):
    """Ends held answers before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, waiters: Waiters) -> None:
        super().__init__(config)
        self._waiters = waiters

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._waiters.release()
        await super().shutdown(sockets)


def _unsafe(settings: Settings) -> str | None:
    """Say why this may not be served; None when it may."""
    if _is_loopback(settings.api_host):
        return None
    if settings.insecure:
        return f"keys are switched off, so {settings.api_host} would be open to everyone"
    if not keys.any_key(Database(settings.database_url)):
        return (
            f"no API key exists, so nobody could use {settings.api_host}: "
            "run python -m stiefel_api create-key first"
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ensure_first_key(settings: Settings) -> None:
    """Create the key of an embedded service, for its owner's eyes only, and show it once.

    A key file is left alone while its database knows any key, even if all are revoked: somebody
    wanted that. Beside a database without one it opens nothing, so it gives way.
    """
    path = settings.data_dir / KEY_FILE
    db = Database(settings.database_url)
    try:
        if keys.any_key(db) or (path.exists() and keys.list_keys(db, tenant=DEFAULT_TENANT)):
            return
        _, secret = keys.create_key(db, tenant=DEFAULT_TENANT, name="first", scopes=keys.SCOPES)
    finally:
        db.close()
    if path.exists():
        old = path.replace(path.with_name(f"{KEY_FILE}.old"))
        _say(f"The key in {path} was of another database; it is in {old} now.")
    _write_private(path, secret)
    _say(f"API key (also in {path}): {secret}")


def _write_private(path: Path, text: str) -> None:
    """Write a file that nobody else could read at any moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
