"""From a URL to an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, ObjectStore, S3Store, from_url

# The whole of a body may take long; a silence of a minute may not.
_CLIENT = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "24h"}


def open_store(
    url: str,
    *,
    endpoint: str | None,
    region: str,
    access_key_id: str | None,
    secret_access_key: str | None,
) -> ObjectStore:
    """Open ``file://``, ``s3://`` with the given endpoint and keys, or what else obstore knows.

    Missing S3 keys are looked up where the AWS tools keep them.
    """
    client: Any = dict(_CLIENT)
    if url.startswith("file://"):
        return LocalStore(Path(unquote(urlsplit(url).path)), mkdir=True)
    if not url.startswith("s3://"):
        return from_url(url, client_options=client)
    config: Any = {"region": region}
    if endpoint:
        client["allow_http"] = endpoint.startswith("http://")
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": False}
    if access_key_id and secret_access_key:
        config |= {"access_key_id": access_key_id, "secret_access_key": secret_access_key}
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix=prefix or None, client_options=client, **config)
