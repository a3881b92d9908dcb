"""Every error that the client raises on purpose.

StiefelClientError                  base: catch this one to catch them all
├── ConfigurationError              no URL, no key, or an unusable option
├── ServiceUnreachableError         no answer at all, after every retry
├── WaitTimeoutError                the job is still going when the caller's patience ended
├── TransferError                   bytes that did not arrive, or not those that were promised
├── UnreadableFileError             not a readable safetensors file, index or certificate
└── StiefelApiError                 the service answered with a problem document (RFC 9457)
    ├── BadRequestError             400, 413, 415, 422, 428: the request is wrong
    ├── AuthenticationError         401: no key, or one that is not valid
    ├── PermissionDeniedError       403: the key lacks a scope
    ├── NotFoundError               404, 410: unknown, foreign or expired
    ├── ConflictError               409, 412: not possible in the present state
    ├── RateLimitError              429: slow down
    └── ServerError                 5xx: the service is at fault
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx


class StiefelClientError(Exception):
    """Base of all deliberate errors of this package.

    Args:
        detail: what is wrong.
        fix: what the caller can do about it.
    """

    def __init__(self, detail: str, *, fix: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix


class ConfigurationError(StiefelClientError):
    """The service's URL or the key cannot be found, or an option is unusable."""


class ServiceUnreachableError(StiefelClientError):
    """The service did not answer, however often it was asked."""


class WaitTimeoutError(StiefelClientError):
    """The job was still unfinished when the time that the caller gave it was over."""


class TransferError(StiefelClientError):
    """An upload or download did not end with the bytes that were promised."""


class UnreadableFileError(StiefelClientError):
    """A local file is not what it should be: safetensors, index or certificate."""


class StiefelApiError(StiefelClientError):
    """The service refused: one problem document (RFC 9457), readable field by field.

    Attributes:
        status: HTTP status.
        code: stable slug of the problem, for example ``unknown_method``.
        detail: one sentence naming the field, tensor or id at fault.
        fix: what to do about it, where the service knows.
        errors: one entry per invalid field, each with ``pointer`` and ``message``.
        request_id: quote it when reporting a fault of the service.
        allowed_actions: for a conflict, what is possible now.
        problem: the whole document.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        detail = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
        fix = problem.get("fix")
        super().__init__(detail, fix=str(fix) if fix else None)
        self.status = status
        self.code = str(problem.get("code") or f"http_{status}")
        self.errors: Sequence[Mapping[str, Any]] = tuple(problem.get("errors") or ())
        request_id = problem.get("request_id")
        self.request_id = str(request_id) if request_id else None
        self.allowed_actions = tuple(problem.get("allowed_actions") or ())
        self.problem = dict(problem)

    def __str__(self) -> str:
        return f"{self.detail} [{self.code}, HTTP {self.status}]"


class BadRequestError(StiefelApiError):
    """The request itself is wrong."""


class AuthenticationError(StiefelApiError):
    """The key is missing or not valid."""


class PermissionDeniedError(StiefelApiError):
    """The key lacks the scope that the call needs."""


class NotFoundError(StiefelApiError):
    """The id is unknown, belongs to someone else, or has expired."""


class ConflictError(StiefelApiError):
    """Not possible in the present state; see ``allowed_actions``."""


class RateLimitError(StiefelApiError):
    """Too many requests."""


class ServerError(StiefelApiError):
    """The service is at fault."""


_BY_STATUS: dict[int, type[StiefelApiError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: NotFoundError,
    412: ConflictError,
    429: RateLimitError,
}


def error_from(response: httpx.Response) -> StiefelApiError:
    """Turn an answer of status 400 or more into its error; the body must have been read.

    A body that is no problem document (a proxy's HTML, say) still gives an error with the status.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    problem = body if isinstance(body, dict) else {}
    problem.setdefault("request_id", response.headers.get("x-request-id"))
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else BadRequestError)
    return kind(status, problem)
