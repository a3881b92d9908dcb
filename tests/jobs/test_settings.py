from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from stiefel_jobs.settings import Settings


def test_the_default_lives_in_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    settings = Settings()
    assert settings.data_dir == tmp_path / "stiefel"
    assert settings.database_url == f"sqlite:///{tmp_path}/stiefel/stiefel.db"
    assert settings.store_url == f"file://{tmp_path}/stiefel/store"
    assert settings.broker_url == "filesystem://"
    assert settings.embedded
    assert settings.api_host == "127.0.0.1"


def test_the_environment_sets_what_the_distributed_service_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STIEFEL_DATABASE_URL", "postgresql://u:hidden@db/stiefel")
    monkeypatch.setenv("STIEFEL_BROKER_URL", "redis://:hidden@redis/0")
    monkeypatch.setenv("STIEFEL_S3_SECRET_ACCESS_KEY", "hidden")
    settings = Settings()
    assert not settings.embedded
    assert settings.s3_secret_access_key is not None
    assert settings.s3_secret_access_key.get_secret_value() == "hidden"


def test_no_secret_shows_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIEFEL_DATABASE_URL", "postgresql://u:hidden@db/stiefel")
    monkeypatch.setenv("STIEFEL_BROKER_URL", "redis://:hidden@redis/0")
    monkeypatch.setenv("STIEFEL_S3_SECRET_ACCESS_KEY", "hidden")
    assert "hidden" not in repr(Settings())
    assert "hidden" not in str(Settings())


@pytest.mark.parametrize("name", ["STIEFEL_LEASE_S", "STIEFEL_BEAT_S", "STIEFEL_POLL_S"])
def test_times_are_positive(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0")
    with pytest.raises(ValidationError):
        Settings()
