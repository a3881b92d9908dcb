"""The Celery side of a worker: one task, which means "look now" and carries nothing to trust."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_shutting_down
from kombu.asynchronous import set_event_loop

from stiefel_jobs.doorbell import LOOK, celery_options
from stiefel_jobs.settings import Settings
from stiefel_worker.desk import Desk

_RESTART_S, _RESTART_MOST_S = 1.0, 60.0
log = logging.getLogger(__name__)


def bind(settings: Settings, desk: Desk) -> Celery:
    """Return the Celery app whose one task sends this process to ``desk``.

    The arguments of a message are ignored: a forged or repeated one costs a query.
    """
    app = Celery("stiefel", set_as_current=False)
    app.conf.update(
        celery_options(settings),
        broker_connection_max_retries=None,
        worker_redirect_stdouts=False,
    )

    @app.task(name=LOOK, ignore_result=True)  # type: ignore[untyped-decorator]
    def look(*_: Any, **__: Any) -> None:
        desk.look()

    def drain(**_: Any) -> None:
        desk.drain()

    def leave_logging_alone(**_: Any) -> None:
        """Having a receiver is what keeps Celery from setting levels and handlers."""

    worker_shutting_down.connect(drain, weak=False)
    setup_logging.connect(leave_logging_alone, weak=False)
    return app


def run(app: Celery, desk: Desk) -> None:
    """Run Celery's worker in this thread until it is told to stop.

    An error that Celery calls unrecoverable (a message that is no JSON, say) ends its worker, not
    this process: the jobs here go on, others are found by polling, and Celery starts anew.
    """
    pause_s = _RESTART_S
    while True:
        _worker(app, desk).start()
        if desk.draining.wait(pause_s):
            return
        log.error("Celery gave up, see above; it starts anew and polling goes on")
        pause_s = min(2 * pause_s, _RESTART_MOST_S)


def _worker(app: Celery, desk: Desk) -> Any:
    set_event_loop(None)  # the one of a worker that gave up is closed, and would be used again
    return app.Worker(
        hostname=f"{desk.shop.worker}@%h",
        pool_cls="threads",
        concurrency=desk.shop.concurrency,
        queues=list(desk.shop.queues),
        loglevel="WARNING",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
