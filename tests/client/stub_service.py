"""A scripted HTTP server: each route answers from its own queue, the last answer for ever."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    """Status, headers and body; ``cut`` sends that many bytes of the body and hangs up.

    ``live`` is a body that comes bit by bit and is torn off where it ends.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    live: Iterable[bytes] | None = None


@dataclass
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


Script = Answer | Callable[[Request], Answer]


class StubService:
    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self._routes: dict[tuple[str, str], list[Script]] = {}

    def on(self, method: str, path: str, *answers: Script) -> None:
        self._routes[method, path] = list(answers)

    def seen(self, method: str, path: str) -> list[Request]:
        return [r for r in self.requests if (r.method, r.path) == (method, path)]

    def reply(self, request: Request) -> Answer:
        self.requests.append(request)
        queue = self._routes.get((request.method, request.path))
        if not queue:
            return problem(404, "not_found", f"no route {request.method} {request.path}")
        script = queue.pop(0) if len(queue) > 1 else queue[0]
        return script(request) if callable(script) else script


def problem(status: int, code: str, detail: str, **more: Any) -> Answer:
    body = {"status": status, "code": code, "detail": detail, **more}
    return Answer(status, body, {"Content-Type": "application/problem+json"})


@contextmanager
def stub_service() -> Iterator[StubService]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(length)
            answer = service.reply(Request(self.command, parts.path, parts.query, headers, body))
            data = answer.body if isinstance(answer.body, bytes) else b""
            if answer.body is not None and not isinstance(answer.body, bytes):
                data = json.dumps(answer.body).encode()
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.live is not None:
                self.stream(answer.live)
                return
            if answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if answer.cut is None else data[: answer.cut])
            if answer.cut is not None:
                self.wfile.flush()
                self.close_connection = True

        def stream(self, pieces: Iterable[bytes]) -> None:
            self.send_header("Content-Length", str(10**9))
            self.end_headers()
            with suppress(ConnectionError):  # the client may leave first
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - named by the base

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service = StubService(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
