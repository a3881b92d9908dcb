"""Bytes by content: one interface over a local folder, S3 and its relatives (obstore).

A blob's key is its tenant and its SHA-256, so equal bytes are stored once per tenant, a key
never holds anything but its own bytes, and no key is made of what a caller sent. Nothing is
ever whole in memory: streams move in pieces of a few megabytes.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import obstore
from obstore.store import S3Store

from stiefel_jobs.backends import open_store
from stiefel_jobs.records import Blob
from stiefel_jobs.streams import (
    CHUNK,
    AsyncHashing,
    DigestMismatchError,
    Hashing,
    TooLargeError,
    ahead,
    digest,
    nothing,
    read_files,
    take,
)

if TYPE_CHECKING:
    from stiefel_jobs.settings import Settings

#: Streams up to this size are held back and go to their key in one request.
SMALL = 8 * 2**20
#: S3 gives one copy request up to 5 GB; larger objects are streamed instead.
COPY_LIMIT = 5 * 10**9
#: An existing blob is trusted for reuse only while young: the garbage collector spares blobs
#: younger than a day, so that whoever reuses one has half a day to commit a row that names it.
REUSE_FOR = timedelta(hours=12)
_PART = 8 * 2**20
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Method = Literal["GET", "PUT"]

__all__ = ["Blob", "Blobs", "DigestMismatchError", "Stored", "TooLargeError"]


class Stored(NamedTuple):
    """An object of the store, by any key."""

    key: str
    size: int
    changed: datetime


class Blobs:
    """The store of one service.

    Args:
        url: ``file:///folder`` (made when missing) or ``s3://bucket/prefix``; other URLs that
            obstore knows (``gs://``, ``az://``) work with credentials from the environment.
        endpoint: of an S3-compatible server; plain http is allowed only when it says so.
        public_endpoint: the same server as clients reach it, for the URLs signed for them.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
        region: str = "us-east-1",
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        self.local = url.startswith("file://")
        opened = partial(
            open_store,
            url,
            region=region,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
        )
        self.store = opened(endpoint=endpoint)
        # A signature covers the host: a URL signed for one name is void under another.
        self._signer = opened(endpoint=public_endpoint) if public_endpoint else self.store

    @classmethod
    def of(cls, settings: Settings) -> Blobs:
        """Open the store that the settings name."""
        key, secret = settings.s3_access_key_id, settings.s3_secret_access_key
        return cls(
            settings.store_url,
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            region=settings.s3_region,
            access_key_id=key.get_secret_value() if key else None,
            secret_access_key=secret.get_secret_value() if secret else None,
        )

    # Writing

    def put_file(self, tenant: str, parts: Sequence[Path]) -> Blob:
        """Store the concatenation of ``parts``.

        A local store is written while hashing and renamed. A remote one wants the key first: the
        files are read once to hash and, unless the store has them already, once more to send.

        Raises:
            DigestMismatchError: a part changed between the two readings.
        """
        if self.local:
            return self.put_stream(tenant, read_files(parts))
        blob = digest(read_files(parts))
        self._write(tenant, blob, read_files(parts))
        return blob

    def put_stream(self, tenant: str, chunks: Iterable[bytes], *, limit: int | None = None) -> Blob:
        """Store a stream of unknown digest, in a staging object first unless it is small.

        Raises:
            TooLargeError: more than ``limit`` bytes came.
        """
        counted = Hashing(chunks, limit=limit)
        source = iter(counted)
        head = take(source, SMALL)
        if counted.tally.size <= SMALL:
            blob = counted.tally.blob
            self._write(tenant, blob, head)
            return blob
        staging = self.staging_key("streams")
        self.put_object(staging, itertools.chain(head, source))
        return self.promote(tenant, staging, counted.tally.blob)

    def promote(self, tenant: str, staging: str, blob: Blob) -> Blob:
        """Move a staged object, known to hold ``blob``, to its content key."""
        if self._reusable(tenant, blob):
            self.discard(staging)
        elif self.local or blob.size <= COPY_LIMIT:
            obstore.rename(self.store, staging, self.key(tenant, blob.sha256))
        else:
            self._write(tenant, blob, self._concatenate([staging]))
            self.discard(staging)
        return blob

    def put_object(self, key: str, chunks: Iterable[bytes]) -> None:
        """Write one object under any key; it appears whole or not at all."""
        obstore.put(
            self.store, key, iter(chunks), use_multipart=True, chunk_size=_PART, max_concurrency=2
        )

    async def stage(
        self, key: str, chunks: AsyncIterable[bytes], *, limit: int | None = None
    ) -> Blob:
        """Write a stream under a staging key, where it can be judged before anyone sees it.

        Raises:
            TooLargeError: more than ``limit`` bytes came.
        """
        counted = AsyncHashing(chunks, limit=limit)
        await obstore.put_async(
            self.store, key, counted, use_multipart=True, chunk_size=_PART, max_concurrency=2
        )
        return counted.tally.blob

    def put_objects(self, tenant: str, keys: Sequence[str], *, sha256: str | None = None) -> Blob:
        """Assemble staged objects into one blob, hashing as it goes.

        With ``sha256`` given the bytes are read once and land only if it holds; without, they
        are read twice: an object store cannot rename what is larger than 5 GB.

        Raises:
            DigestMismatchError: the assembled bytes have another digest.
        """
        if sha256 is None:
            blob = digest(self._concatenate(keys))
        else:
            blob = Blob(sha256, sum(obstore.head(self.store, key)["size"] for key in keys))
        self._write(tenant, blob, self._concatenate(keys), trust=sha256 is None)
        return blob

    def _write(
        self, tenant: str, blob: Blob, chunks: Iterable[bytes], *, trust: bool = True
    ) -> None:
        """Write to the content key, where the bytes appear only after their digest held."""
        if trust and self._reusable(tenant, blob):
            return
        self.put_object(self.key(tenant, blob.sha256), Hashing(chunks, expected=blob.sha256))

    def _reusable(self, tenant: str, blob: Blob) -> bool:
        found = self.look(self.key(tenant, blob.sha256))
        if found is None or found.size != blob.size:
            return False
        return datetime.now(UTC) - found.changed < REUSE_FOR

    # Reading

    def read(self, tenant: str, sha256: str, start: int, length: int) -> bytes:
        """Read ``length`` bytes from ``start``: for headers, not for bodies."""
        return self.read_object(self.key(tenant, sha256), start, length)

    def read_object(self, key: str, start: int, length: int) -> bytes:
        """Read a few bytes of any object by key."""
        if length == 0:
            return b""
        return bytes(obstore.get_range(self.store, key, start=start, length=length))

    def open_range(
        self, tenant: str, sha256: str, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        """Stream the bytes from ``start`` to before ``end``.

        Raises:
            FileNotFoundError: at once, when the blob is not there.
        """
        return self.stream(self.key(tenant, sha256), start, end)

    def stream(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Stream any object by key."""
        if end is not None and end <= start:
            return iter(())
        result = obstore.get(self.store, key, options=_range(start, end))
        return (bytes(chunk) for chunk in result.stream(CHUNK))

    async def open_range_async(
        self, tenant: str, sha256: str, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Open like ``open_range``, for the event loop."""
        if end is not None and end <= start:
            return nothing()
        key = self.key(tenant, sha256)
        result = await obstore.get_async(self.store, key, options=_range(start, end))
        return (bytes(chunk) async for chunk in result.stream(2**20))

    def fetch(self, tenant: str, sha256: str, path: Path) -> None:
        """Copy a blob to ``path``, verifying its digest on the way.

        Raises:
            DigestMismatchError: the stored bytes are damaged; ``path`` is removed.
            FileNotFoundError: the blob is not there.
        """
        source = Hashing(self.open_range(tenant, sha256), expected=sha256)
        try:
            with path.open("wb") as file:
                for chunk in source:
                    file.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def exists(self, tenant: str, sha256: str) -> bool:
        """Whether the store holds the blob."""
        return self.look(self.key(tenant, sha256)) is not None

    def look(self, key: str) -> Stored | None:
        """Return what is known of an object, None where there is none."""
        try:
            meta = obstore.head(self.store, key)
        except FileNotFoundError:
            return None
        return Stored(meta["path"], meta["size"], meta["last_modified"])

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield every object under a folder, in the order of their keys."""
        batches = obstore.list(self.store, prefix)
        found = [Stored(m["path"], m["size"], m["last_modified"]) for b in batches for m in b]
        return iter(sorted(found))

    # Removing, naming, signing

    def delete(self, tenant: str, sha256: str) -> None:
        """Remove a blob; nothing happens where there is none."""
        self.discard(self.key(tenant, sha256))

    def discard(self, key: str) -> None:
        """Remove an object by key, for staged ones."""
        try:
            obstore.delete(self.store, key)
        except FileNotFoundError:
            return

    def key(self, tenant: str, sha256: str) -> str:
        """Return the content key ``blobs/{tenant}/{first two digits}/{sha256}``."""
        if not _TENANT.fullmatch(tenant) or not _SHA256.fullmatch(sha256):
            raise ValueError("a blob is named by a tenant id and 64 hexadecimal digits")
        return f"blobs/{tenant}/{sha256[:2]}/{sha256}"

    def staging_key(self, kind: str) -> str:
        """Return a fresh key under ``staging/``."""
        return f"staging/{kind}/{secrets.token_hex(16)}"

    def presign(self, method: Method, key: str, expires_s: float) -> str | None:
        """Return a URL that allows one method on one key for a while; None on a local store."""
        if not isinstance(self._signer, S3Store):
            return None
        return obstore.sign(self._signer, method, key, timedelta(seconds=expires_s))

    def _concatenate(self, keys: Sequence[str]) -> Iterator[bytes]:
        return ahead(chunk for key in keys for chunk in self.stream(key))


def _range(start: int, end: int | None) -> Any:
    if end is not None:
        return {"range": (start, end)}
    return {"range": {"offset": start}} if start else {}
