"""What surrounds every request: an id, limits on the body, headers, figures, and no stack trace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stiefel_api.meters import Meters
from stiefel_api.problems import Problem, of_fault, respond
from stiefel_api.texts import check_query, without_nul
from stiefel_jobs.ids import new_id

log = logging.getLogger(__name__)

_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Shell:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        meters: counts requests and their seconds.
        max_body: bytes of a JSON body; uploads have a limit of their own.
        idle_s: seconds a client may stay silent in the middle of a body.
    """

    def __init__(self, app: ASGIApp, *, meters: Meters, max_body: int, idle_s: float) -> None:
        self.app = app
        self.meters = meters
        self.max_body = max_body
        self.idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = Exchange(send, request_id)
        scope["path"] = without_nul(scope["path"])
        try:
            check_query(scope.get("query_string", b""))
            patient = self._patient(receive)
            if not _is_upload(scope):
                patient = await self._with_body(scope, patient)
            await self.app(scope, patient, exchange.send)
        except Problem as problem:
            await exchange.refuse(scope, receive, problem)
        except ClientDisconnect:
            log.info("%s the client went away", request_id)
        except Exception as error:
            log.exception("%s %s %s failed", request_id, scope["method"], scope["path"])
            await exchange.refuse(scope, receive, of_fault(error))
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.meters.count(scope["method"], route, exchange.status, exchange.seconds)

    def _patient(self, receive: Receive) -> Receive:
        """Give up on a client that stops in the middle of its body."""
        done = False

        async def receive_in_time() -> Message:
            nonlocal done
            if done:  # only the disconnection is still to come, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.idle_s)
            except TimeoutError:
                raise Problem(
                    408, "body_timeout", f"No byte of the body came for {self.idle_s:g} s."
                ) from None
            done = not message.get("more_body", False)
            return message

        return receive_in_time

    async def _with_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read a JSON body, which is small, before anything else happens; then play it back."""
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self.max_body:
            raise self._too_large()
        body = bytearray()
        more = scope["method"] not in {"GET", "HEAD"}
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_body:
                raise self._too_large()
        if body and not _is_json(headers.get("content-type", "")):
            raise Problem(
                415,
                "json_expected",
                "The body must be JSON.",
                fix="Send the header Content-Type: application/json.",
            )
        return _replay(bytes(body), receive)

    def _too_large(self) -> Problem:
        return Problem(
            413,
            "body_too_large",
            f"The body is larger than {self.max_body} bytes.",
            fix="Send files to /v1/uploads; a request itself is small.",
            headers={"Connection": "close"},
        )


class Exchange:
    """One answer on its way out."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._began = time.perf_counter()
        self.status = 0

    @property
    def seconds(self) -> float:
        """Time since the request came."""
        return time.perf_counter() - self._began

    async def send(self, message: Message) -> None:
        """Add the headers that every answer carries."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
            headers["x-request-id"] = self._request_id
        await self._send(message)

    async def refuse(self, scope: Scope, receive: Receive, problem: Problem) -> None:
        """Answer with a problem, unless an answer has begun: then the connection just ends."""
        if not self.status:
            await respond(scope, problem)(scope, receive, self.send)
        else:
            raise ConnectionAbortedError("the answer broke off")


def _replay(body: bytes, receive: Receive) -> Receive:
    played = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal played
        if played:
            return await receive()
        played = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _is_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "PUT" and path.startswith("/v1/uploads/")


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")
