"""One attempt's folder on this machine, and the only door through which its files are opened."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

CHUNK = 4 * 2**20
READ_PLAIN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


class UnsafePathError(ValueError):
    """A child named a file outside its folder, or something that is not a plain file."""


class Scratch:
    """``input``, ``state`` and ``tmp`` below one private folder; the child can write all of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.input = root / "input"
        self.state = root / "state"
        self._lock: int | None = None

    def make(self) -> None:
        """Create the empty folder, readable by this user alone, and lock it."""
        self.root.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.root.parent, fcntl.LOCK_SH):
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(mode=0o700)
            self._lock = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for folder in (self.input, self.state, self.root / "tmp"):
            folder.mkdir()

    def wipe(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """Open a plain file of this folder for reading, believing nothing that the child says.

        Raises:
            UnsafePathError: it lies elsewhere, through ``..`` or a link, or is no plain file.
            FileNotFoundError: it is gone.
        """
        try:
            fd = os.open(self.root / path, READ_PLAIN)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UnsafePathError(f"{path} is a link") from error
            raise
        try:
            # What was opened is what counts: no link can be swapped in after this look.
            real = Path(f"/proc/self/fd/{fd}").readlink()
            plain = stat.S_ISREG(os.fstat(fd).st_mode)
            if not plain or not real.is_relative_to(self.root.resolve()):
                raise UnsafePathError(f"{path} is not a plain file of this job's folder")
            with os.fdopen(fd, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(fd)


def clear_abandoned(folder: Path) -> list[str]:
    """Remove scratch folders whose worker is dead, which is when nobody holds their lock."""
    if not folder.is_dir():
        return []
    cleared = []
    with _locked(folder, fcntl.LOCK_EX):
        for path in folder.iterdir():
            with suppress(BlockingIOError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(path, ignore_errors=True)
                cleared.append(path.name)
    return cleared


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def safe_name(name: str) -> str:
    """Return ``name`` when it can be one file's name anywhere.

    Raises:
        UnsafePathError: separators, leading dots, or characters beyond letters, digits, ``._-``.
    """
    if not _SAFE_NAME.fullmatch(name):
        raise UnsafePathError(f"{name!r} is not a file name")
    return name


def safe_path(path: str) -> str:
    """Return a relative path made of safe names, such as ``shards/body.bin``."""
    for part in PurePosixPath(path).parts:
        safe_name(part)
    return path


def chunks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes ``[start, end)`` of a file; fewer only when it is shorter."""
    file.seek(start)
    while start < end and (chunk := file.read(min(CHUNK, end - start))):
        start += len(chunk)
        yield chunk
