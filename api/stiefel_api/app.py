"""The application: routes, errors, and what is started and stopped with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module

from fastapi import FastAPI

from stiefel_api import openapi, problems
from stiefel_api.caretaking import Caretaker
from stiefel_api.routes import (
    actions,
    artifacts,
    batches,
    events,
    files,
    health,
    jobs,
    keys,
    methods,
    uploads,
)
from stiefel_api.service import Service
from stiefel_api.shell import Shell
from stiefel_api.version import VERSION
from stiefel_jobs.settings import Settings

IDLE_S = 60.0
ROUTERS = (uploads, artifacts, jobs, actions, events, files, batches, methods, keys, health)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application. Database and store are opened, and nothing is written to them.

    Args:
        settings: by default from the environment.
    """
    service = Service.of(settings or Settings())
    for package in filter(None, (name.strip() for name in service.settings.plugins.split(","))):
        import_module(f"{package}.specs")  # defining a spec registers it; its method stays out
    app = FastAPI(
        title="Stiefel",
        version=VERSION,
        lifespan=_lifespan,
        docs_url=None,  # the interactive pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for module in ROUTERS:
        app.include_router(module.router)
    problems.install(app)
    openapi.install(app)
    app.add_middleware(
        Shell,
        meters=service.meters,
        max_body=service.settings.max_request_bytes,
        idle_s=IDLE_S,
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    caretaker = Caretaker(service)
    service.ringer.start()
    caretaker.start()
    try:
        yield
    finally:
        await service.waiters.close()
        caretaker.close()
        service.ringer.close()
        service.db.close()
