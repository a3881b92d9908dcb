"""``python -m stiefel_worker``: one worker process, until SIGTERM drains it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from stiefel_jobs.database import migrate
from stiefel_jobs.doorbell import CeleryDoorbell
from stiefel_jobs.settings import Settings
from stiefel_jobs.store.workers import forget_worker
from stiefel_worker import app, children
from stiefel_worker.desk import Desk
from stiefel_worker.shop import Shop, private_folders
from stiefel_worker.sweeper import Rounds, Sweeper, watch

DRAIN_MARGIN_S = 10.0  # for killing and handing back what reached no safe point
CELERY_S = 0.5  # Celery's own goodbye to the broker; it can take forever when that is away
log = logging.getLogger("stiefel_worker")


def main(arguments: list[str] | None = None) -> int:
    """Start and run a worker; returns its exit code after a drain."""
    options = _parser().parse_args(arguments)
    _log_to_stderr(options.log_level)
    settings = Settings()
    if options.check:
        print(json.dumps(_rehearse(settings), indent=2))  # noqa: T201 - its purpose
        return 0
    if settings.embedded:
        migrate(settings.database_url)
    shop = Shop.open(
        settings, queues=tuple(options.queues.split(",")), concurrency=options.concurrency
    )
    desk = Desk(shop)
    celery = app.bind(settings, desk)
    # Everything that needs a secret is built: from here on no process of ours inherits one.
    report = _rehearse(settings)
    log.info("methods: %s", ", ".join(report["methods"]))
    for gap in report["gaps"]:
        log.warning("jobs are less confined here: %s", gap)
    serve(desk, celery, settings)
    return 0


def serve(desk: Desk, celery: Celery, settings: Settings) -> None:
    """Run poller, sweeper, watchdog and Celery until drained."""
    # The poller may find a job before Celery has handlers of its own, which then take over.
    signal.signal(signal.SIGTERM, lambda *_: desk.drain())
    poller = Rounds("poller", settings.poll_s, desk.look_aside)
    sweeper = Rounds("sweeper", settings.sweep_s, Sweeper(desk, CeleryDoorbell(settings)))
    watchdog = Rounds("watchdog", 5.0, watch(poller, desk.shop.limits.idle_s))
    for rounds in (poller, sweeper, watchdog):
        rounds.start()
    threading.Thread(target=_leave, args=(desk, settings.drain_s), daemon=True).start()
    log.info("worker %s looks at %s", desk.shop.worker, ", ".join(desk.shop.queues))
    app.run(celery, desk)
    desk.drain()
    desk.join(settings.drain_s + DRAIN_MARGIN_S)


def _rehearse(settings: Settings) -> dict[str, Any]:
    children.scrub_environment()
    with tempfile.TemporaryDirectory(prefix="stiefel-") as scratch:
        return children.warm_up(Path(scratch), private_folders(settings))


def _leave(desk: Desk, drain_s: float) -> None:
    """End the process once nothing runs here, though Celery may still wait for its broker."""
    desk.draining.wait()
    if not desk.join(drain_s + DRAIN_MARGIN_S):
        log.error("jobs did not let go in time, their leases will run out")
    with suppress(SQLAlchemyError):
        forget_worker(desk.shop.db, worker=desk.shop.worker)
    time.sleep(CELERY_S)
    os._exit(0)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("alembic", "celery", "kombu"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # A broker that is a folder has no host, and needs none.
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stiefel_worker", description=__doc__)
    parser.add_argument("--queues", default="cpu", help="comma-separated queues (cpu, cuda)")
    parser.add_argument("--concurrency", type=int, default=1, help="jobs at a time")
    parser.add_argument("--log-level", default="info")
    parser.add_argument(
        "--check", action="store_true", help="rehearse a child process, print its report, and end"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
