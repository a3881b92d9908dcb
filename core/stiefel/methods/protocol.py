"""What a method is, and what it hands over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stiefel.run import Run

__all__ = ["Delivery", "Method", "Outcome", "Run"]


@dataclass(frozen=True)
class Delivery:
    """One finished file: the concatenation of ``parts``, so that a header costs no copy."""

    name: str
    kind: str  # safetensors | json | markdown | parquet | tfevents | text
    parts: tuple[Path, ...]


@dataclass(frozen=True)
class Outcome:
    """What a finished method hands over; ``metrics`` become the job's ``result.metrics``."""

    deliveries: Sequence[Delivery]
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One offered method: the name in ``spec.method``, its spec model, and the algorithm."""

    name: str
    spec: type[Any]  # a stiefel.specs.MethodSpec
    run: Callable[[Any, Run], Outcome]
