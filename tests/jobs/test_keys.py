from __future__ import annotations

import time

import pytest
from sqlalchemy import update

from stiefel_jobs.database import Database
from stiefel_jobs.errors import NotFoundError
from stiefel_jobs.store import keys
from stiefel_jobs.tables import api_keys


def test_a_secret_opens_its_key(db: Database) -> None:
    made, secret = keys.create_key(db, tenant="acme", name="ci", scopes=["jobs:read", "admin"])

    found = keys.authenticate(db, secret)

    assert found is not None
    assert (found.id, found.tenant, found.name) == (made.id, "acme", "ci")
    assert found.scopes == ("admin", "jobs:read")
    assert secret.startswith(f"stf_{made.prefix}_")
    assert len(secret) == 4 + 10 + 1 + 43 + 6


def test_the_secret_is_stored_nowhere(db: Database) -> None:
    _, secret = keys.create_key(db, tenant="acme", name="ci", scopes=["admin"])
    with db.read() as connection:
        row = connection.execute(api_keys.select()).one()
    assert secret not in str(row)
    assert secret.split("_")[2] not in str(row)


def test_every_changed_letter_closes_it(db: Database) -> None:
    _, secret = keys.create_key(db, tenant="acme", name="ci", scopes=["admin"])
    for place, letter in enumerate(secret):
        changed = secret[:place] + ("x" if letter != "x" else "y") + secret[place + 1 :]
        assert keys.authenticate(db, changed) is None
    for text in ("", "stf_", secret[:-1], secret + "a", f" {secret}", secret + "\n", "é" * 64):
        assert keys.authenticate(db, text) is None


def test_another_secret_with_the_same_prefix_does_not_open_it(db: Database) -> None:
    made, _ = keys.create_key(db, tenant="acme", name="ci", scopes=["admin"])
    body = f"stf_{made.prefix}_{'A' * 43}"
    assert keys.authenticate(db, body + keys._checksum(body)) is None


def test_revoked_and_expired_keys_open_nothing(db: Database) -> None:
    made, secret = keys.create_key(db, tenant="acme", name="a", scopes=["admin"])
    with pytest.raises(NotFoundError):
        keys.revoke_key(db, tenant="rival", key_id=made.id)
    assert keys.authenticate(db, secret)
    first = keys.revoke_key(db, tenant="acme", key_id=made.id)
    again = keys.revoke_key(db, tenant="acme", key_id=made.id)
    assert keys.authenticate(db, secret) is None
    assert first.revoked_at == again.revoked_at

    soon = time.time() + 0.3
    _, brief = keys.create_key(db, tenant="acme", name="b", scopes=["admin"], expires_at=soon)
    assert keys.authenticate(db, brief)
    time.sleep(0.4)
    assert keys.authenticate(db, brief) is None
    assert not keys.any_key(db)


def test_use_is_noted_but_not_every_time(db: Database) -> None:
    _, secret = keys.create_key(db, tenant="acme", name="a", scopes=["admin"])
    assert keys.list_keys(db, tenant="acme")[0].last_used_at is None
    keys.authenticate(db, secret)
    first = keys.list_keys(db, tenant="acme")[0].last_used_at
    assert first is not None
    keys.authenticate(db, secret)
    assert keys.list_keys(db, tenant="acme")[0].last_used_at == first
    with db.write() as connection:
        connection.execute(update(api_keys).values(last_used_at=first - 100))
    keys.authenticate(db, secret)
    later = keys.list_keys(db, tenant="acme")[0].last_used_at
    assert later is not None
    assert later >= first


def test_unknown_scopes_are_refused(db: Database) -> None:
    with pytest.raises(ValueError, match="root"):
        keys.create_key(db, tenant="acme", name="a", scopes=["root"])
    assert not keys.any_key(db)
