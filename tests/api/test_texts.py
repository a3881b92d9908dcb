"""Text that one database would keep and the other refuse is refused the same by both."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from house import problem, submit

from stiefel_api.problems import Problem, respond
from stiefel_api.texts import check_body

SPEC = {"method": "project.unitary", "input": "art_0"}
LONE = "\ud800"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/jobs/%00", "not_found"),
        ("GET", "/v1/jobs/a%00b/events", "not_found"),
        ("POST", "/v1/jobs/%00/cancel", "not_found"),
        ("GET", "/v1/batches/%00", "not_found"),
        ("GET", "/v1/batches/%00/report", "not_found"),
        ("GET", "/v1/artifacts/%00", "artifact_not_found"),
        ("GET", "/v1/artifacts/%00/content", "artifact_not_found"),
        ("GET", "/v1/uploads/%00", "upload_not_found"),
        ("PUT", "/v1/uploads/%00/parts/1", "upload_not_found"),
        ("GET", "/v1/methods/%00", "unknown_method"),
        ("DELETE", "/v1/keys/%00", "not_found"),
        ("GET", "/%00", "route_not_found"),
    ],
)
def test_nul_in_an_id_is_an_unknown_id(
    client: httpx.Client, method: str, path: str, code: str
) -> None:
    problem(client.request(method, path), 404, code)


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/v1/jobs?batch=%00", "batch"),
        ("/v1/jobs?limit=5&label=a:%00", "label"),
        ("/v1/jobs?label=%00:a", "label"),
        ("/v1/artifacts?job=%00", "job"),
        ("/v1/jobs/{job}/metrics?name=%00", "name"),
        ("/v1/jobs/{job}/metrics?after=1:a%00", "after"),
        ("/v1/jobs?%00=1", "\x00"),
    ],
)
def test_nul_in_a_query_is_refused_by_name(client: httpx.Client, path: str, parameter: str) -> None:
    answer = client.get(path.format(job=submit(client)["id"]) if "{" in path else path)
    (fault,) = problem(answer, 422, "invalid_request")["errors"]
    assert (fault["parameter"], fault["in"]) == (parameter, "query")


@pytest.mark.parametrize("odd", ["\x00", LONE, "a\udfffb"])
@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/v1/jobs", {"spec": SPEC, "labels": {"a": "ODD"}}, "/labels/a"),
        ("/v1/jobs", {"spec": {**SPEC, "exclude": ["x", "ODD"]}}, "/spec/exclude/1"),
        ("/v1/jobs", {"spec": {"method": "ODD"}}, "/spec/method"),
        ("/v1/batches", {"spec": SPEC, "name": "ODD"}, "/name"),
        ("/v1/batches", {"spec": SPEC, "grid": {"method": ["ODD"]}}, "/grid/method/0"),
        ("/v1/batches", {"jobs": [{"custom_id": "a", "spec": {"b": "ODD"}}]}, "/jobs/0/spec/b"),
        ("/v1/keys", {"name": "ODD"}, "/name"),
        ("/v1/uploads", {"filename": "ODD", "size": 1}, "/filename"),
    ],
)
def test_odd_text_in_a_body_is_refused_by_its_place(
    client: httpx.Client, path: str, body: dict[str, Any], pointer: str, odd: str
) -> None:
    text = json.dumps(body).replace("ODD", json.dumps(odd)[1:-1])
    answer = client.post(path, content=text, headers={"Content-Type": "application/json"})
    (fault,) = problem(answer, 422, "invalid_request")["errors"]
    assert fault["pointer"] == pointer


@pytest.mark.parametrize("odd", ["\x00", LONE])
def test_names_of_fields_are_text_too(client: httpx.Client, odd: str) -> None:
    body = json.dumps({"spec": {**SPEC, "input": {odd: "art_0"}}, "labels": {}})
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/jobs", content=body, headers=headers)
    problem(answer, 422, "invalid_request")
    path = f"/v1/jobs/{submit(client)['id']}"
    answer = client.patch(
        path, content=json.dumps({"labels": {odd: "x"}}), headers={**headers, "If-Match": "*"}
    )
    problem(answer, 422, "invalid_request")


def test_other_characters_are_kept(client: httpx.Client) -> None:
    name = "\x01 \u00fc \U0001f600 \ufffd"
    job = submit(client, labels={"name": name})
    assert client.get(f"/v1/jobs/{job['id']}").json()["labels"] == {"name": name}
    found = client.get("/v1/jobs", params={"label": f"name:{name}"}).json()["data"]
    assert [each["id"] for each in found] == [job["id"]]


def test_a_problem_can_quote_what_has_no_bytes() -> None:
    quoted = Problem(422, "x", f"a {LONE} \u00fc", errors=[{"pointer": f"/{LONE}", "message": ""}])
    answer = respond({"path": "/", "state": {}}, quoted)
    assert json.loads(bytes(answer.body))["detail"] == "a ? \u00fc"


def test_a_deep_body_is_searched_without_recursion() -> None:
    body: Any = LONE
    for _ in range(100_000):
        body = [body]
    with pytest.raises(Problem):
        check_body(body)


@pytest.mark.parametrize("tag", ["\u00b2", '"\u00b2"', "7" * 5000, "-1", "1_0", 'W/"1"', ""])
def test_a_version_that_is_none_matches_nothing(client: httpx.Client, tag: str) -> None:
    path = f"/v1/jobs/{submit(client)['id']}"
    headers: Any = {b"If-Match": tag.encode("latin-1")}
    problem(client.patch(path, json={}, headers=headers), 412, "version_mismatch")


def test_a_number_beyond_the_database_is_refused(client: httpx.Client) -> None:
    path = f"/v1/jobs/{submit(client)['id']}/events"
    assert client.get(path, params={"after": 2**63 - 1}).json()["data"] == []
    for number in (2**63, 10**20, 10**400):
        problem(client.get(path, params={"after": number}), 422, "invalid_request")
