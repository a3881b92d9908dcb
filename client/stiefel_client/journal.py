"""Which uploads a crash left behind: one small file each, in the data folder."""

from __future__ import annotations

import hashlib
import json

from stiefel_client.locate import data_dir


class Journal:
    """Remembers, across a crash, under which id a file is being uploaded.

    A file is its bytes under its name at one service: under another name, the same bytes become
    another artifact, and perhaps one of another kind.
    """

    def __init__(self, url: str, name: str, digest: str) -> None:
        key = json.dumps([url, name, digest])
        slug = hashlib.sha256(key.encode()).hexdigest()[:32]
        self._path = data_dir() / "client" / "uploads" / f"{slug}.json"

    def read(self) -> str | None:
        """Return the id of the upload, None when there is none."""
        try:
            return str(json.loads(self._path.read_text(encoding="utf-8"))["upload"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, upload_id: str) -> None:
        """Remember the id of the upload."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"upload": upload_id}), encoding="utf-8")
        except OSError:
            # Only resuming after a crash is lost when no journal can be kept.
            return

    def forget(self) -> None:
        """Forget the upload: it is complete, or can never be."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return
