"""``/v1/keys`` and ``/v1/whoami``: who may do what."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Response

from stiefel_api.security import Admin, CallerDep
from stiefel_api.service import ServiceDep
from stiefel_api.views.access import KEY_EXAMPLE, FreshKeyView, KeyView, NewKey, WhoView
from stiefel_api.views.base import Page, problems
from stiefel_jobs.store import keys

router = APIRouter(prefix="/v1", tags=["keys"])


@router.get("/whoami", response_model=WhoView, responses=problems(), summary="Who am I?")
def whoami(caller: CallerDep) -> WhoView:
    """Show the tenant and the scopes of the key in use."""
    key = KeyView.of(caller.key) if caller.key else None
    return WhoView(tenant=caller.tenant, scopes=list(caller.scopes), key=key)


@router.get("/keys", response_model=Page[KeyView], responses=problems(), summary="List keys")
def list_all(service: ServiceDep, caller: Admin) -> Page[KeyView]:
    """Every key of the tenant, oldest first, revoked ones included."""
    found = keys.list_keys(service.db, tenant=caller.tenant)
    return Page(data=[KeyView.of(key) for key in found], has_more=False, next=None)


@router.post(
    "/keys",
    status_code=201,
    response_model=FreshKeyView,
    responses=problems(415),
    summary="Create a key",
)
def create(body: NewKey, service: ServiceDep, caller: Admin) -> FreshKeyView:
    """Make a key; its secret is in this answer and nowhere else."""
    expires = None if body.expires_in is None else time.time() + body.expires_in.total_seconds()
    key, secret = keys.create_key(
        service.db,
        tenant=caller.tenant,
        name=body.name,
        scopes=body.scopes,
        expires_at=expires,
    )
    return FreshKeyView.of(key, secret=secret)


@router.delete("/keys/{key_id}", status_code=204, responses=problems(404), summary="Revoke a key")
def revoke(
    key_id: Annotated[str, Path(description="Id of the key.", examples=[KEY_EXAMPLE])],
    service: ServiceDep,
    caller: Admin,
) -> Response:
    """Turn a key off at once and for good."""
    keys.revoke_key(service.db, tenant=caller.tenant, key_id=key_id)
    return Response(status_code=204)
