"""Retries, errors and idempotency, against a scripted server."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from stub_service import Answer, problem

from stiefel_client import (
    AsyncStiefel,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RetryPolicy,
    ServerError,
    ServiceUnreachableError,
    Stiefel,
    StiefelApiError,
)
from stiefel_client.retries import retry_after

JOB = {"id": "job_1", "status": "queued", "spec": {"method": "project.unitary"}}


def test_a_submission_carries_one_key_however_often_it_is_sent(service, client) -> None:
    service.on("POST", "/v1/jobs", problem(503, "busy", "later"), Answer(202, JOB))
    job = client.jobs.submit({"method": "project.unitary"}, labels={"team": "nlp"})
    first, second = service.seen("POST", "/v1/jobs")
    assert job.id == "job_1"
    assert job.method_name == "project.unitary"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.headers["authorization"] == "Bearer stf_test_key"
    assert first.body == second.body
    client.jobs.submit({"method": "project.unitary"})
    client.jobs.submit({"method": "project.unitary"}, idempotency_key="mine")
    *_, third, fourth = service.seen("POST", "/v1/jobs")
    assert third.headers["idempotency-key"] != first.headers["idempotency-key"]
    assert fourth.headers["idempotency-key"] == "mine"


def test_retry_after_is_honoured(service, client) -> None:
    slow = problem(429, "rate_limited", "slow down")
    slow.headers["Retry-After"] = "0.4"
    service.on("GET", "/v1/jobs/job_1", slow, Answer(200, JOB))
    begun = time.monotonic()
    client.jobs.get("job_1")
    assert time.monotonic() - begun >= 0.4


def test_retry_after_reads_both_forms() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after(httpx.Response(503, headers={"Retry-After": at})) or 0) <= 30
    assert retry_after(httpx.Response(503, headers={"Retry-After": "2"})) == 2
    assert retry_after(httpx.Response(503, headers={"Retry-After": "soon"})) is None
    assert retry_after(httpx.Response(503)) is None


def test_a_wait_beyond_patience_is_the_callers_decision(service, client) -> None:
    slow = problem(429, "rate_limited", "slow down")
    slow.headers["Retry-After"] = "3600"
    service.on("GET", "/v1/jobs/job_1", slow)
    with pytest.raises(RateLimitError):
        client.jobs.get("job_1")
    assert len(service.requests) == 1


def test_what_is_not_repeatable_is_sent_once(service, client) -> None:
    from stiefel_client import calls

    service.on("POST", "/v1/keys", problem(502, "bad_gateway", "who knows"))
    with pytest.raises(ServerError):
        client.call(calls.create_key("ci", ["jobs:read"]))
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (422, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (410, NotFoundError),
        (409, ConflictError),
        (500, ServerError),
        (503, ServerError),
    ],
)
def test_a_problem_document_becomes_its_error(service, client, status, kind) -> None:
    answer = problem(
        status,
        "some_code",
        "model.norm.weight has shape [4096]",
        fix="Exclude it",
        errors=[{"pointer": "/spec/include/0", "message": "matches nothing"}],
        request_id="req_1",
        allowed_actions=["cancel"],
    )
    service.on("GET", "/v1/jobs/job_1", answer)
    with pytest.raises(kind) as caught:
        client.jobs.get("job_1")
    error = caught.value
    assert isinstance(error, StiefelApiError)
    assert (error.code, error.fix, error.request_id) == ("some_code", "Exclude it", "req_1")
    assert error.errors[0]["pointer"] == "/spec/include/0"
    assert error.allowed_actions == ("cancel",)
    assert "4096" in str(error)


def test_an_answer_that_is_no_problem_document_is_still_an_error(service, client) -> None:
    service.on("GET", "/v1/jobs/job_1", Answer(502, b"<html>proxy</html>"))
    with pytest.raises(ServerError, match="502"):
        client.jobs.get("job_1")


def test_nobody_at_home_says_how_to_start_it() -> None:
    nowhere = Stiefel("http://127.0.0.1:1", retry=RetryPolicy(attempts=2, first=0.01))
    with nowhere, pytest.raises(ServiceUnreachableError) as caught:
        nowhere.jobs.get("job_1")
    assert "stiefel serve" in str(caught.value.fix)


def test_ids_cannot_change_the_path(service, client) -> None:
    with pytest.raises(NotFoundError):
        client.jobs.get("../keys?x=1")
    assert service.requests[0].path == "/v1/jobs/..%2Fkeys%3Fx%3D1"


def test_lists_actions_and_methods(service, client) -> None:
    page = {"data": [JOB], "has_more": True, "next": "job_1"}
    service.on("GET", "/v1/jobs", Answer(200, page))
    service.on("POST", "/v1/jobs/job_1/cancel", Answer(202, JOB | {"status": "cancelling"}))
    method = {"name": "project.unitary", "summary": "nearest", "schema": {"type": "object"}}
    service.on("GET", "/v1/methods", Answer(200, {"data": [method]}))
    found = client.jobs.list(status=["running"], label=["team=nlp"])
    assert (found.data[0].id, found.next) == ("job_1", "job_1")
    assert service.requests[0].query == "status=running&label=team%3Dnlp&limit=50"
    assert client.jobs.cancel("job_1").status == "cancelling"
    assert client.methods.list()[0].json_schema == {"type": "object"}


def test_the_asynchronous_client_does_the_same(service) -> None:
    service.on("POST", "/v1/jobs", problem(503, "busy", "later"), Answer(202, JOB))
    service.on("GET", "/v1/jobs/job_1", problem(404, "not_found", "unknown"))

    async def run() -> None:
        quick = RetryPolicy(attempts=3, first=0.01)
        async with AsyncStiefel(service.url, "key", retry=quick) as client:
            assert (await client.jobs.submit({"method": "m"})).id == "job_1"
            with pytest.raises(NotFoundError):
                await client.jobs.get("job_1")

    asyncio.run(run())
    keys = {r.headers["idempotency-key"] for r in service.seen("POST", "/v1/jobs")}
    assert len(keys) == 1
