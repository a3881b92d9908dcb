"""From a base spec and a grid over its fields to the cells: one spec each, with a name.

An axis is a dotted path into the spec and the values it takes; the last axis varies fastest. What
a spec may hold is not decided here: every cell is checked as a job of its own.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stiefel_api.problems import Problem

_SHORT = 48  # characters of a value that may stand in a name
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Part:
    """A spec and the axes over it; ``pointer`` is where it stands in the request's body."""

    spec: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]]
    pointer: str = ""
    name: str | None = None

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.grid.values())


@dataclass(frozen=True)
class Cell:
    """One job of a batch: which value of which axis of its part made it."""

    custom_id: str
    spec: dict[str, Any]
    part: Part
    chosen: Mapping[str, int]

    def pointer(self, field: str) -> str:
        """Return where in the request the field of the spec (a JSON pointer) came from."""
        for path in sorted(self.chosen, key=len, reverse=True):
            axis = "/" + path.replace("~", "~0").replace("/", "~1").replace(".", "/")
            if field == axis or field.startswith(f"{axis}/"):
                rest = field.removeprefix(axis)
                return f"{_axis_pointer(self.part, path)}/{self.chosen[path]}{rest}"
        return f"{self.part.pointer}/spec{field}"


def expand(parts: Sequence[Part], *, most: int) -> list[Cell]:
    """Return every cell of every part, in the order of the request.

    Raises:
        Problem: more cells than ``most``; an axis that leads through a plain value or holds the
            same value twice; a custom id given twice.
    """
    count = sum(map(len, parts))
    if count > most:
        raise Problem(
            422,
            "too_many_cells",
            f"The batch has {count:,} cells; at most {most:,} are accepted at once.",
            fix="Send several smaller batches; whoever runs the service may raise "
            "STIEFEL_MAX_BATCH_JOBS.",
            errors=[{"pointer": "/grid" if parts[0].grid else "/jobs", "message": "too many"}],
        )
    cells: list[Cell] = []
    for part in parts:
        _check_values(part)
        cells += (_cell(part, chosen) for chosen in _choices(part))
    _check_names(cells)
    return cells


def axes(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the axes of all parts together; one that several parts have holds all its values."""
    merged: dict[str, list[Any]] = {}
    for part in parts:
        for path, values in part.grid.items():
            known = merged.setdefault(path, [])
            known += (value for value in values if value not in known)
    return [{"path": path, "values": values} for path, values in merged.items()]


def value_at(spec: Any, path: str) -> Any:
    """Return what stands at a dotted path, or raise KeyError where nothing does."""
    for step in path.split("."):
        if isinstance(spec, list) and step.isdigit() and int(step) < len(spec):
            spec = spec[int(step)]
        elif isinstance(spec, Mapping):
            spec = spec[step]
        else:
            raise KeyError(path)
    return spec


def plain(value: Any) -> str:
    """Return a value as people write it: text without quotes, the rest as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _choices(part: Part) -> Iterator[dict[str, int]]:
    counted = [range(len(values)) for values in part.grid.values()]
    for combination in itertools.product(*counted):
        yield dict(zip(part.grid, combination, strict=True))


def _cell(part: Part, chosen: Mapping[str, int]) -> Cell:
    spec = copy.deepcopy(dict(part.spec))
    # An axis over a whole object comes before one over a field of it.
    for path in sorted(chosen, key=lambda path: path.count(".")):
        _put(part, spec, path, copy.deepcopy(part.grid[path][chosen[path]]))
    return Cell(_name(part, chosen), spec, part, chosen)


def _put(part: Part, spec: dict[str, Any], path: str, value: Any) -> None:
    *steps, last = path.split(".")
    inner: Any = spec
    for step in steps:
        if isinstance(inner, list) and step.isdigit() and int(step) < len(inner):
            inner = inner[int(step)]
        elif isinstance(inner, dict):
            inner = inner.setdefault(step, {})
        else:
            break
    if isinstance(inner, list) and last.isdigit() and int(last) < len(inner):
        inner[int(last)] = value
    elif isinstance(inner, dict):
        inner[last] = value
    else:
        detail = f"the path {path} leads through a plain value of the spec"
        fix = "Name a field of an object, such as optimizer.learning_rate."
        if isinstance(inner, list):
            detail = f"the path {path} names no element of a list of {len(inner)}"
            fix = "Count elements from 0, or give the whole list as a value."
        raise _refusal(detail, _axis_pointer(part, path), fix=fix)


def _name(part: Part, chosen: Mapping[str, int]) -> str:
    words = []
    for path, index in chosen.items():
        text = plain(part.grid[path][index])
        words.append(f"{path}={text}" if len(text) <= _SHORT else f"{path}#{index}")
    name = ",".join(words)
    if len(name) > _LONGEST_NAME:
        name = ",".join(f"{number}#{index}" for number, index in enumerate(chosen.values()))
    return "/".join(filter(None, (part.name, name))) or "spec"


def _check_values(part: Part) -> None:
    for path, values in part.grid.items():
        texts = [json.dumps(value, sort_keys=True) for value in values]
        for index, text in enumerate(texts):
            if text in texts[:index]:
                where = f"{_axis_pointer(part, path)}/{index}"
                raise _refusal(f"the axis {path} holds {text[:100]} twice", where)


def _check_names(cells: Sequence[Cell]) -> None:
    known: set[str] = set()
    for cell in cells:
        if cell.custom_id in known:
            where = f"{cell.part.pointer}/custom_id" if cell.part.name else "/grid"
            raise _refusal(f"the custom id {cell.custom_id!r} is given twice", where)
        known.add(cell.custom_id)


def _axis_pointer(part: Part, path: str) -> str:
    return f"{part.pointer}/grid/{path.replace('~', '~0').replace('/', '~1')}"


def _refusal(detail: str, pointer: str, *, fix: str | None = None) -> Problem:
    return Problem(
        422,
        "invalid_grid",
        f"{pointer}: {detail}",
        fix=fix or "Name every value, and every job, once.",
        errors=[{"pointer": pointer, "message": detail}],
    )
