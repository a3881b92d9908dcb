"""From a base spec and a grid over its fields to the cells: one spec each, with a name.

An axis is a dotted path into the spec and the values it takes; the last axis varies fastest. What
a spec may hold is not decided here: every cell is checked as a job of its own.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stiefel_api.problems import Problem

_SHORT = 48  # characters of a value that may stand in a name
_LONGEST_NAME = 150
#: Every cell is checked and stored with a whole spec, so a short request can ask for much: in all
#: so many bytes, or so many per cell where the service takes more cells.
_HEAVIEST = 8 * 2**20
_CELL_BYTES = 32 * 2**10
_PART_BYTES = 32  # what even an empty list costs


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
    spec: Mapping[str, Any]
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
        Problem: more cells than ``most``, or too much in all of them; an axis that leads through
            a plain value or holds the same value twice; a custom id given twice.
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
    _check_size(parts, max(_HEAVIEST, most * _CELL_BYTES))
    cells: list[Cell] = []
    for part in parts:
        _check_values(part)
        cells += _cells(part)
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
        if isinstance(spec, list) and (index := _index(step, spec)) is not None:
            spec = spec[index]
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


def _cells(part: Part) -> Iterator[Cell]:
    words = {
        path: [_word(path, index, value) for index, value in enumerate(values)]
        for path, values in part.grid.items()
    }
    # An axis over a whole object comes before one over a field of it.
    paths = sorted(part.grid, key=lambda path: path.count("."))
    for chosen in _choices(part):
        spec: Any = part.spec
        for path in paths:
            try:
                spec = _replaced(spec, path.split("."), part.grid[path][chosen[path]])
            except _NowhereError as error:
                raise _nowhere(part, path, error.inner) from error
        yield Cell(_name(part, chosen, words), spec, part, chosen)


def _replaced(inner: Any, path: Sequence[str], value: Any) -> Any:
    """Return ``inner`` with ``value`` at the path; what does not change is shared, not copied."""
    step, *rest = path
    if isinstance(inner, list) and (index := _index(step, inner)) is not None:
        elements = list(inner)
        elements[index] = _replaced(inner[index], rest, value) if rest else value
        return elements
    if isinstance(inner, Mapping):
        field = _replaced(inner.get(step, {}), rest, value) if rest else value
        return {**inner, step: field}
    raise _NowhereError(inner)


class _NowhereError(Exception):
    """A path that ends at ``inner``, which has no fields."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner


def _nowhere(part: Part, path: str, inner: Any) -> Problem:
    detail = f"the path {path} leads through a plain value of the spec"
    fix = "Name a field of an object, such as optimizer.learning_rate."
    if isinstance(inner, list):
        detail = f"the path {path} names no element of a list of {len(inner)}"
        fix = "Count elements from 0, or give the whole list as a value."
    return _refusal(detail, _axis_pointer(part, path), fix=fix)


def _index(step: str, elements: Sequence[Any]) -> int | None:
    """Return which element a step of a path names, if it names one."""
    if step.isascii() and step.isdigit() and int(step) < len(elements):
        return int(step)
    return None


def _word(path: str, index: int, value: Any) -> str:
    text = plain(value)
    return f"{path}={text}" if len(text) <= _SHORT else f"{path}#{index}"


def _name(part: Part, chosen: Mapping[str, int], words: Mapping[str, Sequence[str]]) -> str:
    name = ",".join(words[path][index] for path, index in chosen.items())
    if len(name) > _LONGEST_NAME:
        name = ",".join(f"{number}#{index}" for number, index in enumerate(chosen.values()))
    return "/".join(filter(None, (part.name, name))) or "spec"


def _check_size(parts: Sequence[Part], most: int) -> None:
    size = 0
    for part in parts:
        size += len(part) * _weight(part.spec)
        for values in part.grid.values():
            size += len(part) // len(values) * _weight(values)
    if size > most:
        raise Problem(
            422,
            "batch_too_large",
            f"The specs of all cells come to about {size / 2**20:.0f} MB; at most "
            f"{most // 2**20} MB are accepted at once.",
            fix="Send several smaller batches, or shorter specs.",
            errors=[{"pointer": "/grid" if parts[0].grid else "/jobs", "message": "too large"}],
        )


def _weight(value: Any) -> int:
    """Return about how many bytes of work a value is, from its texts and its number of parts."""
    total, waiting = 0, [value]
    while waiting:
        inner = waiting.pop()
        total += _PART_BYTES + (len(inner) if isinstance(inner, str) else 0)
        if isinstance(inner, Mapping):
            total += sum(map(len, inner))
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner
    return total


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
