from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from s3_server import S3Server
from stiefel_jobs.blobs import SMALL, Blobs, DigestMismatchError, TooLargeError
from stiefel_jobs.records import Blob

TENANT = "ten_A"


@pytest.fixture(params=["local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "local":
        return Blobs(f"file://{tmp_path}/the store")
    return request.getfixturevalue("s3_blobs")  # type: ignore[no-any-return]


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pieces(data: bytes, size: int = 1_000_003) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def everything(blobs: Blobs, prefix: str = "") -> list[str]:
    return [stored.key for stored in blobs.list(prefix)]


def test_a_file_of_two_parts_becomes_one_blob(blobs: Blobs, tmp_path: Path) -> None:
    data = content(9_000_000)
    (tmp_path / "header.bin").write_bytes(data[:100])
    (tmp_path / "body.bin").write_bytes(data[100:])

    blob = blobs.put_file(TENANT, [tmp_path / "header.bin", tmp_path / "body.bin"])

    assert blob == Blob(sha(data), len(data))
    blobs.fetch(TENANT, blob.sha256, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.parametrize("size", [0, 1, 1000, SMALL + 12_345_678])
def test_a_stream_lands_under_its_digest_and_leaves_no_staging(blobs: Blobs, size: int) -> None:
    data = content(size)

    blob = blobs.put_stream(TENANT, pieces(data))

    assert blob == Blob(sha(data), size)
    assert b"".join(blobs.open_range(TENANT, blob.sha256)) == data
    assert everything(blobs, "staging") == []


@pytest.mark.parametrize("size", [0, 5, 20_000_000])
def test_an_asynchronous_stream_is_staged_then_promoted(blobs: Blobs, size: int) -> None:
    data = content(size)

    async def arriving() -> AsyncIterator[bytes]:
        for piece in pieces(data):
            yield piece

    staging = blobs.staging_key("raw")
    blob = asyncio.run(blobs.stage(staging, arriving()))
    assert not blobs.exists(TENANT, sha(data))
    blobs.promote(TENANT, staging, blob)

    assert blob == Blob(sha(data), size)
    assert b"".join(blobs.open_range(TENANT, blob.sha256)) == data
    assert everything(blobs, "staging") == []


def test_a_stream_that_breaks_or_is_too_large_leaves_nothing(blobs: Blobs) -> None:
    def breaking() -> Iterator[bytes]:
        yield content(SMALL)
        yield content(SMALL)
        raise ConnectionResetError("the peer went away")

    with pytest.raises(ConnectionResetError):
        blobs.put_stream(TENANT, breaking())
    with pytest.raises(TooLargeError):
        blobs.put_stream(TENANT, pieces(content(SMALL * 3)), limit=SMALL * 2)

    assert everything(blobs) == []


def test_ranges(blobs: Blobs) -> None:
    data = content(3_000_000)
    blob = blobs.put_stream(TENANT, [data])

    assert blobs.read(TENANT, blob.sha256, 7, 9) == data[7:16]
    assert blobs.read(TENANT, blob.sha256, 0, 0) == b""
    for start, end in [(0, None), (5, None), (5, 6), (2_999_999, 3_000_000), (4, 4)]:
        assert b"".join(blobs.open_range(TENANT, blob.sha256, start, end)) == data[start:end]


def test_ranges_on_the_event_loop(blobs: Blobs) -> None:
    data = content(3_000_000)
    blob = blobs.put_stream(TENANT, [data])

    async def read(start: int, end: int | None) -> bytes:
        stream = await blobs.open_range_async(TENANT, blob.sha256, start, end)
        return b"".join([chunk async for chunk in stream])

    for start, end in [(0, None), (17, 2_000_000), (8, 8)]:
        assert asyncio.run(read(start, end)) == data[start:end]


def test_parts_assemble_with_a_known_and_with_an_unknown_digest(blobs: Blobs) -> None:
    data = content(12_000_000)
    keys = [f"staging/uploads/u/{number}" for number in (1, 2, 3)]
    for key, piece in zip(keys, pieces(data, 5_000_000), strict=True):
        blobs.put_object(key, [piece])

    assert blobs.put_objects("ten_B", keys) == Blob(sha(data), len(data))
    assert blobs.put_objects(TENANT, keys, sha256=sha(data)) == Blob(sha(data), len(data))

    assert b"".join(blobs.open_range(TENANT, sha(data))) == data
    with pytest.raises(DigestMismatchError):
        blobs.put_objects(TENANT, keys, sha256=sha(b"other"))
    assert not blobs.exists(TENANT, sha(b"other"))


def test_tenants_do_not_share_blobs(blobs: Blobs) -> None:
    blob = blobs.put_stream(TENANT, [b"mine"])

    assert blobs.exists(TENANT, blob.sha256)
    assert not blobs.exists("ten_B", blob.sha256)
    with pytest.raises(FileNotFoundError):
        blobs.open_range("ten_B", blob.sha256)


def test_delete_may_be_repeated(blobs: Blobs) -> None:
    blob = blobs.put_stream(TENANT, [b"short-lived"])
    blobs.delete(TENANT, blob.sha256)
    blobs.delete(TENANT, blob.sha256)
    assert not blobs.exists(TENANT, blob.sha256)


def test_damage_is_found_when_a_blob_is_fetched(tmp_path: Path) -> None:
    blobs = Blobs(f"file://{tmp_path}/store")
    blob = blobs.put_stream(TENANT, [content(5000)])
    stored = tmp_path / "store" / blobs.key(TENANT, blob.sha256)
    stored.write_bytes(content(5000, seed=2))

    with pytest.raises(DigestMismatchError):
        blobs.fetch(TENANT, blob.sha256, tmp_path / "copy")

    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("tenant", "digest"),
    [("../x", "0" * 64), ("ten_A", "../" + "0" * 61), ("ten_A", "0" * 63), ("", "0" * 64)],
)
def test_no_path_is_made_of_foreign_text(tmp_path: Path, tenant: str, digest: str) -> None:
    with pytest.raises(ValueError, match="tenant id"):
        Blobs(f"file://{tmp_path}").key(tenant, digest)


def test_presigned_urls_allow_one_method_on_one_key(s3_blobs: Blobs) -> None:
    put = s3_blobs.presign("PUT", "staging/part", 60)
    get = s3_blobs.presign("GET", "staging/part", 60)
    assert put
    assert get

    assert httpx.put(put, content=b"a part").status_code == 200
    part = httpx.get(get, headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, b"part")
    assert httpx.put(get, content=b"x").status_code == 403
    assert httpx.get(get.replace("staging/part", "staging/other")).status_code == 403


def test_urls_are_signed_for_the_address_that_clients_use(s3: S3Server) -> None:
    public = s3.endpoint.replace("127.0.0.1", "localhost")
    store = Blobs(
        s3.bucket("public") + "/prefix",
        endpoint=s3.endpoint,
        public_endpoint=public,
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
    )
    put, get = (store.presign(method, "staging/part", 60) for method in ("PUT", "GET"))
    assert put
    assert get
    assert put.startswith(f"{public}/public/prefix/staging/part?")
    assert httpx.put(put, content=b"a part").status_code == 200
    assert httpx.get(get).content == store.read_object("staging/part", 0, 6) == b"a part"


def test_the_store_itself_is_never_asked_at_the_public_address(s3: S3Server) -> None:
    store = Blobs(
        s3.bucket("private"),
        endpoint=s3.endpoint,
        public_endpoint="https://files.invalid",
        access_key_id=s3.access_key,
        secret_access_key=s3.secret_key,
    )
    blob = store.put_stream("acme", [b"bytes"])
    assert store.read("acme", blob.sha256, 0, 5) == b"bytes"
    url = store.presign("GET", "staging/part", 60)
    assert url is not None
    assert url.startswith("https://files.invalid/private/staging/part?")


def test_a_local_store_has_no_presigned_urls(tmp_path: Path) -> None:
    assert Blobs(f"file://{tmp_path}").presign("GET", "staging/part", 60) is None
