"""What the routes work with, built once per application."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

from fastapi import Depends, Request

from stiefel_api.meters import Meters
from stiefel_api.ringing import Ringer
from stiefel_api.waiting import Waiters
from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database
from stiefel_jobs.doorbell import CeleryDoorbell
from stiefel_jobs.settings import Settings
from stiefel_jobs.store import queries


@dataclass(frozen=True)
class Service:
    """The parts of one API process."""

    settings: Settings
    db: Database
    blobs: Blobs
    ringer: Ringer
    waiters: Waiters
    meters: Meters
    #: A header at the limit takes 200 MB to parse: one at a time.
    parsing: threading.Lock
    #: Ids of the uploads whose parts this process is putting together.
    assembling: dict[str, object]

    @classmethod
    def of(cls, settings: Settings) -> Service:
        """Open database and store; nothing is started."""
        db = Database(settings.database_url)
        return cls(
            settings=settings,
            db=db,
            blobs=Blobs.of(settings),
            ringer=Ringer(db, partial(CeleryDoorbell, settings)),
            waiters=Waiters(partial(queries.versions, db)),
            meters=Meters(),
            parsing=threading.Lock(),
            assembling={},
        )


async def the_service(request: Request) -> Service:
    """Return the service of the application that serves the request.

    Async, like every dependency that waits for nothing: a plain function costs a thread's turn.
    """
    return cast(Service, request.app.state.service)


ServiceDep = Annotated[Service, Depends(the_service)]
