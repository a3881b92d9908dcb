"""Keys, methods, and the state of the service."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints

from stiefel_api.views.base import TIME_EXAMPLE, Body, View, known_moment, moment
from stiefel_jobs.records import ApiKey

Scope = Literal["jobs:read", "jobs:write", "artifacts:read", "artifacts:write", "admin"]
KEY_EXAMPLE = "key_01K5Z8T6Q2Y0Z8A6B4C2D0E8F6"


class NewKey(Body):
    """A key to be made."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] = Field(
        description="For telling keys apart.", examples=["ci"]
    )
    scopes: Annotated[list[Scope], Field(min_length=1)] = Field(
        default=["jobs:read", "jobs:write", "artifacts:read", "artifacts:write"],
        description="What the key allows.",
        examples=[["jobs:read", "artifacts:read"]],
    )
    expires_in: timedelta | None = Field(
        default=None,
        gt=timedelta(0),
        le=timedelta(days=3650),
        description="ISO 8601 duration; absent: never.",
        examples=["P90D"],
    )


class KeyView(View):
    """A key, without its secret."""

    id: str = Field(description="Name of the key.", examples=[KEY_EXAMPLE])
    object: str = Field(default="key", description="Always `key`.")
    name: str = Field(description="As given.", examples=["ci"])
    prefix: str = Field(description="How the key begins.", examples=["stf_8ejN1xisKt"])
    scopes: list[str] = Field(description="What it allows.", examples=[["jobs:read"]])
    created_at: datetime = Field(description="When it was made.", examples=[TIME_EXAMPLE])
    expires_at: datetime | None = Field(description="When it ends.", examples=[None])
    last_used_at: datetime | None = Field(description="To about a minute.", examples=[TIME_EXAMPLE])
    revoked_at: datetime | None = Field(description="When it was revoked.", examples=[None])

    @classmethod
    def of(cls, key: ApiKey, **further: Any) -> Self:
        """Show a record of the store."""
        return cls(
            id=key.id,
            name=key.name,
            prefix=f"stf_{key.prefix}",
            scopes=list(key.scopes),
            created_at=known_moment(key.created_at),
            expires_at=moment(key.expires_at),
            last_used_at=moment(key.last_used_at),
            revoked_at=moment(key.revoked_at),
            **further,
        )


class FreshKeyView(KeyView):
    """A new key, the one time that its secret is shown."""

    secret: str = Field(
        description="Keep it: it is stored nowhere.",
        examples=["stf_8ejN1xisKt_OBDKTFkbQSnWPVpLlIA8kFm1J4KGzXgpZEit6aw1rJq0jrySi"],
    )


class WhoView(View):
    """Who the service takes the caller for."""

    tenant: str = Field(description="The tenant.", examples=["default"])
    scopes: list[str] = Field(description="What the key allows.", examples=[["jobs:read"]])
    key: KeyView | None = Field(description="The key; null where keys are switched off.")


class MethodView(View):
    """Something the service can do."""

    name: str = Field(description="Send it as `spec.method`.", examples=["project.unitary"])
    object: str = Field(default="method", description="Always `method`.")
    summary: str = Field(
        description="In a sentence.", examples=["Project weights to the nearest unitary matrix."]
    )
    json_schema: dict[str, Any] = Field(
        alias="schema",
        serialization_alias="schema",
        description="JSON Schema of the spec.",
        examples=[{"type": "object", "properties": {"method": {"const": "project.unitary"}}}],
    )


class HealthView(View):
    """Whether the process answers."""

    status: str = Field(description="`ok`.", examples=["ok"])
    version: str = Field(description="Of the software.", examples=["0.1.0"])


class ReadinessView(View):
    """Whether the process can do its work."""

    status: str = Field(description="`ready` or `not_ready`.", examples=["ready"])
    checks: dict[str, str] = Field(
        description="`ok` or what is wrong, by part. A broker that is down only slows jobs.",
        examples=[{"database": "ok", "store": "ok", "broker": "ok"}],
    )
