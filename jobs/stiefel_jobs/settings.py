"""Settings, from ``STIEFEL_*`` environment variables. Embedded and distributed differ only here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 2**30


def default_data_dir() -> Path:
    """Return ``$XDG_DATA_HOME/stiefel``, by default ``~/.local/share/stiefel``."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "stiefel"


class Settings(BaseSettings):
    """One machine by default; set the three URLs for a distributed service.

    URLs may hold passwords and therefore stay out of ``repr``.
    """

    model_config = SettingsConfigDict(env_prefix="STIEFEL_", extra="ignore")

    data_dir: Path = Field(default_factory=default_data_dir)
    database_url: str = Field(default="", repr=False)
    broker_url: str = Field(default="", repr=False)
    store_url: str = Field(default="", repr=False)
    scratch_dir: Path | None = None

    plugins: str = Field(default="", description="Packages of more methods, comma-separated")

    s3_endpoint: str | None = None
    # The same store as clients reach it; only the URLs signed for them name it.
    s3_public_endpoint: str | None = Field(default=None, pattern=r"^(https?://.+)?$")
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None

    lease_s: float = Field(default=30.0, gt=0)
    beat_s: float = Field(default=5.0, gt=0)
    poll_s: float = Field(default=5.0, gt=0)
    sweep_s: float = Field(default=5.0, gt=0)
    cancel_grace_s: float = Field(default=1.0, ge=0)
    hang_s: float = Field(default=3600.0, gt=0)
    drain_s: float = Field(default=60.0, ge=0)

    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8765, ge=0, le=65535)
    insecure: bool = False

    max_request_bytes: int = Field(default=2**20, gt=0)
    max_upload_bytes: int = Field(default=1024 * GIB, gt=0)
    max_stored_bytes: int | None = Field(default=None, gt=0)
    max_live_jobs: int = Field(default=100_000, gt=0)
    max_batch_jobs: int = Field(default=256, gt=0)
    part_bytes: int = Field(default=64 * 2**20, ge=5 * 2**20)
    upload_ttl_s: float = Field(default=7 * 86400.0, gt=0)
    artifact_ttl_s: float | None = Field(default=30 * 86400.0, gt=0)
    # Send clients to the object store, where it can sign URLs; off: all bytes pass the API.
    direct_uploads: bool = True
    direct_downloads: bool = True
    presign_s: float = Field(default=900.0, gt=0, le=900.0)

    @model_validator(mode="after")
    def _fill_urls(self) -> Self:
        self.data_dir = self.data_dir.expanduser().absolute()
        self.database_url = self.database_url or f"sqlite:///{self.data_dir / 'stiefel.db'}"
        self.broker_url = self.broker_url or "filesystem://"
        self.store_url = self.store_url or f"file://{self.data_dir / 'store'}"
        self.scratch_dir = self.scratch_dir or self.data_dir / "scratch"
        return self

    @property
    def embedded(self) -> bool:
        """Whether everything lives in ``data_dir`` on this machine."""
        return self.database_url.startswith("sqlite") and self.broker_url.startswith("filesystem")
