"""Waiting and event streams: long polls, broken connections, restarts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from stub_service import Answer, problem

from stiefel_client import (
    AsyncStiefel,
    NotFoundError,
    RetryPolicy,
    ServiceUnreachableError,
    WaitTimeoutError,
    following,
)
from stiefel_client.sse import EventReader

PATH = "/v1/jobs/job_1"
STREAM = {"Content-Type": "text/event-stream"}


def job(status: str, **more: object) -> dict[str, object]:
    return {"id": "job_1", "status": status, **more}


def test_wait_follows_every_change_to_the_end(service, client) -> None:
    service.on(
        "GET",
        PATH,
        Answer(200, job("queued"), {"ETag": '"1"', "Retry-After": "0.05"}),
        Answer(304, headers={"ETag": '"1"'}),
        Answer(200, job("running", progress={"done": 1, "total": 4, "percent": 25.0})),
        Answer(200, job("succeeded", result={"files": {}, "metrics": {"tensors": 2}})),
    )
    seen = []
    done = client.jobs.wait("job_1", on_change=lambda j: seen.append(j.status))
    assert seen == ["queued", "running", "succeeded"]
    assert done.result.metrics == {"tensors": 2}
    first, second, *_ = service.requests
    assert (first.query, second.query) == ("", "wait=20")
    assert second.headers["if-none-match"] == '"1"'


def test_wait_ends_on_time_and_names_the_state(service, client) -> None:
    service.on("GET", PATH, Answer(200, job("running")))
    begun = time.monotonic()
    with pytest.raises(WaitTimeoutError, match="still running") as caught:
        client.jobs.wait("job_1", timeout=0.5)
    assert time.monotonic() - begun < 2
    assert "stiefel watch job_1" in str(caught.value.fix)


def test_wait_survives_a_restart_of_the_service(service, client) -> None:
    down = [problem(503, "starting", "not yet")] * 4
    service.on("GET", PATH, Answer(200, job("running")), *down, Answer(200, job("failed")))
    assert client.jobs.wait("job_1").status == "failed"


def test_wait_for_an_unknown_job_is_an_error(client) -> None:
    with pytest.raises(NotFoundError):
        client.jobs.wait("job_unknown")


def stream(*events: tuple[int, str]) -> bytes:
    return b"".join(
        f"id: {seq}\nevent: {kind}\ndata: {json.dumps({'n': seq})}\n\n".encode()
        for seq, kind in events
    )


def script_events(service) -> None:
    first = b"retry: 10\n: keep-alive\n\n" + stream((1, "job.status"), (2, "job.progress"))
    torn = first + stream((3, "job.metric"))
    service.on(
        "GET",
        PATH + "/events",
        Answer(200, torn, STREAM, cut=len(torn) - 4),
        Answer(200, stream((3, "job.metric"), (4, "job.completed")), STREAM),
        Answer(200, b"", STREAM),
    )
    service.on("GET", PATH, Answer(200, job("succeeded")))


def check_events(service, events) -> None:
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert events[-1].type == "job.completed"
    assert events[2].data == {"n": 3}
    asked = [r.headers.get("last-event-id") for r in service.seen("GET", PATH + "/events")]
    assert asked == [None, "2", "4"]


def test_a_torn_stream_goes_on_without_gap_or_repeat(service, client) -> None:
    script_events(service)
    check_events(service, list(client.jobs.events("job_1")))


def test_the_asynchronous_stream_and_wait_do_the_same(service) -> None:
    script_events(service)

    async def run() -> list[object]:
        async with AsyncStiefel(service.url, "k", retry=RetryPolicy(first=0.01)) as client:
            events = [event async for event in client.jobs.events("job_1")]
            assert (await client.jobs.wait("job_1")).succeeded
            return events

    check_events(service, asyncio.run(run()))


def keep_alives(seconds: float, *, every: float = 0.05) -> Iterator[bytes]:
    yield b"retry: 10\n\n"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(every)
        yield b": still here\n\n"


def script_a_late_break(service) -> None:
    service.on(
        "GET",
        PATH + "/events",
        Answer(200, headers=STREAM, live=keep_alives(0.0)),
        Answer(200, headers=STREAM, live=keep_alives(0.6)),
        Answer(200, stream((1, "job.completed")), STREAM),
        Answer(200, b"", STREAM),
    )
    service.on("GET", PATH, Answer(200, job("succeeded")))


def test_a_break_after_a_long_quiet_stream_is_survived(service, client, monkeypatch) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.3)
    script_a_late_break(service)
    assert [event.seq for event in client.jobs.events("job_1")] == [1]


def test_the_asynchronous_client_survives_it_too(service, monkeypatch) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.3)
    script_a_late_break(service)

    async def run() -> list[int]:
        async with AsyncStiefel(service.url, "k") as client:
            return [event.seq async for event in client.jobs.events("job_1")]

    assert asyncio.run(run()) == [1]


def test_a_service_that_dies_before_the_last_look_is_waited_for(service, client) -> None:
    service.on("GET", PATH + "/events", Answer(200, b"retry: 10\n\n", STREAM))
    down = [problem(503, "starting", "not yet")] * 4  # more than one call is repeated
    service.on("GET", PATH, *down, Answer(200, job("succeeded")))
    assert list(client.jobs.events("job_1")) == []


def test_events_give_up_on_a_service_that_stays_away(service, client, monkeypatch) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.3)
    torn = Answer(200, headers=STREAM, live=[b"retry: 10\n\n"])
    service.on("GET", PATH + "/events", torn, problem(503, "starting", "not yet"))
    with pytest.raises(ServiceUnreachableError):
        list(client.jobs.events("job_1"))
    assert len(service.seen("GET", PATH + "/events")) > 3


@pytest.mark.parametrize("every", [0.05, 30.0], ids=["keep-alives", "silence"])
def test_events_end_when_the_callers_time_is_over(service, client, every) -> None:
    body = keep_alives(30, every=every)
    service.on("GET", PATH + "/events", Answer(200, headers=STREAM, live=body))
    begun = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"after 0\.5 s"):
        list(client.jobs.events("job_1", timeout=0.5))
    assert 0.5 <= time.monotonic() - begun < 1.5


def test_the_end_is_kept_to_in_silence_after_an_event(service, client) -> None:
    def quiet(n: int) -> Iterator[bytes]:
        time.sleep(1.5 if n == 1 else 0.0)
        yield b"retry: 10\n\n" + (stream((1, "job.status")) if n == 1 else b"")
        time.sleep(30)

    answers = [Answer(200, headers=STREAM, live=quiet(n)) for n in (1, 2)]
    service.on("GET", PATH + "/events", *answers)
    begun = time.monotonic()
    with pytest.raises(WaitTimeoutError):
        list(client.jobs.events("job_1", timeout=2.0))
    assert 2.0 <= time.monotonic() - begun < 3.1


def test_an_unknown_jobs_stream_is_an_error_at_once(client) -> None:
    with pytest.raises(NotFoundError):
        next(client.jobs.events("job_unknown"))


def test_the_reader_joins_data_lines_and_skips_repeats() -> None:
    reader = EventReader(after=4)
    lines = ["id: 4", "data: {}", "", "id: 5", "event: x", 'data: {"a":', "data: 1}", ""]
    events = [event for line in lines if (event := reader.feed(line))]
    assert [(event.seq, event.data) for event in events] == [(5, {"a": 1})]
    reader.feed("id: 6")
    reader.broken()
    assert reader.feed("") is None
    assert reader.last_id == 5
