"""Carrying calls out over HTTP, with retries: the part of the sync client that knows the wire."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from stiefel_client.calls import Call
from stiefel_client.errors import ConfigurationError, ServiceUnreachableError, error_from
from stiefel_client.locate import Service, find_service
from stiefel_client.retries import RetryPolicy

T = TypeVar("T")
OnBytes = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while a transfer runs."""


class Transport:
    """A connection to one service, without any knowledge of its resources.

    Args:
        url: base URL; default $STIEFEL_URL, then the embedded service of this machine.
        key: API key; default $STIEFEL_API_KEY, then the embedded service's own key file.
        timeout: seconds to wait for one ordinary answer.
        retry: when and how often a call is repeated.

    Raises:
        ConfigurationError: the URL is none.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.service = find_service(url, key)
        self.timeout = timeout
        self.retry = retry or RetryPolicy()
        self.http = httpx.Client(**connection(self.service))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def call(self, call: Call[T]) -> T:
        """Carry one call out, repeating it where that is safe.

        Raises:
            StiefelApiError: the service refused.
            ServiceUnreachableError: no answer, however often it was asked.
        """
        attempt = 0
        while True:
            attempt += 1
            pause: float | None
            try:
                response = self.http.request(**call.arguments(self.timeout))
            except httpx.TransportError as error:
                pause = self.retry.after_error(error, attempt, repeatable=call.repeatable)
                if pause is None:
                    raise unreachable(self.service, error) from error
            else:
                pause = self.retry.after_answer(response, attempt, repeatable=call.repeatable)
                if pause is None:
                    return answer(self.service, call, response)
            time.sleep(pause)

    @contextmanager
    def stream(self, call: Call[None]) -> Iterator[httpx.Response]:
        """Open a call whose answer is read line by line."""
        with self.http.stream(**call.arguments(self.timeout)) as response:
            if response.status_code >= 400:
                response.read()
                raise error_from(response)
            yield response


def connection(service: Service) -> dict[str, Any]:
    """Keyword arguments of the httpx client for a service."""
    headers = {"User-Agent": "stiefel-client"}
    if service.key:
        headers["Authorization"] = f"Bearer {service.key}"
    # A proxy from the environment must not stand between this machine and itself.
    return {"base_url": service.url, "headers": headers, "trust_env": not service.local}


def answer(service: Service, call: Call[T], response: httpx.Response) -> T:
    """The parsed answer of a call.

    Raises:
        StiefelApiError: the service refused.
        ConfigurationError: something else than the service answered.
    """
    if response.status_code >= 400:
        raise error_from(response)
    # A page for people is never an answer, even to a call whose answer nobody reads.
    kind = response.headers.get("content-type", "no content type")
    if response.has_redirect_location or kind.startswith("text/html"):
        raise _foreign(service, response, kind)
    try:
        return call.parse(response)
    except ValueError as error:
        raise _foreign(service, response, kind) from error


def _foreign(service: Service, response: httpx.Response, kind: str) -> ConfigurationError:
    return ConfigurationError(
        f"{service.url} answers, but not as this client expects of a Stiefel service "
        f"(HTTP {response.status_code}, {kind})",
        fix="Check the URL; a service of another version may need a client of that version",
    )


def unreachable(service: Service, error: Exception) -> ServiceUnreachableError:
    """The error for a service that does not answer."""
    fix = "Start it with: stiefel serve" if service.local else "Check the URL and the network"
    return ServiceUnreachableError(f"no answer from {service.url} ({error})", fix=fix)
