"""``python -m stiefel_worker``: one worker process, until SIGTERM drains it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading

from celery import Celery

from stiefel_jobs.database import migrate
from stiefel_jobs.doorbell import CeleryDoorbell
from stiefel_jobs.settings import Settings
from stiefel_worker import app, children
from stiefel_worker.desk import Desk
from stiefel_worker.shop import Shop
from stiefel_worker.sweeper import Rounds, Sweeper, watch

EXIT_MARGIN_S = 10.0


def main(arguments: list[str] | None = None) -> int:
    """Start and run a worker; returns its exit code after a drain."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # A broker that is a folder has no host, and needs none.
    logging.getLogger("kombu.connection").setLevel(logging.ERROR)
    settings = Settings()
    if settings.embedded:
        migrate(settings.database_url)
    shop = Shop.open(
        settings, queues=tuple(options.queues.split(",")), concurrency=options.concurrency
    )
    desk = Desk(shop)
    celery = app.bind(settings, desk)
    # Everything that needs a secret is built: from here on no process of ours inherits one.
    children.scrub_environment()
    children.start_fork_server()
    serve(desk, celery, settings)
    return 0


def serve(desk: Desk, celery: Celery, settings: Settings) -> None:
    """Run poller, sweeper, watchdog and Celery until drained."""
    poller = Rounds("poller", settings.poll_s, desk.look_aside)
    sweeper = Rounds("sweeper", settings.sweep_s, Sweeper(desk, CeleryDoorbell(settings)))
    watchdog = Rounds("watchdog", 5.0, watch(poller, desk.shop.limits.idle_s))
    for rounds in (poller, sweeper, watchdog):
        rounds.start()
    threading.Thread(target=_leave, args=(desk, settings.drain_s), daemon=True).start()
    logging.getLogger(__name__).info(
        "worker %s looks at %s", desk.shop.worker, ",".join(desk.shop.queues)
    )
    app.run(celery, desk)
    desk.drain()
    desk.join(settings.drain_s + EXIT_MARGIN_S)


def _leave(desk: Desk, drain_s: float) -> None:
    """End the process after a drain even where Celery still waits for a broker that is away."""
    desk.draining.wait()
    desk.join(drain_s + EXIT_MARGIN_S)
    threading.Event().wait(EXIT_MARGIN_S)
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stiefel_worker", description=__doc__)
    parser.add_argument("--queues", default="cpu", help="comma-separated queues (cpu, cuda)")
    parser.add_argument("--concurrency", type=int, default=1, help="jobs at a time")
    parser.add_argument("--log-level", default="info")
    return parser


if __name__ == "__main__":
    sys.exit(main())
