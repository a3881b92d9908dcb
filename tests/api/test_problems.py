from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from house import House, problem, running, submit

from stiefel_api.app import create_app
from stiefel_api.meters import Meters
from stiefel_api.shell import Shell
from stiefel_jobs.settings import Settings
from stiefel_jobs.store import outbox

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client(embedded: House) -> Any:
    with embedded.client() as open_client:
        yield open_client


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "route_not_found"),
        ("GET", "/v1", 404, "route_not_found"),
        ("GET", "/v1/jobs/", 404, "route_not_found"),
        ("GET", "/v1/jobs/../keys/x", 405, "method_not_allowed"),
        ("PUT", "/v1/uploads/", 404, "route_not_found"),
        ("DELETE", "/v1/jobs", 405, "method_not_allowed"),
        ("PATCH", "/healthz", 405, "method_not_allowed"),
        ("GET", "/v1/jobs/job_0", 404, "not_found"),
        ("GET", "/v1/batches/batch_0", 404, "not_found"),
        ("GET", "/v1/batches/batch_0/report", 404, "not_found"),
        ("POST", "/v1/batches/batch_0/cancel", 404, "not_found"),
        ("GET", "/v1/batches/batch_0/report?format=xml", 422, "invalid_request"),
        ("GET", "/v1/artifacts/art_0", 404, "artifact_not_found"),
        ("GET", "/v1/uploads/upl_0", 404, "upload_not_found"),
        ("GET", "/v1/methods/x", 404, "unknown_method"),
        ("DELETE", "/v1/keys/key_0", 404, "not_found"),
        ("GET", "/v1/jobs?limit=x", 422, "invalid_request"),
        ("GET", "/v1/jobs/job_0?wait=-1", 422, "invalid_request"),
        ("GET", "/v1/jobs/job_0?wait=1e9", 422, "invalid_request"),
        ("GET", "/v1/jobs/job_0?wait=nan", 422, "invalid_request"),
    ],
)
def test_every_refusal_is_a_problem(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    problem(client.request(method, path), status, code)


def test_a_method_that_is_not_allowed_names_those_that_are(client: httpx.Client) -> None:
    answer = client.delete("/v1/jobs")
    assert {"GET", "POST"} & set(answer.headers["allow"].replace(",", " ").split())


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "malformed_json"),
        (b"\xff\xfe", JSON, 400, "malformed_json"),
        (b"[1]", JSON, 422, "invalid_request"),
        (b"null", JSON, 422, "invalid_request"),
        (b"", JSON, 422, "invalid_request"),
        (b"{}", {"Content-Type": "text/plain"}, 415, "json_expected"),
        (b"{}", {}, 415, "json_expected"),
        (b"{}", JSON, 422, "invalid_request"),
        (b'{"spec": ' + b"[" * 100_000 + b"}", JSON, 400, "malformed_json"),
        (b'{"spec": {"seed": 1e999, "method": "project.unitary"}}', JSON, 422, "invalid_spec"),
        (b'{"spec": {"seed": ' + b"[" * 300 + b"]" * 300 + b"}}", JSON, 422, "invalid_request"),
        (b'{"spec": {"include": [' + b"[]," * 30_000 + b"[]]}}", JSON, 422, "invalid_request"),
        (b" " * (2**20 + 1), JSON, 413, "body_too_large"),
    ],
)
def test_every_bad_body_is_a_problem(
    client: httpx.Client, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    problem(client.post("/v1/jobs", content=body, headers=headers), status, code)


def test_a_body_that_never_says_its_length_is_limited_too(client: httpx.Client) -> None:
    pieces = (b" " * 100_000 for _ in range(20))
    problem(client.post("/v1/jobs", content=pieces, headers=JSON), 413, "body_too_large")


def test_every_answer_carries_the_security_headers(client: httpx.Client) -> None:
    for path in ("/healthz", "/v1/jobs", "/nothing"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_odd_headers_do_no_harm(client: httpx.Client) -> None:
    for headers in (
        {"If-None-Match": "\x80"},
        {"Prefer": "wait=" + "9" * 100},
        {"Range": "bytes=" + "9" * 100 + "-"},
        {"traceparent": "x"},
        {"Last-Event-ID": "-1"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer " + "x" * 10_000},
    ):
        raw = {k.encode(): v.encode("latin-1") for k, v in headers.items()}
        assert client.get("/v1/jobs", headers=raw).status_code in {200, 401}  # type: ignore[arg-type]


def test_garbage_on_the_wire_is_answered(embedded: House) -> None:
    with socket.create_connection(("127.0.0.1", embedded.settings.api_port), timeout=10) as raw:
        raw.sendall(b"\x00\x01 nonsense\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


async def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **options)


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_a_fault_of_the_service_tells_nothing_of_its_inside(tmp_path: Path) -> None:
    """The database has no tables: an error that nobody foresaw."""
    app = create_app(Settings(data_dir=tmp_path, insecure=True))
    answer = run(ask(app, "GET", "/v1/jobs"))
    document = problem(answer, 500, "internal_error")
    assert document["retryable"]
    assert "sqlite" not in answer.text.lower()
    assert "jobs" not in document["detail"]


def test_a_database_that_is_away_is_worth_another_try(tmp_path: Path) -> None:
    url = "postgresql://someone:secret@127.0.0.1:1/stiefel"
    app = create_app(Settings(data_dir=tmp_path, database_url=url, insecure=True))
    answer = run(ask(app, "GET", "/v1/jobs/job_0"))
    document = problem(answer, 503, "database_unavailable")
    assert document["retryable"]
    assert answer.headers["retry-after"] == "1"
    for inside in ("127.0.0.1", "someone", "secret", "psycopg", "refused"):
        assert inside not in answer.text


def test_readiness_names_what_is_missing(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, broker_url="redis://127.0.0.1:1/0")
    answer = run(ask(create_app(settings), "GET", "/readyz"))
    assert answer.status_code == 503
    assert answer.json()["status"] == "not_ready"
    assert answer.json()["checks"]["store"] == "ok"
    assert "Error" in answer.json()["checks"]["broker"]
    assert "127.0.0.1" not in answer.text


def test_a_lost_broker_loses_no_job(tmp_path: Path) -> None:
    with (
        running(
            tmp_path,
            database_url=f"sqlite:///{tmp_path}/jobs.db",
            broker_url="redis://127.0.0.1:1/0",
            migrated=True,
        ) as house,
        house.client() as client,
    ):
        assert client.get("/readyz").status_code == 200, "workers find jobs by polling too"
        job = submit(client)
        time.sleep(1)
        assert [row.job_id for row in outbox.unsent(house.db)] == [job["id"]]
        assert house.work(job["id"]).job_id == job["id"]


def test_a_client_that_falls_silent_is_given_up() -> None:
    """Straight through the middleware, with half a second of patience."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the body never came")

    async def receive() -> Any:
        await asyncio.sleep(10)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": [], "state": {}}
    shell = Shell(app, meters=Meters(), max_body=100, idle_s=0.5)
    run(shell(scope, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["code"] == "body_timeout"
