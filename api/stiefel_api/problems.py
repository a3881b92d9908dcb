"""Every refusal as a problem document (RFC 9457): what is wrong, where, and what to do.

A problem has a stable ``code`` for programs, a ``detail`` and a ``fix`` for people, and a
``request_id`` for whoever searches the logs. Nothing of the inside of the service is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from stiefel.errors import StiefelError
from stiefel.specs.base import InvalidSpecError
from stiefel_jobs.errors import ActionNotAllowedError, StoreError
from stiefel_jobs.outages import is_outage

MEDIA_TYPE = "application/problem+json"
FAULTS = "Try again; if it persists, report the request_id to whoever runs the service."

# Codes of the store -> status; anything else that the store refuses is a conflict.
_STATUS: dict[str, int] = {
    "not_found": 404,
    "artifact_not_found": 404,
    "upload_not_found": 404,
    "idempotency_conflict": 422,
    "limit_reached": 429,
    "storage_full": 413,
    "upload_expired": 410,
    "upload_aborted": 410,
    "part_unknown": 404,
    "version_mismatch": 412,
}


class Problem(Exception):  # noqa: N818 - the standard's name for it
    """A refusal, raised anywhere below a route.

    Args:
        status: HTTP status.
        code: stable slug such as ``artifact_not_found``.
        detail: what is wrong, naming the field, tensor or id.
        fix: what the caller can do.
        errors: one ``{"pointer", "message"}`` per faulty place of the request's body.
        headers: to send along, for example ``Retry-After``.
        extra: further members of the document.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        fix: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.fix = fix
        self.errors = errors
        self.headers = dict(headers or {})
        self.extra = extra

    def document(self, *, instance: str, request_id: str) -> dict[str, Any]:
        """Return the document that the caller gets."""
        optional = {"fix": self.fix, "errors": [dict(e) for e in self.errors], **self.extra}
        return {
            "type": f"urn:stiefel:problem:{self.code.replace('_', '-')}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "instance": instance,
            "request_id": request_id,
            "retryable": self.status in {408, 429} or self.status >= 500,
            **{name: value for name, value in optional.items() if value},
        }


class _Answer(JSONResponse):
    """A document whose texts may quote what has no bytes in UTF-8, such as a lone surrogate."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def respond(scope: Mapping[str, Any], problem: Problem) -> Response:
    """Turn a problem into the response to the request of ``scope``."""
    request_id = scope.get("state", {}).get("request_id", "")
    document = problem.document(instance=scope["path"], request_id=request_id)
    return _Answer(document, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def internal() -> Problem:
    """Return what a caller may know of a fault of the service."""
    return Problem(500, "internal_error", "The service failed to answer.", fix=FAULTS)


def of_fault(error: Exception) -> Problem:
    """Translate what nobody foresaw; a database that is away now is worth another try."""
    if not is_outage(error):
        return internal()
    return Problem(
        503,
        "database_unavailable",
        "The database cannot be reached at present.",
        fix=FAULTS,
        headers={"Retry-After": "1"},
    )


def of_store(error: StoreError) -> Problem:
    """Translate a refusal by the job store."""
    status = _STATUS.get(error.code, 409)
    extra: dict[str, Any] = {}
    if isinstance(error, ActionNotAllowedError):
        extra["allowed_actions"] = list(error.allowed)
    headers = {"Retry-After": "10"} if status == 429 else None
    return Problem(status, error.code, error.detail, fix=error.fix, headers=headers, **extra)


def of_input(error: StiefelError, *, pointer: str = "") -> Problem:
    """Translate what core finds wrong with a spec or a file; ``pointer`` is where it came from."""
    if isinstance(error, InvalidSpecError):
        faults = [(p["field"], p["detail"]) for p in error.problems]
    else:
        faults = [(error.field or "", error.detail)]
    errors = [{"pointer": pointer + field, "message": message} for field, message in faults]
    extra: dict[str, Any] = {"tensor": error.tensor} if error.tensor else {}
    return Problem(422, error.code, error.detail, fix=error.fix, errors=errors, **extra)


def of_validation(error: RequestValidationError) -> Problem:
    """Translate a body, query or header that does not have the declared form."""
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        reason = faults[0].get("ctx", {}).get("error", "invalid")
        return Problem(
            400,
            "malformed_json",
            f"The body is not JSON: {reason} at character {faults[0]['loc'][-1]}.",
            fix="Send one JSON object.",
        )
    errors = [_fault(fault["loc"], fault["msg"]) for fault in faults]
    first = errors[0]
    where = first.get("pointer") or first.get("parameter") or "the body"
    return Problem(
        422,
        "invalid_request",
        f"{where}: {first['message']}",
        fix="Correct the fields listed in errors; GET /openapi.json describes each.",
        errors=errors,
    )


def _fault(location: Sequence[str | int], message: str) -> dict[str, str]:
    place, *path = location
    if place == "body":
        parts = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
        return {"pointer": "".join(f"/{part}" for part in parts), "message": message}
    return {"parameter": ".".join(map(str, path)), "in": str(place), "message": message}


_HTTP_FIX = {
    400: ("malformed_json", "Send one JSON object, not nested too deeply."),
    404: ("route_not_found", "GET /openapi.json lists every route."),
    405: ("method_not_allowed", "Use one of the methods in the Allow header."),
}


def of_http(error: HTTPException, path: str, method: str) -> Problem:
    """Translate what the framework refuses by itself."""
    code, fix = _HTTP_FIX.get(error.status_code, (f"http_{error.status_code}", None))
    details = {
        400: "The body cannot be read as JSON.",
        404: f"No route is named {path}.",
        405: f"{path} does not take {method}.",
    }
    detail = details.get(error.status_code, str(error.detail))
    return Problem(error.status_code, code, detail, fix=fix, headers=error.headers)


def install(app: FastAPI) -> None:
    """Make every deliberate error of this application a problem document."""

    def handler(translate: Any) -> Any:
        def handle(request: Request, error: Exception) -> Response:
            return respond(request.scope, translate(request, error))

        return handle

    app.add_exception_handler(Problem, handler(lambda _, error: error))
    app.add_exception_handler(StoreError, handler(lambda _, error: of_store(error)))
    app.add_exception_handler(StiefelError, handler(lambda _, error: of_input(error)))
    app.add_exception_handler(
        RequestValidationError, handler(lambda _, error: of_validation(error))
    )
    app.add_exception_handler(
        HTTPException,
        handler(lambda request, error: of_http(error, request.url.path, request.method)),
    )
