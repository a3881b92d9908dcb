"""Who calls, and what the key allows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from stiefel_api.problems import Problem
from stiefel_api.service import ServiceDep
from stiefel_jobs.records import ApiKey
from stiefel_jobs.store import keys

#: The tenant of an embedded service, and of callers without a key where keys are switched off.
DEFAULT_TENANT = "default"

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key, `stf_…`. The embedded service writes its first one to "
    "`api_key` in its data directory.",
)


@dataclass(frozen=True)
class Caller:
    """A tenant speaking through a key; ``key`` is None where keys are switched off."""

    tenant: str
    scopes: tuple[str, ...]
    key: ApiKey | None


def the_caller(
    service: ServiceDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Authenticate the request.

    Raises:
        Problem: 401.
    """
    if credentials is None:
        if service.settings.insecure:
            return Caller(DEFAULT_TENANT, keys.SCOPES, None)
        raise _unauthorized(
            "key_missing",
            "The request carries no API key.",
            "Send the header Authorization: Bearer stf_…",
        )
    key = keys.authenticate(service.db, credentials.credentials)
    if key is None:
        raise _unauthorized(
            "key_invalid",
            "The API key is unknown, mistyped, revoked or expired.",
            "Create a new key with POST /v1/keys, or ask an administrator for one.",
        )
    return Caller(key.tenant, key.scopes, key)


CallerDep = Annotated[Caller, Depends(the_caller)]


def require(scope: str) -> Callable[[Caller], Awaitable[Caller]]:
    """Return a dependency that demands a scope; ``admin`` includes every other.

    Raises:
        Problem: 403.
    """

    async def check(caller: CallerDep) -> Caller:
        if scope in caller.scopes or "admin" in caller.scopes:
            return caller
        raise Problem(
            403,
            "scope_missing",
            f"The key lacks the scope {scope}.",
            fix=f"Use a key with {scope}; GET /v1/whoami shows what this one has.",
        )

    return check


def _unauthorized(code: str, detail: str, fix: str) -> Problem:
    return Problem(401, code, detail, fix=fix, headers={"WWW-Authenticate": "Bearer"})


JobReader = Annotated[Caller, Depends(require("jobs:read"))]
JobWriter = Annotated[Caller, Depends(require("jobs:write"))]
ArtifactReader = Annotated[Caller, Depends(require("artifacts:read"))]
ArtifactWriter = Annotated[Caller, Depends(require("artifacts:write"))]
Admin = Annotated[Caller, Depends(require("admin"))]
