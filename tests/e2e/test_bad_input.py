"""Hostile and mistaken input: each its own answer, which names what is wrong and what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import httpx
import pytest
from checkpoints import hostile, matrices, not_finite, rank_deficient
from stacks import make_key

from stiefel_client import (
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    Stiefel,
    StiefelApiError,
)

HOSTILE = hostile()


@pytest.fixture
def small(local, tmp_path: Path) -> str:
    return local.uploads.upload(matrices(tmp_path / "model.safetensors", count=2, side=8)).id


def submit(client: Stiefel, **spec) -> StiefelApiError:
    with pytest.raises(StiefelApiError) as caught:
        client.jobs.submit(spec)
    check_problem(caught.value)
    return caught.value


def check_problem(error: StiefelApiError) -> None:
    assert 400 <= error.status < 500
    assert error.request_id
    assert error.fix, error.code
    assert "Traceback" not in str(error.problem)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(local, tmp_path, name) -> None:
    content, code = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(StiefelApiError) as caught:
        local.uploads.upload(path)
    check_problem(caught.value)
    assert caught.value.code == code


def test_another_name_does_not_help_a_pickle(local, tmp_path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(HOSTILE["pickle"][0])
    with pytest.raises(BadRequestError, match="pickle"):
        local.uploads.upload(path)


def test_a_file_that_may_be_kept_is_not_therefore_weights(local, tmp_path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("The proof is left to the reader. " * 20)
    source = local.uploads.upload(path)
    error = submit(local, method="project.unitary", input=source.id)
    assert error.code == "not_safetensors"
    assert error.errors[0]["pointer"].startswith("/spec/input")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_fail_the_job_by_name(local, tmp_path, value) -> None:
    source = local.uploads.upload(not_finite(tmp_path / "model.safetensors", value))
    job = local.jobs.submit({"method": "project.unitary", "input": source.id})
    done = local.jobs.wait(job.id, timeout=60)
    assert done.status == "failed"
    assert (done.error.code, done.error.blame) == ("non_finite_weights", "user")
    assert done.error.tensor == "poisoned"
    assert "[1, 2]" in done.error.detail
    assert done.error.fix
    assert done.result is None
    assert len(local.jobs.attempts(job.id)["data"]) == 1  # the caller's fault is not retried


@pytest.mark.parametrize(
    ("name", "code"), [("deficient", "rank_deficient"), ("zero", "zero_matrix")]
)
def test_a_matrix_without_one_nearest_is_named(local, tmp_path, name, code) -> None:
    source = local.uploads.upload(rank_deficient(tmp_path / "model.safetensors"))
    spec = {"method": "project.unitary", "input": source.id, "include": [name]}
    done = local.jobs.wait(local.jobs.submit(spec).id, timeout=60)
    assert (done.status, done.error.code, done.error.tensor) == ("failed", code, name)
    done = local.jobs.wait(local.jobs.submit(spec | {"singular": "complete"}).id, timeout=60)
    assert done.succeeded, done.error


def test_a_vector_is_skipped_with_its_reason_or_named_when_alone(local, small) -> None:
    plan = local.jobs.plan({"method": "project.unitary", "input": small})
    (skipped,) = plan.tensors_skipped
    assert skipped["name"] == "bias"
    assert skipped["reason"]
    error = submit(local, method="project.unitary", input=small, include=["bias"])
    assert "bias" in error.detail


def test_unknown_fields_methods_and_patterns_are_pointed_at(local, small) -> None:
    error = submit(local, method="project.unitary", input=small, ranks=3)
    assert error.errors[0]["pointer"] == "/spec/ranks"
    error = submit(local, method="project.unitray", input=small)
    assert (error.code, error.errors[0]["pointer"]) == ("unknown_method", "/spec/method")
    assert "project.unitary" in str(error.fix)
    error = submit(local, method="project.unitary", input=small, include=["q_proj*"])
    assert error.errors[0]["pointer"].startswith("/spec/include")
    assert "q_proj*" in error.detail
    rule = {"by": "energy", "value": 1.5}
    error = submit(local, method="factorize.low_rank", input=small, rule=rule)
    assert error.errors[0]["pointer"] == "/spec/rule/value"


def test_what_is_foreign_is_as_unknown_as_what_never_was(stack, client, tmp_path) -> None:
    path = matrices(tmp_path / "model.safetensors", count=1, side=8)
    mine = client.uploads.upload(path)
    job = client.jobs.submit({"method": "project.unitary", "input": mine.id})
    assert client.jobs.wait(job.id, timeout=60).succeeded
    with stack.client(make_key(stack.database, "stranger")) as other:
        for call in (
            lambda: other.jobs.get(job.id),
            lambda: other.jobs.cancel(job.id),
            lambda: other.jobs.attempts(job.id),
            lambda: list(other.jobs.events(job.id)),
            lambda: other.artifacts.get(mine.id),
            lambda: other.artifacts.delete(mine.id),
            lambda: other.jobs.submit({"method": "project.unitary", "input": mine.id}),
        ):
            with pytest.raises(NotFoundError) as foreign:
                call()
            assert foreign.value.status == 404
        assert other.jobs.list().data == []
        # Its own copy of the same bytes: what another tenant has is not told.
        assert other.uploads.upload(path).id != mine.id
        unknown = problem_of(other, mine.id[:-4] + "0000")
        assert problem_of(other, mine.id) == unknown


def problem_of(client: Stiefel, artifact_id: str) -> dict[str, object]:
    with pytest.raises(NotFoundError) as caught:
        client.artifacts.get(artifact_id)
    problem = caught.value.problem
    return {
        name: str(value).replace(artifact_id, "ID")
        for name, value in problem.items()
        if name != "request_id"
    }


def test_an_expired_upload_says_so(local, embedded_stack, tmp_path) -> None:
    begun = local.http.post("/v1/uploads", json={"filename": "late.bin", "size": 4}).json()
    with sqlite3.connect(embedded_stack.database.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE uploads SET expires_at = 1 WHERE id = ?", (begun["id"],))
    database.close()
    late = local.http.put(begun["parts"][0]["url"], content=b"1234")
    assert late.status_code in (404, 410)
    assert late.json()["fix"]


def test_a_wrong_key_opens_nothing(stack) -> None:
    with stack.client("stf_wrong") as stranger, pytest.raises(AuthenticationError) as caught:
        stranger.jobs.list()
    check_problem(caught.value)
    assert httpx.get(f"{stack.url}/v1/jobs", trust_env=False).status_code == 401


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"spec": 1}', b'{"spec": {}}', b"\xff"])
def test_a_broken_body_is_a_problem_not_a_crash(local, body) -> None:
    headers = {"Content-Type": "application/json"}
    answer = local.http.post("/v1/jobs", content=body, headers=headers)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"]


def test_nothing_is_left_half_written(local, tmp_path) -> None:
    before = {artifact.id for artifact in local.artifacts.list().data}
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE["truncated"][0])
    with pytest.raises(BadRequestError):
        local.uploads.upload(path)
    assert {artifact.id for artifact in local.artifacts.list().data} == before
