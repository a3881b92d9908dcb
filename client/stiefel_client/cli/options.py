"""What several commands share: options, exit codes, and reading ``name=value``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_USE = 2
EXIT_TIMEOUT = 3
EXIT_DETACHED = 130

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="STIEFEL_URL", help="Base URL of the service."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", envvar="STIEFEL_API_KEY", show_envvar=True, help="API key."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Job id.")]


def a_folder(path: Path | None) -> Path | None:
    """The path itself, if it is a folder or can be made one.

    Raises:
        typer.BadParameter: it is a file, or lies below one.
    """
    if path is not None:
        found = next((place for place in (path, *path.parents) if place.exists()), None)
        if found is not None and not found.is_dir():
            raise typer.BadParameter(f"{found} is a file; name a folder")
    return path


def read_labels(pairs: Sequence[str]) -> dict[str, str]:
    """``name=value`` pairs as a dict.

    Raises:
        typer.BadParameter: a pair without ``=``.
    """
    return dict(_split(pair) for pair in pairs)


def read_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs with JSON values (or plain text) and dotted names for nested fields.

    ``rank=32`` is a number, ``name=abc`` text, ``a.b=true`` gives ``{"a": {"b": true}}``.

    Raises:
        typer.BadParameter: a pair without ``=``, or a name below one that has a plain value.
    """
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, text = _split(pair)
        *path, last = name.split(".")
        inner = parameters
        for step in path:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise typer.BadParameter(f"{name}: {step} already has a value")
        inner[last] = _value(text)
    return parameters


def read_grid(pairs: Sequence[str]) -> dict[str, list[Any]]:
    """``field=a,b,c`` as a field and its values: JSON each, or plain text.

    ``seed=0,1`` gives ``{"seed": [0, 1]}``, ``network.hidden=[500,500],[100]`` two lists.

    Raises:
        typer.BadParameter: a pair without ``=``, or a field that is named twice.
    """
    grid: dict[str, list[Any]] = {}
    for pair in pairs:
        name, text = _split(pair)
        if name in grid:
            raise typer.BadParameter(f"--grid {name} is given twice; list its values in one")
        try:
            grid[name] = json.loads(f"[{text}]")
        except ValueError:
            grid[name] = [_value(part.strip()) for part in text.split(",")]
    return grid


def _split(pair: str) -> tuple[str, str]:
    name, sign, value = pair.partition("=")
    if not sign or not name:
        raise typer.BadParameter(f"{pair!r} should read name=value")
    return name, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
