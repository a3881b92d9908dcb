"""Streams of bytes that know what passed through them, and one that reads ahead."""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

from stiefel_jobs.records import Blob

CHUNK = 4 * 2**20


class DigestMismatchError(Exception):
    """The bytes are not what their digest says; nothing was kept."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected sha256 {expected}, found {actual}")
        self.expected = expected
        self.actual = actual


class TooLargeError(Exception):
    """A stream ran over its size limit; nothing was kept."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes")
        self.limit = limit


class Tally:
    """Digest and size of the bytes counted so far."""

    def __init__(self, limit: int | None = None) -> None:
        self.size = 0
        self._limit = limit
        self._digest = hashlib.sha256()

    def count(self, chunk: bytes) -> bytes:
        """Take a chunk into account and return it.

        Raises:
            TooLargeError: the limit is passed.
        """
        self.size += len(chunk)
        if self._limit is not None and self.size > self._limit:
            raise TooLargeError(self._limit)
        self._digest.update(chunk)
        return chunk

    @property
    def blob(self) -> Blob:
        """What has passed so far."""
        return Blob(self._digest.hexdigest(), self.size)


class Hashing(Iterable[bytes]):
    """A stream that is counted as it is read, once.

    Args:
        expected: digest that the whole stream must have; a reader that waits for the end, as an
            atomic write does, never accepts other bytes.
    """

    def __init__(
        self, chunks: Iterable[bytes], *, expected: str | None = None, limit: int | None = None
    ) -> None:
        self._chunks = chunks
        self._expected = expected
        self.tally = Tally(limit)

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            yield self.tally.count(chunk)
        found = self.tally.blob.sha256
        if self._expected not in {None, found}:
            raise DigestMismatchError(str(self._expected), found)


class AsyncHashing(AsyncIterable[bytes]):
    """The same for a stream that arrives over the network."""

    def __init__(self, chunks: AsyncIterable[bytes], *, limit: int | None = None) -> None:
        self._chunks = chunks
        self.tally = Tally(limit)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield self.tally.count(chunk)


_END = object()


def ahead(chunks: Iterable[bytes], *, depth: int = 2) -> Iterator[bytes]:
    """Read ``chunks`` in a thread of its own, at most ``depth`` ahead.

    Reading then overlaps with writing, and an object store's client, which cannot start a request
    from within another one's body, is asked from elsewhere. An error comes out where it occurred.
    """
    fifo: queue.Queue[object] = queue.Queue(depth)
    given_up = threading.Event()

    def offer(item: object) -> None:
        while not given_up.is_set():
            with contextlib.suppress(queue.Full):
                fifo.put(item, timeout=0.2)
                return

    def read() -> None:
        try:
            for chunk in chunks:
                if given_up.is_set():
                    return
                offer(chunk)
            offer(_END)
        except BaseException as error:
            offer(error)

    threading.Thread(target=read, name="read-ahead", daemon=True).start()
    try:
        while (item := fifo.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, bytes)
            yield item
    finally:
        given_up.set()


def digest(chunks: Iterable[bytes]) -> Blob:
    """Read a stream to its end and return what it was."""
    counted = Hashing(chunks)
    for _ in counted:
        continue
    return counted.tally.blob


def read_files(parts: Sequence[Path]) -> Iterator[bytes]:
    """Read files one after the other, in chunks."""
    for part in parts:
        with part.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def take(source: Iterator[bytes], size: int) -> list[bytes]:
    """Take chunks until their sum passes ``size`` or the source ends."""
    taken: list[bytes] = []
    total = 0
    for chunk in source:
        taken.append(chunk)
        total += len(chunk)
        if total > size:
            break
    return taken


async def nothing() -> AsyncIterator[bytes]:
    """Yield no bytes at all."""
    for _ in ():
        yield b""
