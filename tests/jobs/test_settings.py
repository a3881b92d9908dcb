from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from stiefel_jobs.settings import Settings

ROOT = Path(__file__).parents[2]


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


def test_the_public_endpoint_is_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for good in ("https://files.example.org", "http://localhost:8333", ""):
        monkeypatch.setenv("STIEFEL_S3_PUBLIC_ENDPOINT", good)
        assert Settings().s3_public_endpoint == good
    monkeypatch.setenv("STIEFEL_S3_PUBLIC_ENDPOINT", "localhost:8333")
    with pytest.raises(ValidationError):
        Settings()


def test_the_compose_file_sends_no_client_to_a_store_it_hides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    given = dict(re.findall(r"^ +(STIEFEL_\w+): \"?(.*?)\"?$", text, re.MULTILINE))
    # An unknown name would be ignored in silence.
    assert {name.removeprefix("STIEFEL_").lower() for name in given} <= set(Settings.model_fields)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.s3_endpoint == "http://s3:8333"
    assert not settings.direct_uploads
    assert not settings.direct_downloads
