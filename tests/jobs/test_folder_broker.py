"""The embedded broker between processes: whole messages, each of them once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from celery import Celery

from stiefel_jobs.doorbell import CeleryDoorbell, celery_options
from stiefel_jobs.folder_broker import Transport
from stiefel_jobs.settings import Settings

MESSAGES = 300
RING = """
import sys
from stiefel_jobs.doorbell import CeleryDoorbell
from stiefel_jobs.folder_broker import Transport
from stiefel_jobs.settings import Settings

bell = CeleryDoorbell(Settings(data_dir=sys.argv[1]))
assert all(bell.ring("cpu", f"{sys.argv[2]}-{n}") for n in range(int(sys.argv[3])))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@contextmanager
def consumer(settings: Settings) -> Iterator[Callable[[], Any]]:
    """A function that takes the next message of the queue "cpu", or raises Empty."""
    Transport.global_state.clear()  # a process remembers what it has bound, wherever
    app = Celery(set_as_current=False)
    app.conf.update(celery_options(settings))
    with app.connection_for_read() as connection:
        waiting = connection.SimpleQueue(app.amqp.queues["cpu"])  # bound as a worker binds it
        yield lambda: waiting.get(block=False)
        waiting.close()


def test_two_publishers_and_two_consumers_lose_and_double_nothing(settings: Settings) -> None:
    command = [sys.executable, "-c", RING, str(settings.data_dir)]
    publishers = [subprocess.Popen([*command, who, str(MESSAGES)]) for who in ("a", "b")]
    heard: list[str] = []
    ended = threading.Event()

    def listen() -> None:
        with consumer(settings) as take:
            while True:
                last = ended.is_set()
                try:
                    message = take()
                except Empty:
                    if last:
                        return
                    continue
                message.ack()
                heard.append(message.payload[0][0])

    threads = [threading.Thread(target=listen) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = [publisher.wait(60) for publisher in publishers]
    ended.set()
    for thread in threads:
        thread.join(30)
    assert codes == [0, 0]
    assert sorted(heard) == sorted(f"{who}-{n}" for who in "ab" for n in range(MESSAGES))
    assert not list((settings.data_dir / "broker" / "messages").iterdir())


@pytest.mark.parametrize("text", ["", '{"body": "W10', "\ufeff"])
def test_a_broken_message_is_dropped_and_the_next_one_read(settings: Settings, text: str) -> None:
    folder = settings.data_dir / "broker" / "messages"
    with consumer(settings) as take:
        (folder / "0_broken.cpu.msg").write_text(text)
        assert CeleryDoorbell(settings).ring("cpu", "job_1")
        assert take().payload[0] == ["job_1"]
    assert not list(folder.glob("*broken*"))


@pytest.mark.parametrize("text", ["", '[["cpu", "", "cp'])
def test_a_broken_table_of_queues_is_written_anew(settings: Settings, text: str) -> None:
    with consumer(settings):
        (table,) = (settings.data_dir / "broker" / "control").iterdir()
    bound = table.read_text()
    table.write_text(text)
    with consumer(settings) as take:
        assert table.read_text() == bound
        assert CeleryDoorbell(settings).ring("cpu", "job_1")
        assert take().payload[0] == ["job_1"]
