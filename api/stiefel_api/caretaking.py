"""Housekeeping beside the requests: the collection of garbage, once an hour."""

from __future__ import annotations

import logging
import threading

from stiefel_api.service import Service
from stiefel_jobs.store.garbage import collect_garbage

log = logging.getLogger(__name__)

EVERY_S = 3600.0
_FIRST_S = 60.0  # a service that is started and stopped for a moment should not list its store


class Caretaker:
    """One thread that collects garbage; several processes may do so at once."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End; a collection under way is left to itself."""
        self._over.set()

    def _run(self) -> None:
        pause = _FIRST_S
        while not self._over.wait(pause):
            pause = EVERY_S
            try:
                count = collect_garbage(self._service.db, self._service.blobs)
            except Exception:  # the next hour may be better
                log.exception("cannot collect garbage")
                continue
            if count:
                log.info("collected %d blobs", count)
