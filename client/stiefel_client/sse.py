"""A reader of server-sent events (WHATWG HTML, section 9.2), one line at a time."""

from __future__ import annotations

import json
from typing import Any

from stiefel_client.models import Event

STREAM_TYPE = "text/event-stream"


class EventReader:
    """Turns lines of a stream into events and remembers where to go on after a break.

    Attributes:
        last_id: what ``Last-Event-ID`` must say to continue without a gap or a repeat.
        pause: seconds the server wants between attempts to reconnect.
    """

    def __init__(self, after: int = 0) -> None:
        self.last_id = after
        self.pause = 0.5
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """Take one line without its end; return an event when the line completes one."""
        line = line.rstrip("\r\n")
        if not line:
            fields, self._fields = self._fields, {}
            return self._event(fields)
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "retry" and value.isdigit():
            self.pause = int(value) / 1000
        elif name == "data" and "data" in self._fields:
            self._fields["data"] += "\n" + value
        elif name:
            self._fields[name] = value
        return None

    def broken(self) -> None:
        """Forget a half-read event: the stream ended in the middle of it."""
        self._fields = {}

    def _event(self, fields: dict[str, str]) -> Event | None:
        if "data" not in fields or not fields.get("id", "").isdigit():
            return None
        seq = int(fields["id"])
        if seq <= self.last_id:
            return None
        self.last_id = seq
        data: Any = json.loads(fields["data"])
        return Event(
            seq=seq,
            type=fields.get("event", "message"),
            data=data if isinstance(data, dict) else {"value": data},
        )
