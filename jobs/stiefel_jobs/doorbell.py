"""Wake a worker: a message that says "look now" and decides nothing.

The database owns the job. A ring that is lost, late or doubled costs seconds at most, so a
publisher gives up quickly instead of keeping a request waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

from stiefel_jobs.settings import Settings

LOOK = "stiefel.look"
_CONNECT_S = 1.0
_SOCKET_S = 5.0  # longer than the second for which a consumer's BRPOP blocks
_SILENCE_S = 5.0
_SOCKETS = {
    "max_retries": 0,
    "socket_connect_timeout": _CONNECT_S,
    "socket_timeout": _SOCKET_S,
    "socket_keepalive": True,
}

log = logging.getLogger(__name__)


class Doorbell(Protocol):
    """Something that can wake a worker of a queue."""

    def ring(self, queue: str, job_id: str) -> bool:
        """Ask a worker of ``queue`` to look; return whether the message was handed over."""
        ...


class SilentDoorbell:
    """Wakes nobody: workers find jobs by polling. For tools that submit without a broker."""

    def ring(self, queue: str, job_id: str) -> bool:
        """Return False: the message stays in the outbox."""
        return False


class CeleryDoorbell:
    """Rings through Celery's broker. Importing this module does not import Celery; this does.

    After a failure it keeps silent for a few seconds, so that a broker that hangs slows one
    request and not each of them. Safe to share between threads.
    """

    def __init__(self, settings: Settings) -> None:
        from celery import Celery

        self._app = Celery("stiefel", set_as_current=False)
        self._app.conf.update(celery_options(settings))
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def ring(self, queue: str, job_id: str) -> bool:
        """Publish the message; False, and a line in the log, where the broker did not take it."""
        if time.monotonic() < self._silent_until:
            return False
        try:
            self._app.send_task(LOOK, args=[job_id], queue=queue, ignore_result=True, retry=False)
        except Exception as error:  # whatever the transport raises, the job is safe
            with self._lock:
                self._silent_until = time.monotonic() + _SILENCE_S
            # The text of a transport's error may quote the broker's URL and its password.
            log.warning("no ring for %s on %s: %s", job_id, queue, type(error).__name__)
            return False
        return True

    def close(self) -> None:
        """Close the connections to the broker."""
        self._app.close()


def celery_options(settings: Settings) -> dict[str, Any]:
    """Return the one Celery configuration of publishers and workers.

    A filesystem broker's folders are created. Messages are JSON and acknowledged when received:
    redelivery is the database's business, and a late acknowledgement would run long jobs twice.
    """
    folder = settings.broker_url.startswith("filesystem:")
    return {
        "broker_url": settings.broker_url,
        "broker_transport": "stiefel_jobs.folder_broker:Transport" if folder else None,
        "broker_transport_options": _folders(settings) if folder else _SOCKETS,
        "broker_connection_retry_on_startup": True,
        "broker_connection_timeout": _CONNECT_S,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_publish_retry": False,
        "task_send_sent_event": False,
        "result_backend": None,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_prefetch_multiplier": 1,
        # A message held back by a busy worker would not wake an idle one. Redis alone can.
        "worker_disable_prefetch": settings.broker_url.startswith("redis"),
        "worker_hijack_root_logger": False,
    }


def _folders(settings: Settings) -> dict[str, Any]:
    root = settings.data_dir / "broker"
    messages, control = root / "messages", root / "control"
    for folder in (messages, control):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {
        # One folder both ways: what a publisher writes is what a consumer reads.
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.05,
    }
