from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from stiefel_jobs.doorbell import (
    LOOK,
    CeleryDoorbell,
    Doorbell,
    SilentDoorbell,
    celery_options,
)
from stiefel_jobs.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port where connecting hangs: it listens, its queue is full, and nobody accepts."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port
        for filler in fillers:
            filler.close()


def broken(tmp_path: Path, port: int) -> CeleryDoorbell:
    url = f"redis://:topsecret@127.0.0.1:{port}/0"
    return CeleryDoorbell(Settings(data_dir=tmp_path, broker_url=url))


def messages(settings: Settings) -> list[dict[str, object]]:
    folder = settings.data_dir / "broker" / "messages"
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


def test_the_embedded_broker_is_a_folder(settings: Settings) -> None:
    doorbell: Doorbell = CeleryDoorbell(settings)
    assert doorbell.ring("cpu", "job_1")
    assert doorbell.ring("cuda", "job_2")
    found = messages(settings)
    assert len(found) == 2
    headers = [message["headers"] for message in found]
    assert {header["task"] for header in headers} == {LOOK}  # type: ignore[index]
    assert {header["ignore_result"] for header in headers} == {True}  # type: ignore[index]
    assert {message["content-type"] for message in found} == {"application/json"}


def test_nobody_else_on_the_machine_reads_the_broker(settings: Settings) -> None:
    celery_options(settings)
    mode = (settings.data_dir / "broker" / "messages").stat().st_mode
    assert mode & 0o077 == 0


def test_redis_carries_the_message_to_the_queue(redis_url: str, tmp_path: Path) -> None:
    doorbell = CeleryDoorbell(Settings(data_dir=tmp_path, broker_url=redis_url))
    assert doorbell.ring("look-here", "job_1")
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("look-here") == 1
    doorbell.close()


def test_a_broker_that_is_down_costs_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    doorbell = broken(tmp_path, port)
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING, "stiefel_jobs.doorbell"):
        assert not doorbell.ring("cpu", "job_1")
    assert time.monotonic() - begin < 3
    assert "job_1" in caplog.text
    assert "topsecret" not in caplog.text


def test_a_broker_that_hangs_slows_one_request_and_not_the_next(
    tmp_path: Path, dead_port: int
) -> None:
    doorbell = broken(tmp_path, dead_port)
    begin = time.monotonic()
    assert not doorbell.ring("cpu", "job_1")
    first = time.monotonic()
    assert not doorbell.ring("cpu", "job_2")
    assert first - begin < 4
    assert time.monotonic() - first < 0.1


def test_celery_decides_nothing(settings: Settings) -> None:
    options = celery_options(settings)
    assert options["accept_content"] == ["json"]
    assert options["task_serializer"] == "json"
    assert options["task_acks_late"] is False
    assert options["result_backend"] is None
    assert options["worker_prefetch_multiplier"] == 1
    assert options["worker_enable_remote_control"] is False


def test_the_silent_doorbell_leaves_the_message_in_the_outbox() -> None:
    assert SilentDoorbell().ring("cpu", "job_1") is False


def test_importing_the_doorbell_leaves_celery_out() -> None:
    code = "import stiefel_jobs.doorbell, sys; sys.exit('celery' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
