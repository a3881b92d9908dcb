"""Where the service is and which key opens it: argument, environment, then the embedded default.

The key that an embedded service leaves in its data directory is only ever sent to the
machine itself: a URL elsewhere needs a key that was meant for it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from stiefel_client.errors import ConfigurationError

DEFAULT_PORT = 8765
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Service:
    """A service's base URL, without a slash at its end, and the key to send, if any."""

    url: str
    key: str | None

    @property
    def local(self) -> bool:
        """Whether it runs on this machine."""
        return is_local(self.url)


def data_dir() -> Path:
    """The embedded service's folder: $STIEFEL_DATA_DIR, or `stiefel` in the user's data folder."""
    explicit = os.environ.get("STIEFEL_DATA_DIR")
    if explicit:
        return Path(explicit).expanduser()
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "stiefel"


def find_service(url: str | None = None, key: str | None = None) -> Service:
    """Resolve URL and key: argument, $STIEFEL_URL and $STIEFEL_API_KEY, the data directory.

    Raises:
        ConfigurationError: the URL is not http or https, or the key has characters of no key.
    """
    found = url or os.environ.get("STIEFEL_URL") or _read("api_url") or DEFAULT_URL
    found = found.rstrip("/")
    if not _is_url(found):
        raise ConfigurationError(
            f"{found!r} is no URL of a service", fix=f"Give one such as {DEFAULT_URL}"
        )
    secret = key or os.environ.get("STIEFEL_API_KEY")
    if secret is None and is_local(found):
        secret = _read("api_key")
    # A header could not carry it. The message does not repeat it: it may be a key all the same.
    if secret and not re.fullmatch(r"[!-~]+", secret):
        raise ConfigurationError(
            "the API key holds a space or a character beyond ASCII",
            fix="Copy it again: --key, STIEFEL_API_KEY, or the file api_key in the data folder",
        )
    return Service(found, secret)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Both parsers raise where they find no sense: an open bracket, a port beyond 65535.
        known = parts.scheme in ("http", "https") and parts.port != 0
        return known and bool(httpx.URL(text).host)
    except (httpx.InvalidURL, ValueError):
        return False


def is_local(url: str) -> bool:
    """Whether a URL points at this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def _read(name: str) -> str | None:
    try:
        # What is no ASCII is found out where it is used, with a message.
        return (data_dir() / name).read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None
