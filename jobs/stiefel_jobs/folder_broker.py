"""Celery's broker of the embedded service: kombu's folder of messages, made safe to share.

kombu 5.7 creates a file under its last name and fills it afterwards. A consumer that looks in
between takes an empty message, which ends its worker (celery/kombu issue 1551), and a process that
binds a queue in between finds an empty table. Here a file gets its name when it is whole, and a
message leaves the folder by a rename, which one consumer alone succeeds in.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import filesystem
from kombu.utils.json import dumps, loads


class Channel(filesystem.Channel):  # type: ignore[misc]
    """kombu's channel, whose files are whole; what is not is dropped."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        name = f"{round(monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        _place(Path(self.data_folder_out) / name, dumps(payload))

    def _get(self, queue: str) -> Any:
        folder = Path(self.data_folder_in)
        for name in sorted(path.name for path in folder.iterdir()):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            with suppress(FileNotFoundError, ValueError):  # another was faster; not JSON
                return loads(_take(folder / name))
        raise Empty

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        table: Path = self._exchange_file(exchange)
        if not table.exists():
            _place(table, "[]")
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except ValueError:  # broken for good; whoever publishes or consumes binds its queue again
            _place(table, "[]", anew=True)
            super()._queue_bind(exchange, routing_key, pattern, queue)


class Transport(filesystem.Transport):  # type: ignore[misc]
    """What Celery's setting ``broker_transport`` names."""

    Channel = Channel


def _take(path: Path) -> str:
    """Return the text of a file that disappears, whatever the text is worth."""
    mine = path.with_name(f".{uuid4()}.taken")
    path.rename(mine)
    try:
        return mine.read_text()
    finally:
        mine.unlink()


def _place(path: Path, text: str, *, anew: bool = False) -> None:
    """Let a whole file appear at ``path``; one that is there stays, unless ``anew``."""
    draft = path.with_name(f".{uuid4()}.draft")
    draft.write_text(text)
    try:
        if anew:
            draft.replace(path)
        else:
            with suppress(FileExistsError):
                os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
