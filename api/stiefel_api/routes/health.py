"""``/healthz``, ``/readyz`` and ``/metrics``: for probes and for Prometheus; no key needed."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from fastapi import APIRouter, Response
from prometheus_client.core import Metric
from sqlalchemy import func, select

from stiefel_api.meters import CONTENT_TYPE, gauge
from stiefel_api.service import Service, ServiceDep
from stiefel_api.version import VERSION
from stiefel_api.views.access import HealthView, ReadinessView
from stiefel_jobs.states import LEASED
from stiefel_jobs.store import queries
from stiefel_jobs.store.workers import list_workers
from stiefel_jobs.tables import jobs

router = APIRouter(tags=["service"])
log = logging.getLogger(__name__)


@router.get("/healthz", response_model=HealthView, summary="Is the process alive?")
def healthz() -> HealthView:
    """Answer without asking anything else."""
    return HealthView(status="ok", version=VERSION)


@router.get(
    "/readyz",
    response_model=ReadinessView,
    responses={503: {"model": ReadinessView, "description": "Database or store do not answer."}},
    summary="Can the process do its work?",
)
def readyz(response: Response, service: ServiceDep) -> ReadinessView:
    """Ask database, store and broker."""
    checks = {
        "database": _check(lambda: _ask_database(service)),
        "store": _check(lambda: service.blobs.look("ready")),
        "broker": _check(lambda: _ask_broker(service)),
    }
    ready = checks["database"] == checks["store"] == "ok"
    if not ready:
        response.status_code = 503
    return ReadinessView(status="ready" if ready else "not_ready", checks=checks)


def _check(ask: Callable[[], object]) -> str:
    try:
        ask()
    except Exception as error:  # whatever is wrong: the log has it, the caller its kind
        log.warning("not ready: %s", error)
        return f"unreachable ({type(error).__name__})"
    return "ok"


def _ask_database(service: Service) -> None:
    with service.db.read() as connection:
        connection.execute(select(jobs.c.id).limit(1)).first()


def _ask_broker(service: Service) -> None:
    url = urlsplit(service.settings.broker_url)
    if url.hostname:
        socket.create_connection((url.hostname, url.port or 6379), timeout=1.0).close()


@router.get("/metrics", include_in_schema=False)
def prometheus(service: ServiceDep) -> Response:
    """Figures in Prometheus' text format."""
    text = service.meters.read(lambda: _gauges(service))
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


def _gauges(service: Service) -> Sequence[Metric]:
    depths = queries.depths(service.db)
    queued = [depth for depth in depths if depth.state == "queued"]
    return [
        gauge(
            "stiefel_jobs",
            "Unfinished jobs by queue and state.",
            ("queue", "state"),
            [((depth.queue, depth.state), depth.count) for depth in depths],
        ),
        gauge(
            "stiefel_oldest_queued_seconds",
            "Age of the job that has been queued for the longest.",
            ("queue",),
            [((depth.queue,), depth.oldest_s) for depth in queued],
        ),
        gauge(
            "stiefel_expired_leases",
            "Jobs whose worker has fallen silent and that wait for the sweeper.",
            (),
            [((), _expired_leases(service))],
        ),
        gauge(
            "stiefel_workers",
            "Workers heard of in the last minute.",
            (),
            [((), len(list_workers(service.db)))],
        ),
        gauge(
            "stiefel_waiting_requests",
            "Long polls and event streams held open by this process.",
            (),
            [((), len(service.waiters))],
        ),
    ]


def _expired_leases(service: Service) -> int:
    query = select(func.count()).where(
        jobs.c.state.in_(list(LEASED)), jobs.c.lease_until < service.db.now
    )
    with service.db.read() as connection:
        return int(connection.execute(query).scalar_one())
