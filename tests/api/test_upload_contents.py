"""What an uploaded file holds decides whether it is taken, whatever it is called."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from typing import Any

import httpx
import pytest
from house import House, checkpoint, problem


def pickled() -> bytes:
    return b"\x80\x02}q\x00X\x06\x00\x00\x00weightq\x01]q\x02s."


def torch_zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
    return buffer.getvalue()


def numpy_zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00")
    return buffer.getvalue()


def with_header(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


BAD_SAFETENSORS = {
    "pickle_file": pickled(),
    "torch_zip_file": torch_zip(),
    "file_truncated": checkpoint()[:-1],
    "trailing_bytes": checkpoint() + b"\0",
    "overlapping_tensors": with_header({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
    "header_too_long": (2**40).to_bytes(8, "little") + b"{" + bytes(100),
    "header_truncated": (1000).to_bytes(8, "little") + b"{}",
    "file_too_short": b"",
    "html_page": b"<!DOCTYPE html><title>Log in</title>" + bytes(100),
    "too_many_tensors": with_header({f"t{i}": entry(0, 0) for i in range(200_001)}),
}


@pytest.mark.parametrize("code", BAD_SAFETENSORS)
def test_what_only_claims_to_be_safetensors_is_refused_and_dropped(
    client: httpx.Client, house: House, tenant: str, code: str
) -> None:
    answer = client.put("/v1/uploads/model.safetensors", content=BAD_SAFETENSORS[code])

    document = problem(answer, 422, code)
    assert document["fix"]
    assert house.stored(tenant) == []
    assert house.staged() == []
    assert client.get("/v1/artifacts").json()["data"] == []


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("weights.bin", pickled(), "pickle_file"),
        ("data.json", torch_zip(), "torch_zip_file"),
        ("data.npz", torch_zip(), "torch_zip_file"),
        ("data.txt", b"\x1f\x8b" + bytes(50), "gzip_file"),
    ],
)
def test_code_and_archives_are_refused_under_every_name(
    client: httpx.Client, name: str, data: bytes, code: str
) -> None:
    problem(client.put(f"/v1/uploads/{name}", content=data), 422, code)


def test_other_files_are_taken(client: httpx.Client) -> None:
    for name, data, kind in [
        ("x.npz", numpy_zip(), "npz"),
        ("x.safetensors.index.json", b'{"weight_map": {}}', "json"),
        ("x.txt", b"some text", "text"),
        ("empty", b"", "file"),
    ]:
        answer = client.put(f"/v1/uploads/{name}", content=data)
        assert (answer.status_code, answer.json()["kind"]) == (201, kind)
