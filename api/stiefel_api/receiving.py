"""Files on their way in: streamed to a staging object, judged by content, then kept or dropped."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable, Sequence
from math import prod
from typing import Any

from stiefel.errors import InvalidInputError
from stiefel.specs.foreign import recognise
from stiefel.specs.header import read_table
from stiefel_api.problems import Problem, of_input
from stiefel_api.service import Service
from stiefel_jobs.records import Blob, NewArtifact

Read = Callable[[int, int], bytes]

_BLOCK = 2**20
_SHA256 = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")
#: Never accepted, under whatever name: loading them runs what they say, or unpacks what it likes.
_REFUSED = {"pickle_file", "torch_zip_file", "gzip_file"}
_KINDS = {
    ".safetensors": "safetensors",
    ".json": "json",
    ".parquet": "parquet",
    ".npz": "npz",
    ".npy": "npy",
    ".txt": "text",
    ".md": "markdown",
}


async def blocks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Gather the small pieces that the network brings: each hand-over to the store costs time."""
    held: list[bytes] = []
    size = 0
    async for piece in stream:
        held.append(piece)
        size += len(piece)
        if size >= _BLOCK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def promised_digest(header: str | None) -> str | None:
    """Return the SHA-256 of a ``Repr-Digest`` or ``Content-Digest`` header, in hexadecimal.

    Raises:
        Problem: 400, the header has another form.
    """
    if header is None:
        return None
    found = _SHA256.search(header)
    try:
        return base64.b64decode(found[1]).hex() if found else _no_digest(header)
    except binascii.Error:
        return _no_digest(header)


def _no_digest(header: str) -> str:
    raise Problem(
        400,
        "digest_malformed",
        f"The digest {header[:100]!r} is not of the form sha-256=:BASE64:.",
        fix="Send sha-256 as RFC 9530 has it, or no digest.",
    )


def judge(service: Service, name: str, blob: Blob, read: Read) -> NewArtifact:
    """Look at a staged file's content and describe the artifact that it may become.

    Raises:
        Problem: 422: not what its name says, or of a kind that is never accepted.
    """
    kind = next((kind for end, kind in _KINDS.items() if name.endswith(end)), "file")
    try:
        if kind == "safetensors":
            with service.parsing:
                meta = _safetensors(blob, read)
        else:
            meta = {}
            _refuse_code(kind, read(0, min(blob.size, 512)))
    except InvalidInputError as error:
        raise of_input(error) from error
    return NewArtifact(kind, name, blob.sha256, blob.size, meta)


def _safetensors(blob: Blob, read: Read) -> dict[str, Any]:
    table = read_table(read, blob.size)
    return {
        "tensors": len(table.tensors),
        "parameters": sum(prod(tensor.shape) for tensor in table.tensors.values()),
        "dtypes": sorted({tensor.dtype for tensor in table.tensors.values()}),
    }


def _refuse_code(kind: str, start: bytes) -> None:
    found = recognise(start)
    if found is None or found.code not in _REFUSED:
        return
    if kind == "npz" and _is_npz(start):
        return
    raise found


def _is_npz(start: bytes) -> bool:
    """Whether a zip archive begins with an array, as NumPy's do and PyTorch's do not."""
    length = int.from_bytes(start[26:28], "little")
    return start.startswith(b"PK\x03\x04") and start[30 : 30 + length].endswith(b".npy")


class Parts:
    """The parts of an upload as one readable whole."""

    def __init__(self, service: Service, keys: Sequence[str], part_size: int) -> None:
        self._blobs = service.blobs
        self._keys = keys
        self._part_size = part_size

    def read(self, start: int, length: int) -> bytes:
        """Read across the borders of parts."""
        pieces: list[bytes] = []
        while length > 0:
            number, offset = divmod(start, self._part_size)
            take = min(length, self._part_size - offset)
            pieces.append(self._blobs.read_object(self._keys[number], offset, take))
            start += take
            length -= take
        return b"".join(pieces)
