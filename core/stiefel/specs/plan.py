"""What a conversion will do, decided from headers alone.

The API answers a dry run with it and refuses bad patterns at submit; the method itself
follows it. Neither loads torch to make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from stiefel.errors import InvalidInputError
from stiefel.specs.base import MethodSpec
from stiefel.specs.conversion import ConversionSpec
from stiefel.specs.dtypes import COMPLEX, CONVERTIBLE
from stiefel.specs.header import TensorInfo, TensorTable
from stiefel.specs.shards import ShardIndex, check_shards
from stiefel.specs.treatment import Output, Skip, Treatment

MAX_SIDE = 16_384  # the smaller side: time grows with its cube
MAX_ELEMENTS = 2**28  # elements of one matrix: working memory grows with it
BASE_MEMORY = 400 * 2**20  # interpreter, torch and buffers
REAL = CONVERTIBLE - COMPLEX
NAMES_SEARCHED = 5_000  # names compared when a pattern matches nothing


@dataclass(frozen=True, slots=True)
class Planned:
    """One selected tensor, the matrix it is seen as, and what becomes of it."""

    file: str
    tensor: TensorInfo
    rows: int
    columns: int
    treatment: Treatment


@dataclass(frozen=True, slots=True)
class Skipped:
    """One tensor that passes through bit for bit, and why."""

    file: str
    tensor: TensorInfo
    skip: Skip


@dataclass(frozen=True)
class Plan:
    """Every tensor of the input, either selected or skipped with its reason."""

    selected: dict[str, Planned]
    skipped: dict[str, Skipped]
    input_bytes: int
    output_bytes: int  # upper bound where ranks are known only afterwards
    peak_memory_bytes: int  # estimate for the worker's process

    def to_dict(self, *, limit: int | None = None) -> dict[str, Any]:
        """JSON form; ``limit`` cuts each list and says how many it holds in truth."""
        return {
            "selected_count": len(self.selected),
            "skipped_count": len(self.skipped),
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "selected": [_selected(p) for p in list(self.selected.values())[:limit]],
            "skipped": [_skipped(s) for s in list(self.skipped.values())[:limit]],
        }


def plan(
    spec: MethodSpec, tables: Mapping[str, TensorTable], *, index: ShardIndex | None = None
) -> Plan:
    """Return what ``spec`` will do to the files whose headers are ``tables``.

    Args:
        spec: a conversion; any other method gets an empty plan.
        tables: file name to table, for every safetensors input.
        index: the weight map of a sharded checkpoint, where its index is an input.

    Raises:
        InvalidInputError: shards and index disagree; a pattern matches nothing
            (``pattern_matches_nothing``, ``field`` points at it); nothing that can be
            converted remains (``nothing_selected``); an output name is taken
            (``name_collision``).
    """
    if not isinstance(spec, ConversionSpec):
        return Plan({}, {}, 0, 0, 0)
    check_shards(tables, index)
    _check_patterns(spec, tables)
    selected: dict[str, Planned] = {}
    skipped: dict[str, Skipped] = {}
    for file, tensor in _tensors(tables):
        verdict = _verdict(spec, file, tensor)
        if isinstance(verdict, Planned):
            selected[tensor.name] = verdict
        else:
            skipped[tensor.name] = Skipped(file, tensor, verdict)
    if not selected:
        raise _nothing_selected(skipped)
    _take_companions(spec, selected, skipped)
    _check_names(selected, skipped)
    return _sum_up(selected, skipped, tables)


def _tensors(tables: Mapping[str, TensorTable]) -> Iterator[tuple[str, TensorInfo]]:
    for file in sorted(tables):
        for tensor in tables[file].tensors.values():
            yield file, tensor


def _verdict(spec: ConversionSpec, file: str, tensor: TensorInfo) -> Planned | Skip:
    skip = spec.selection(tensor.name) or _unsuitable(spec, tensor)
    if skip is not None:
        return skip
    rows, columns = tensor.shape[0], prod(tensor.shape[1:])
    treatment = spec.treat(tensor, rows, columns)
    if isinstance(treatment, Skip):
        return treatment
    return Planned(file, tensor, rows, columns, treatment)


def _take_companions(
    spec: ConversionSpec, selected: dict[str, Planned], skipped: dict[str, Skipped]
) -> None:
    """Move the biases of selected weights from ``skipped`` to ``selected``."""
    for name, item in list(skipped.items()):
        tensor = item.tensor
        weight = selected.get(spec.companion(tensor) or "")
        if weight is None or tensor.shape != (weight.rows,) or tensor.dtype not in REAL:
            continue
        if spec.exclusion(name) is not None:
            continue
        output = Output(name, tensor.dtype, tensor.shape, "corrected")
        treatment = Treatment(
            outputs=(output,),
            output_bytes=tensor.nbytes,
            peak_bytes=weight.treatment.peak_bytes,
            note="takes up the change of the mean output, where the calibration knows it",
        )
        del skipped[name]
        selected[name] = Planned(item.file, tensor, weight.rows, 1, treatment)


def _unsuitable(spec: ConversionSpec, tensor: TensorInfo) -> Skip | None:
    if tensor.dtype not in CONVERTIBLE:
        return Skip(
            "dtype",
            f"has dtype {tensor.dtype}; only {', '.join(sorted(CONVERTIBLE))} are converted",
        )
    dimensions = len(tensor.shape)
    if dimensions < 2:
        return Skip("not_a_matrix", f"has {dimensions} dimension(s), not two or more")
    if dimensions > 2 and (spec.kernels == "skip" or dimensions > 5):
        return Skip("not_a_matrix", f"has {dimensions} dimensions")
    rows, columns = tensor.shape[0], prod(tensor.shape[1:])
    if rows * columns == 0:
        return Skip("empty", "has no elements")
    if min(rows, columns) == 1:
        # The nearest unit vector would only lose its length: class tokens, learned positions.
        return Skip("not_a_matrix", f"is a single vector: {rows} x {columns}")
    if min(rows, columns) > MAX_SIDE or rows * columns > MAX_ELEMENTS:
        return Skip(
            "too_large",
            f"{rows} x {columns} exceeds the limit of {MAX_ELEMENTS:,} "
            f"elements or {MAX_SIDE:,} on the smaller side",
        )
    return None


def _check_patterns(spec: ConversionSpec, tables: Mapping[str, TensorTable]) -> None:
    names = [tensor.name for _, tensor in _tensors(tables)]
    for field, patterns in (("include", spec.include), ("exclude", spec.exclude)):
        for position, pattern in enumerate(patterns):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise _matches_nothing(pattern, f"/{field}/{position}", names)


def _matches_nothing(pattern: str, field: str, names: list[str]) -> InvalidInputError:
    close = get_close_matches(pattern, names[:NAMES_SEARCHED], n=3, cutoff=0.3) or names[:3]
    return InvalidInputError(
        f"the pattern {pattern!r} matches none of the {len(names):,} tensors",
        code="pattern_matches_nothing",
        fix=f"Names look like: {', '.join(close)}." if close else "The file holds no tensors.",
        field=field,
    )


def _nothing_selected(skipped: Mapping[str, Skipped]) -> InvalidInputError:
    telling = [s for s in skipped.values() if s.skip.code not in ("not_included", "excluded")]
    example = (
        f", for example {telling[0].tensor.name!r}: {telling[0].skip.reason}" if telling else ""
    )
    return InvalidInputError(
        f"no tensor that the patterns select can be converted{example}",
        code="nothing_selected",
        fix="Widen include, narrow exclude, or choose tensors with two or more dimensions.",
        field="/include",
    )


def _check_names(selected: Mapping[str, Planned], skipped: Mapping[str, Skipped]) -> None:
    taken = set(skipped)
    for item in selected.values():
        for output in item.treatment.outputs:
            if output.name in taken or (
                output.name in selected and output.name != item.tensor.name
            ):
                raise InvalidInputError(
                    f"tensor {item.tensor.name!r} would be written as {output.name!r}, "
                    "a name that is taken",
                    code="name_collision",
                    fix="Exclude one of the two tensors, or rename it.",
                    tensor=item.tensor.name,
                )
            taken.add(output.name)


def _sum_up(
    selected: dict[str, Planned],
    skipped: dict[str, Skipped],
    tables: Mapping[str, TensorTable],
) -> Plan:
    return Plan(
        selected=selected,
        skipped=skipped,
        input_bytes=sum(table.size for table in tables.values()),
        output_bytes=sum(table.header_bytes for table in tables.values())
        + sum(item.treatment.output_bytes for item in selected.values())
        + sum(item.tensor.nbytes for item in skipped.values()),
        peak_memory_bytes=BASE_MEMORY
        + max(item.treatment.peak_bytes for item in selected.values()),
    )


def _selected(item: Planned) -> dict[str, Any]:
    return {
        "name": item.tensor.name,
        "file": item.file,
        "dtype": item.tensor.dtype,
        "shape": list(item.tensor.shape),
        "matrix": [item.rows, item.columns],
        "note": item.treatment.note,
        "output_bytes": item.treatment.output_bytes,
        "outputs": [
            {"name": o.name, "dtype": o.dtype, "shape": list(o.shape), "role": o.role}
            for o in item.treatment.outputs
        ],
    }


def _skipped(item: Skipped) -> dict[str, Any]:
    return {
        "name": item.tensor.name,
        "file": item.file,
        "dtype": item.tensor.dtype,
        "shape": list(item.tensor.shape),
        "code": item.skip.code,
        "reason": item.skip.reason,
    }
