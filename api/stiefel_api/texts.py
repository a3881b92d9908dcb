"""Text that not every part of the service can keep, refused at the door.

PostgreSQL stores no NUL character, which SQLite would, and a lone half of a surrogate pair, which
JSON can spell, has no bytes in UTF-8. Here is decided once what happens to them, on either
database and for every route.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from stiefel_api.problems import Problem

_ODD = re.compile("[\x00\ud800-\udfff]")
_MESSAGE = "text must hold no NUL character and no lone surrogate"

#: The keys and indices that lead to a value: the last one, and those before it.
_Trail = tuple[str | int, "_Trail"] | None


def without_nul(path: str) -> str:
    """Return a request's path with other control characters for NUL.

    No id and no file name has either, so that every route answers as for any unknown name.
    """
    return path.replace("\x00", "\x01")


def check_query(query: bytes) -> None:
    """Refuse a query with a NUL character.

    Raises:
        Problem: 422, naming the parameter.
    """
    if b"%00" not in query and b"\x00" not in query:
        return
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if _ODD.search(name + value):
            raise _refusal(name, {"parameter": name, "in": "query"})


def check_body(data: Any) -> None:
    """Refuse a JSON body with such text, be it a value or the name of a field.

    Raises:
        Problem: 422, with a pointer to the place.
    """
    for text, trail in _texts(data):
        if _ODD.search(text):
            pointer = _pointer(trail)
            raise _refusal(pointer or "the body", {"pointer": pointer})


def _texts(data: Any) -> Iterator[tuple[str, _Trail]]:
    """Find every text, without recursion: the body may be nested deeper than the stack."""
    waiting: list[tuple[Any, _Trail]] = [(data, None)]
    while waiting:
        value, trail = waiting.pop()
        if isinstance(value, str):
            yield value, trail
        elif isinstance(value, dict):
            for key, inner in value.items():
                place = (str(key), trail)
                yield place[0], place
                waiting.append((inner, place))
        elif isinstance(value, list):
            waiting += ((inner, (index, trail)) for index, inner in enumerate(value))


def _pointer(trail: _Trail) -> str:
    parts: list[str] = []
    while trail is not None:
        part, trail = trail
        parts.append("/" + str(part).replace("~", "~0").replace("/", "~1"))
    return "".join(reversed(parts))


def _refusal(where: str, place: dict[str, str]) -> Problem:
    return Problem(
        422,
        "invalid_request",
        f"{where}: {_MESSAGE}",
        fix="Leave these characters out.",
        errors=[{**place, "message": _MESSAGE}],
    )
