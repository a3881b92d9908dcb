"""API keys: ``stf_<prefix>_<secret><checksum>``, shown once, kept as a digest.

The prefix finds the row and may appear in logs. The secret has 256 random bits, so a plain
SHA-256 protects it. The checksum (CRC-32 in base 62, as GitHub's tokens have) lets scanners
recognise a leaked key and turns a mistyped one away before the database is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, or_, select, update

from stiefel_jobs.database import Database
from stiefel_jobs.errors import NotFoundError
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import ApiKey
from stiefel_jobs.store.changes import upsert
from stiefel_jobs.tables import api_keys, tenants

SCOPES: tuple[str, ...] = (
    "jobs:read",
    "jobs:write",
    "artifacts:read",
    "artifacts:write",
    "admin",
)
#: The use of a key is noted at most this often: a request should not cost a write.
NOTED_EVERY_S = 60.0
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(r"stf_([0-9A-Za-z]{10})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")


def create_key(
    db: Database,
    *,
    tenant: str,
    name: str,
    scopes: Sequence[str],
    expires_at: float | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return it with its secret, which is stored nowhere.

    The tenant is created with its first key.

    Raises:
        ValueError: a scope is unknown.
    """
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise ValueError(f"unknown scope {unknown[0]!r}; the scopes are {', '.join(SCOPES)}")
    prefix = _random(10)
    body = f"stf_{prefix}_{_random(43)}"
    secret = body + _checksum(body)
    values: dict[str, Any] = {
        "id": new_id("key"),
        "tenant": tenant,
        "name": name,
        "prefix": prefix,
        "sha256": _digest(secret),
        "scopes": sorted(set(scopes)),
        "expires_at": expires_at,
    }
    with db.write() as connection:
        connection.execute(
            upsert(db, tenants)
            .values(id=tenant, name=tenant, limits={}, created_at=db.now)
            .on_conflict_do_nothing()
        )
        row = connection.execute(
            insert(api_keys).values(**values, created_at=db.now).returning(api_keys)
        ).one()
        return _record(row), secret


def authenticate(db: Database, secret: str) -> ApiKey | None:
    """Return the key that ``secret`` opens; None when it is malformed, unknown, revoked or old."""
    form = _FORM.fullmatch(secret)
    if form is None or _checksum(secret[:-6]) != form[3]:
        return None
    query = select(api_keys, db.now.label("now")).where(
        api_keys.c.prefix == form[1],
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > db.now),
    )
    with db.read() as connection:
        row = connection.execute(query).first()
    if row is None or not hmac.compare_digest(row.sha256, _digest(secret)):
        return None
    if row.last_used_at is None or row.now - row.last_used_at > NOTED_EVERY_S:
        _note_use(db, row.id)
    return _record(row)


def list_keys(db: Database, *, tenant: str) -> list[ApiKey]:
    """Return a tenant's keys, oldest first, revoked ones included."""
    query = select(api_keys).where(api_keys.c.tenant == tenant).order_by(api_keys.c.id)
    with db.read() as connection:
        return [_record(row) for row in connection.execute(query)]


def revoke_key(db: Database, *, tenant: str, key_id: str) -> ApiKey:
    """Turn a key off for good; doing so twice is harmless.

    Raises:
        NotFoundError: the tenant has no such key.
    """
    mine = (api_keys.c.id == key_id) & (api_keys.c.tenant == tenant)
    with db.write() as connection:
        connection.execute(
            update(api_keys).where(mine, api_keys.c.revoked_at.is_(None)).values(revoked_at=db.now)
        )
        row = connection.execute(select(api_keys).where(mine)).first()
    if row is None:
        raise NotFoundError(f"Key {key_id} does not exist.")
    return _record(row)


def any_key(db: Database) -> bool:
    """Whether somebody could authenticate at all."""
    query = select(api_keys.c.id).where(
        api_keys.c.revoked_at.is_(None),
        or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > db.now),
    )
    with db.read() as connection:
        return connection.execute(query.limit(1)).first() is not None


def _note_use(db: Database, key_id: str) -> None:
    with db.write() as connection:
        connection.execute(
            update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=db.now)
        )


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def _record(row: Row[Any]) -> ApiKey:
    values = {name: getattr(row, name) for name in ApiKey.__dataclass_fields__}
    values["scopes"] = tuple(row.scopes)
    return ApiKey(**values)
