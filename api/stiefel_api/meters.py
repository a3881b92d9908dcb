"""Figures for Prometheus: requests as they pass, jobs as the database has them when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Meters:
    """The figures of one application; registries are not shared between applications."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "stiefel_http_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "stiefel_http_request_seconds",
            "Seconds from the first byte of a request to the end of its answer.",
            ("method", "route"),
            registry=self.registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note one answered request; status 0 is a client that went away first."""
        # Methods are the client's text: a label must not have as many values as one can invent.
        known = method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(seconds)

    def read(self, gauges: Callable[[], Sequence[Metric]]) -> bytes:
        """Return all figures as text; ``gauges`` are asked for now."""
        live = CollectorRegistry()
        live.register(_Gauges(gauges()))
        return generate_latest(self.registry) + generate_latest(live)


class _Gauges(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def gauge(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]
) -> Metric:
    """Build one gauge from its rows of label values and number."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family
