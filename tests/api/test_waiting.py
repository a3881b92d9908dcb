from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from house import House, running, submit

from stiefel_api.waiting import Waiters


class Versions:
    """Versions of jobs, and a count of the questions asked."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.asked: list[list[str]] = []
        self.broken = False

    def __call__(self, ids: Sequence[str]) -> dict[str, int]:
        self.asked.append(list(ids))
        if self.broken:
            raise ConnectionError
        return {job: self.now[job] for job in ids if job in self.now}


def test_one_question_serves_everybody() -> None:
    versions = Versions()
    versions.now = {"a": 1, "b": 1}

    async def scene() -> None:
        waiters = Waiters(versions, every_s=0.02)
        waits = [asyncio.create_task(waiters.changed("ab"[n % 2], 1, 5)) for n in range(500)]
        await asyncio.sleep(0.1)
        assert len(waiters) == 500
        versions.now = {"a": 2, "b": 1}
        woken = await asyncio.gather(*waits[::2])
        assert all(woken)
        versions.now = {"a": 2, "b": 2}
        assert all(await asyncio.gather(*waits[1::2]))
        assert len(waiters) == 0

    asyncio.run(scene())
    assert len(versions.asked) < 50
    assert all(sorted(ids) in (["a", "b"], ["b"]) for ids in versions.asked)


def test_nothing_is_asked_while_nobody_waits() -> None:
    versions = Versions()
    versions.now = {"a": 1}

    async def scene() -> None:
        waiters = Waiters(versions, every_s=0.01)
        assert not await waiters.changed("a", 1, 0.1)
        await asyncio.sleep(0.05)
        asked = len(versions.asked)
        await asyncio.sleep(0.1)
        assert len(versions.asked) == asked
        await waiters.close()

    asyncio.run(scene())


def test_a_job_that_is_gone_wakes_its_waiters() -> None:
    assert asyncio.run(Waiters(Versions(), every_s=0.01).changed("gone", 1, 5))


def test_a_database_that_fails_for_a_moment_ends_no_wait() -> None:
    versions = Versions()
    versions.now, versions.broken = {"a": 2}, True

    async def scene() -> bool:
        waiters = Waiters(versions, every_s=0.01)
        wait = asyncio.create_task(waiters.changed("a", 1, 10))
        await asyncio.sleep(0.1)
        versions.broken = False
        return await wait

    assert asyncio.run(scene())


def test_hundreds_of_polls_and_streams_leave_room_for_work(
    house: House, client: httpx.Client
) -> None:
    job = submit(client)
    path = f"/v1/jobs/{job['id']}"
    tag = client.get(path).headers["etag"]
    poll = f"GET {path}?wait=60 HTTP/1.1\r\nIf-None-Match: {tag}\r\n"
    stream = f"GET {path}/events HTTP/1.1\r\nAccept: text/event-stream\r\n"
    common = f"Host: x\r\nAuthorization: {client.headers['authorization']}\r\n"
    requests = [poll + common] * 512 + [stream + common] * 100

    async def ask(text: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", house.settings.api_port)
        writer.write(f"{text}Connection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def crowd() -> list[bytes]:
        asked = [asyncio.create_task(ask(text)) for text in requests]
        await asyncio.to_thread(held, 612)
        began = time.monotonic()
        for _ in range(20):
            assert (await asyncio.to_thread(client.get, "/v1/jobs")).status_code == 200
        assert (time.monotonic() - began) / 20 < 1.0
        await asyncio.to_thread(client.post, f"{path}/cancel")
        return await asyncio.gather(*asked)

    def held(number: int) -> None:
        end = time.monotonic() + 60
        while f"stiefel_waiting_requests {number}" not in client.get("/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.1)

    answers = asyncio.run(crowd())
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    assert all(b"cancelled" in answer for answer in answers)


def test_a_stopped_service_answers_those_who_wait(tmp_path: Path) -> None:
    with running(tmp_path) as house:
        client = house.client()
        job = submit(client)
        with ThreadPoolExecutor(1) as pool:
            poll = pool.submit(client.get, f"/v1/jobs/{job['id']}", params={"wait": 60})
            time.sleep(0.5)
            os.kill(house.pid, signal.SIGTERM)
            assert poll.result(timeout=20).json()["status"] == "queued"
        client.close()
