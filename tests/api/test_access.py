from __future__ import annotations

import time

import httpx
import pytest
from house import House, problem, submit
from sqlalchemy import func, select

from stiefel_jobs.states import LEASED
from stiefel_jobs.store import keys
from stiefel_jobs.tables import jobs

ALLOWED = {
    "jobs:read": [("GET", "/v1/jobs"), ("GET", "/v1/jobs/job_0")],
    "jobs:write": [("POST", "/v1/jobs"), ("POST", "/v1/jobs/job_0/cancel")],
    "artifacts:read": [
        ("GET", "/v1/artifacts"),
        ("GET", "/v1/artifacts/art_0/content"),
        ("GET", "/v1/jobs/job_0/files/x"),
    ],
    "artifacts:write": [
        ("POST", "/v1/uploads"),
        ("PUT", "/v1/uploads/x"),
        ("DELETE", "/v1/artifacts/art_0"),
    ],
    "admin": [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/key_0")],
}
OPEN = ["/healthz", "/readyz", "/metrics", "/openapi.json"]


@pytest.mark.parametrize("scope", ALLOWED)
def test_a_key_opens_what_its_scopes_say(embedded: House, scope: str) -> None:
    with embedded.client(embedded.new_key("scoped", scope)) as client:
        for other, routes in ALLOWED.items():
            for method, path in routes:
                answer = client.request(method, path)
                if other == scope or scope == "admin":
                    assert answer.status_code not in {401, 403}, (method, path)
                else:
                    assert other in problem(answer, 403, "scope_missing")["detail"]


def test_no_key_no_entry(embedded: House) -> None:
    good = embedded.new_key("t")
    wrong = [
        "stf_nonsense",
        good[:-1] + ("a" if good[-1] != "a" else "b"),
        good.replace("stf_", "stf_x"),
        good.upper(),
        "",
    ]
    with httpx.Client(base_url=embedded.url) as client:
        for path in OPEN:
            assert client.get(path).status_code == 200
        for routes in ALLOWED.values():
            for method, path in routes:
                answer = client.request(method, path)
                problem(answer, 401, "key_missing")
                assert answer.headers["www-authenticate"] == "Bearer"
        for secret in wrong[:-1]:
            answer = client.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
            problem(answer, 401, "key_invalid")


def test_a_well_formed_key_that_was_never_issued(embedded: House) -> None:
    body = f"stf_{'A' * 10}_{'B' * 43}"
    forged = body + keys._checksum(body)
    with embedded.client(forged) as client:
        problem(client.get("/v1/jobs"), 401, "key_invalid")


def test_keys_are_made_used_and_revoked(house: House, client: httpx.Client, tenant: str) -> None:
    body = {"name": "ci", "scopes": ["jobs:read"], "expires_in": "PT1H"}
    answer = client.post("/v1/keys", json=body)
    assert answer.status_code == 201
    made = answer.json()
    assert made["secret"].startswith(made["prefix"])

    with house.client(made["secret"]) as other:
        who = other.get("/v1/whoami").json()
        assert (who["tenant"], who["scopes"]) == (tenant, ["jobs:read"])
        assert who["key"]["id"] == made["id"]
        listed = {key["id"]: key for key in client.get("/v1/keys").json()["data"]}
        assert listed[made["id"]]["last_used_at"]
        assert all("secret" not in key for key in listed.values())
        assert made["secret"] not in client.get("/v1/keys").text
        for _ in range(2):
            assert client.delete(f"/v1/keys/{made['id']}").status_code == 204
        problem(other.get("/v1/whoami"), 401, "key_invalid")


def test_an_expired_key_is_no_key(house: House) -> None:
    _, secret = keys.create_key(
        house.db, tenant="t", name="old", scopes=["admin"], expires_at=time.time() - 1
    )
    with house.client(secret) as client:
        problem(client.get("/v1/whoami"), 401, "key_invalid")


def test_faulty_keys_are_not_made(client: httpx.Client) -> None:
    for body in ({"name": ""}, {"name": "x", "scopes": ["root"]}, {"name": "x", "scopes": []}):
        problem(client.post("/v1/keys", json=body), 422, "invalid_request")
    problem(
        client.post("/v1/keys", json={"name": "x", "expires_in": "-PT1H"}), 422, "invalid_request"
    )


def test_methods_come_with_their_schemas(client: httpx.Client) -> None:
    methods = {method["name"]: method for method in client.get("/v1/methods").json()["data"]}
    assert {"project.unitary", "factorize.low_rank"} <= methods.keys()
    for name, method in methods.items():
        assert method["summary"]
        assert method["schema"]["additionalProperties"] is False
        assert "method" in method["schema"]["required"]
        assert client.get(f"/v1/methods/{name}").json() == method


def test_figures_for_prometheus(client: httpx.Client, house: House) -> None:
    submit(client)
    with house.db.read() as connection:  # other tests leave some behind
        lapsed = jobs.c.state.in_(list(LEASED)) & (jobs.c.lease_until < house.db.now)
        expired = connection.execute(select(func.count()).where(lapsed)).scalar_one()
    text = httpx.get(f"{house.url}/metrics").text
    assert 'stiefel_jobs{queue="cpu",state="queued"}' in text
    assert 'stiefel_oldest_queued_seconds{queue="cpu"}' in text
    assert f"stiefel_expired_leases {float(expired)}\n" in text
    assert 'stiefel_http_requests_total{method="POST",route="/v1/jobs",status="202"}' in text
    assert "stiefel_waiting_requests" in text
