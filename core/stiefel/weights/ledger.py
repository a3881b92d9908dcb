"""The ledger of a conversion: one JSON line per finished tensor, in a file that only grows.

A line is written after the tensor's bytes, so a tensor that the ledger names is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stiefel.errors import StiefelError


class Ledger:
    """Append-only record of finished work, keyed by the source tensor's name.

    Args:
        path: the ledger; its complete lines are read at once, a torn last line is cut.
        identity: what the work depends on; a ledger of other work is refused.

    Raises:
        StiefelError: the ledger belongs to other inputs or another spec (``state_foreign``).
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._file = path.open("a+b")
        self.done: set[str] = set()
        self.ends: dict[str, int] = {}
        self._recover(identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _recover(self, identity: str) -> None:
        self._file.seek(0)
        complete = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            complete += len(line)
            entry = json.loads(line)
            if number == 0:
                self._check(entry, identity)
            else:
                self._note(entry)
        self._file.seek(0, 2)
        if self._file.tell() > complete:
            self._file.truncate(complete)
        if complete == 0:
            self._append({"identity": identity})

    def _check(self, entry: Mapping[str, Any], identity: str) -> None:
        if entry.get("identity") != identity:
            self._file.close()
            raise StiefelError(
                "the saved state belongs to another spec or to other inputs",
                code="state_foreign",
                fix="Submit a new job, or start in an empty state folder.",
            )

    def _note(self, entry: Mapping[str, Any]) -> None:
        self.done.add(entry["source"])
        for tensor in entry["tensors"]:
            self.ends[entry["file"]] = tensor["end"]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append one finished tensor: ``file``, ``source``, ``tensors`` and what else is known."""
        self._append(entry)
        self._note(entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read every entry again from the file, in the order of writing."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)
