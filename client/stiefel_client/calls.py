"""Every request as a value: what to send and how to read the answer.

The sync and the async client differ only in how they carry a call out, so a route is
described here once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import httpx

from stiefel_client.models import Artifact, Checkpoint, Event, Job, Method, Page, Plan, Upload
from stiefel_client.retries import retry_after
from stiefel_client.sse import STREAM_TYPE

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. ``repeatable``: sending it twice has the effect of sending it once."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    timeout: float | None = None  # seconds to wait for the answer; None: the client's own

    def arguments(self, default_timeout: float) -> dict[str, Any]:
        """Keyword arguments for ``httpx.Client.request``."""
        params = {name: value for name, value in self.params.items() if value is not None}
        return {
            "method": self.method,
            "url": self.path,
            "params": params,
            "json": self.json,
            "headers": dict(self.headers),
            "timeout": httpx.Timeout(self.timeout or default_timeout, connect=10.0),
        }


class Reading(NamedTuple, Generic[T]):
    """A job or batch as of one look: ``found`` is None when nothing changed since ``etag``."""

    found: T | None
    etag: str | None
    retry_after: float | None


class Submission(NamedTuple):
    """A submitted job; ``replayed``: the key had been used before and this is that job."""

    job: Job
    replayed: bool


def submit_job(
    spec: Mapping[str, Any], *, idempotency_key: str | None = None, **options: Any
) -> Call[Submission]:
    """POST a job; ``options`` (labels, priority, deadline, ...) stand beside the spec."""
    body = {"spec": dict(spec), **given(options)}

    def parse(response: httpx.Response) -> Submission:
        replayed = response.headers.get("idempotency-replayed", "").lower() == "true"
        return Submission(Job.model_validate(response.json()), replayed)

    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return Call("POST", "/v1/jobs", parse, json=body, headers=headers)


def plan_job(spec: Mapping[str, Any], **options: Any) -> Call[Plan]:
    """POST a dry run: what the job would do, without a job."""
    body = {"spec": dict(spec), **given(options)}
    return Call("POST", "/v1/jobs", reader(Plan), params={"dry_run": "true"}, json=body)


def get_job(job_id: str) -> Call[Job]:
    """One job as it is now."""
    return Call("GET", _job(job_id), reader(Job))


def looking_at_job(job_id: str) -> Callable[[float, str | None], Call[Reading[Job]]]:
    """Return what looks at one job again and again."""
    return lambda wait, etag: look_at(_job(job_id), Job, wait=wait, etag=etag)


def look_at(path: str, model: type[T], *, wait: float, etag: str | None) -> Call[Reading[T]]:
    """A resource, held back up to ``wait`` seconds until it has changed since ``etag``."""
    read = reader(model)

    def parse(response: httpx.Response) -> Reading[T]:
        found = None if response.status_code == 304 else read(response)
        return Reading(found, response.headers.get("etag"), retry_after(response))

    return Call(
        "GET",
        path,
        parse,
        params={"wait": f"{wait:g}"} if wait > 0 else {},
        headers={"If-None-Match": etag} if etag else {},
        timeout=wait + 30.0,
    )


def list_jobs(
    *,
    status: Sequence[str],
    label: Sequence[str],
    batch: str | None,
    after: str | None,
    limit: int,
) -> Call[Page[Job]]:
    """One page of jobs, newest first."""
    params = {"status": list(status) or None, "label": list(label) or None, "batch": batch}
    return Call(
        "GET", "/v1/jobs", reader(Page[Job]), params={**params, "after": after, "limit": limit}
    )


def act_on_job(job_id: str, action: str) -> Call[Job]:
    """POST cancel, pause, resume or retry."""
    return Call("POST", f"{_job(job_id)}/{action}", reader(Job))


def list_events(job_id: str, *, after: int, limit: int) -> Call[Page[Event]]:
    """Events with ``seq`` beyond ``after``, oldest first."""
    params = {"after": after, "limit": limit}
    return Call("GET", f"{_job(job_id)}/events", reader(Page[Event]), params=params)


def stream_events(job_id: str, *, after: int, silence: float) -> Call[None]:
    """The live stream of events beyond ``after``; read line by line, hence without a parser.

    ``silence``: seconds without a line after which the connection counts as broken.
    """
    headers = {"Accept": STREAM_TYPE, "Cache-Control": "no-store"}
    if after:
        headers["Last-Event-ID"] = str(after)
    return Call("GET", f"{_job(job_id)}/events", _nothing, headers=headers, timeout=silence)


def get_json(path: str) -> Call[Any]:
    """Any resource as plain JSON."""
    return Call("GET", path, httpx.Response.json)


def job_part(job_id: str, part: str) -> Call[Any]:
    """``metrics``, ``attempts`` or ``checkpoints`` of a job as plain JSON."""
    return get_json(f"{_job(job_id)}/{part}")


def list_checkpoints(job_id: str) -> Call[Page[Checkpoint]]:
    """The checkpoints that are kept, oldest first."""
    return Call("GET", f"{_job(job_id)}/checkpoints", reader(Page[Checkpoint]))


def job_file(job_id: str, name: str) -> str:
    """The path under which a finished job's file is read."""
    return f"{_job(job_id)}/files/{quote(name, safe='')}"


def create_upload(filename: str, *, size: int, sha256: str | None) -> Call[Upload | Artifact]:
    """Announce an upload; an artifact comes back at once when the bytes are already owned."""

    def parse(response: httpx.Response) -> Upload | Artifact:
        body = response.json()
        is_upload = "part_size" in body and not body.get("artifact")
        return Upload.model_validate(body) if is_upload else _artifact(body)

    body = given({"filename": filename, "size": size, "sha256": sha256})
    return Call("POST", "/v1/uploads", parse, json=body)


def get_upload(upload_id: str) -> Call[Upload]:
    """An upload and which parts of it have arrived."""
    return Call("GET", _upload(upload_id), reader(Upload))


def complete_upload(upload_id: str) -> Call[Artifact]:
    """Turn the arrived parts into an artifact; the service hashes them."""
    path = f"{_upload(upload_id)}/complete"
    return Call("POST", path, lambda r: _artifact(r.json()), timeout=600.0)


def abort_upload(upload_id: str) -> Call[None]:
    """Drop an upload and its parts."""
    return Call("DELETE", _upload(upload_id), _nothing)


def get_artifact(artifact_id: str) -> Call[Artifact]:
    """One artifact's record."""
    return Call("GET", _artifact_path(artifact_id), reader(Artifact))


def list_artifacts(*, after: str | None, limit: int) -> Call[Page[Artifact]]:
    """One page of artifacts, newest first."""
    params = {"after": after, "limit": limit}
    return Call("GET", "/v1/artifacts", reader(Page[Artifact]), params=params)


def delete_artifact(artifact_id: str) -> Call[None]:
    """Delete an artifact."""
    return Call("DELETE", _artifact_path(artifact_id), _nothing)


def artifact_content(artifact_id: str) -> str:
    """The path under which an artifact's bytes are read."""
    return f"{_artifact_path(artifact_id)}/content"


def list_methods() -> Call[list[Method]]:
    """What the service offers."""

    def parse(response: httpx.Response) -> list[Method]:
        body = response.json()
        rows = body.get("data", body) if isinstance(body, dict) else body
        return [Method.model_validate(row) for row in rows]

    return Call("GET", "/v1/methods", parse)


def get_method(name: str) -> Call[Method]:
    """One method with the JSON Schema of its spec."""
    return Call("GET", f"/v1/methods/{quote(name, safe='')}", reader(Method))


def create_key(name: str, scopes: Sequence[str]) -> Call[Any]:
    """Make a key; its secret is in this one answer and never again."""
    body = given({"name": name, "scopes": list(scopes) or None})
    return Call("POST", "/v1/keys", httpx.Response.json, json=body, repeatable=False)


def revoke_key(key_id: str) -> Call[None]:
    """Make a key worthless at once."""
    return Call("DELETE", f"/v1/keys/{quote(key_id, safe='')}", _nothing)


def reader(model: type[T]) -> Callable[[httpx.Response], T]:
    """Return what reads an answer as this model."""

    def parse(response: httpx.Response) -> T:
        parsed: T = model.model_validate(response.json())  # type: ignore[attr-defined]
        return parsed

    return parse


def _artifact(body: Mapping[str, Any]) -> Artifact:
    inner = body.get("artifact")
    return Artifact.model_validate(inner if isinstance(inner, dict) else body)


def _nothing(response: httpx.Response) -> None:
    return None


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _upload(upload_id: str) -> str:
    return f"/v1/uploads/{quote(upload_id, safe='')}"


def _artifact_path(artifact_id: str) -> str:
    return f"/v1/artifacts/{quote(artifact_id, safe='')}"
