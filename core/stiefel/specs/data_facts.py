"""What is known of a training job's data before anybody decodes them: from headers and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, NamedTuple

from stiefel.errors import InvalidInputError
from stiefel.specs.array_headers import ArrayHeader, read_headers
from stiefel.specs.data import (
    PADDED_BYTES,
    AddingProblem,
    AnyData,
    ArrayData,
    CopyingMemory,
    LabelledData,
    ParquetData,
    TextData,
)
from stiefel.specs.parquet_footer import Column, Footer, Read, read_footer
from stiefel.specs.signature import Signature


class Source(NamedTuple):
    """One uploaded file: ``read(start, length)`` gives bytes of it, ``size`` is how many it has."""

    read: Callable[[int, int], bytes]
    size: int


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data.

    Attributes:
        signature: of the examples; None where only the worker can tell.
        examples: for training; None where only the worker can tell, or where ``batches`` says.
        batches: per epoch, for tasks that count in batches.
        bytes_in_memory: the most that reading the files holds beside a block.
        unknown: what only the worker will find out, for people.
    """

    signature: Signature | None
    examples: int | None = None
    batches: int | None = None
    bytes_in_memory: int = 0
    unknown: tuple[str, ...] = ()

    def batches_per_epoch(self, batch_size: int) -> int | None:
        """Full batches in one epoch, one at least."""
        if self.batches is not None or self.examples is None:
            return self.batches
        return max(1, self.examples // batch_size)


def look_at_data(spec: AnyData, files: Mapping[str, Source]) -> DataFacts:
    """Return what ``spec`` and the heads of its ``files`` (by staged name) tell.

    Raises:
        InvalidInputError: the data cannot be used; ``field`` names the file or column.
    """
    if isinstance(spec, CopyingMemory):
        steps = spec.delay + 2 * spec.length
        shape = (steps, spec.symbols + 2)
        signature = Signature("sequence", shape, spec.symbols + 1, per_step=True)
        return DataFacts(signature, batches=spec.batches_per_epoch)
    if isinstance(spec, AddingProblem):
        signature = Signature("sequence", (spec.length, 2), 1, regression=True)
        return DataFacts(signature, examples=spec.train_examples)
    if isinstance(spec, TextData):
        return _text(spec, files)
    if isinstance(spec, ParquetData):
        return _parquet(spec, files)
    return _arrays(spec, files)


def _text(spec: TextData, files: Mapping[str, Source]) -> DataFacts:
    signature = Signature("tokens", (spec.context,), 256, per_step=True, vocabulary=256)
    if spec.column:
        return DataFacts(signature, unknown=("the length of the text",))
    size = files["train"].size
    held = files["test"].size if "test" in files else int(size * spec.held_out)
    kept = size if "test" in files else size - held
    for role, count in (("train", kept), ("test", held)):
        if count <= spec.context:
            raise bad_data(role, f"{count} bytes hold no window of {spec.context + 1}")
    return DataFacts(signature, examples=(kept - 1) // spec.context)


def _parquet(spec: ParquetData, files: Mapping[str, Source]) -> DataFacts:
    footers = {role: _footer(spec, *source, role=role) for role, source in files.items()}
    names = spec.input if isinstance(spec.input, list) else [spec.input]
    examples = _kept(spec, footers["train"].rows, files)
    labels = [footer.columns[spec.label] for footer in footers.values()]
    known = all(label.most is not None and (label.least or 0) >= 0 for label in labels)
    classes = [(label.most or 0) + 1 if known else None for label in labels]
    columns = [footers["train"].columns[name] for name in names]
    if [column.kind for column in columns] == ["text"]:
        signature, unknown = _labelled(spec, (spec.context,), classes, tokens=True)
        if signature is not None:
            signature = replace(signature, kind="tokens", vocabulary=PADDED_BYTES)
        return DataFacts(signature, examples=examples, unknown=unknown)
    width = _width(columns, footers["train"].rows)
    if width is None:
        return DataFacts(None, examples=examples, unknown=("the shape of the examples",))
    signature, unknown = _labelled(spec, (width,), classes)
    return DataFacts(signature, examples=examples, unknown=unknown)


def _footer(spec: ParquetData, read: Read, size: int, *, role: str) -> Footer:
    try:
        footer = read_footer(read, size)
    except InvalidInputError as error:
        raise _bad_parquet(role, error.detail) from error
    for name in (*(spec.input if isinstance(spec.input, list) else [spec.input]), spec.label):
        if name not in footer.columns:
            have = ", ".join(sorted(footer.columns)[:50])
            raise _bad_parquet(role, f'no column "{name}"; the file has {have}')
    if not footer.rows:
        raise _bad_parquet(role, "no rows")
    if footer.columns[spec.label].nulls:
        raise _bad_parquet(role, f'column "{spec.label}" has nulls')
    return footer


def _bad_parquet(role: str, detail: str) -> InvalidInputError:
    return InvalidInputError(
        f"{role} data: {detail}",
        code="bad_data",
        fix="upload a parquet file with a column of examples and one of labels",
        field=f"/data/{role}",
    )


def _width(columns: Sequence[Column], rows: int) -> int | None:
    """Numbers of one example side by side; None where they are no numbers."""
    if any(column.kind not in {"number", "numbers"} or column.values % rows for column in columns):
        return None
    return sum(column.values // rows for column in columns)


def _arrays(spec: ArrayData, files: Mapping[str, Source]) -> DataFacts:
    found = {role: read_headers(*files[role], spec, role=role) for role in files}
    names = spec.input if isinstance(spec.input, list) else [spec.input]
    shapes = {role: _example(role, [arrays[n] for n in names]) for role, arrays in found.items()}
    rows = {role: arrays[spec.label].shape[0] for role, arrays in found.items()}
    for role, arrays in found.items():
        for name in names:
            if arrays[name].shape[0] != rows[role]:
                count = arrays[name].shape[0]
                detail = f'array "{name}" has {count} rows, labels have {rows[role]}'
                raise bad_data(role, detail)
    if "test" in shapes and shapes["test"] != shapes["train"]:
        raise InvalidInputError(
            f"test examples have shape {list(shapes['test'])}, "
            f"train examples {list(shapes['train'])}",
            code="data_mismatch",
            fix="give both files the same columns and image size",
            field="/data/test",
        )
    examples = _kept(spec, rows["train"], files)
    held = max(_held(arrays.values()) for arrays in found.values())
    classes = [arrays[spec.label].classes for arrays in found.values()]
    signature, unknown = _labelled(spec, shapes["train"], classes)
    return DataFacts(signature, examples=examples, bytes_in_memory=held, unknown=unknown)


def _held(headers: Iterable[ArrayHeader]) -> int:
    """Bytes of what is not read in blocks: labels, and arrays that lie by columns."""
    return sum(h.nbytes for h in headers if h.by_columns or len(h.shape) == 1)


def _example(role: str, headers: list[ArrayHeader]) -> tuple[int, ...]:
    """Shape of one example, as the worker will cut it."""
    if len(headers) > 1:
        return (sum(prod(header.shape[1:]) for header in headers),)
    shape = headers[0].shape[1:]
    return (1, *shape) if len(shape) in {0, 2} else shape


def _kept(spec: LabelledData, rows: int, files: Mapping[str, Source]) -> int:
    """Rows for training, where some are held out for the test."""
    return rows if "test" in files else rows - held_out(spec, rows)


def held_out(spec: LabelledData, rows: int) -> int:
    """How many of ``rows`` are held out.

    Raises:
        InvalidInputError: none, or all.
    """
    count = int(rows * spec.held_out)
    if not count or count == rows:
        raise InvalidInputError(
            f"train data: {rows} rows are too few to hold out {spec.held_out:.0%}",
            code="bad_data",
            fix="upload more rows, or a test file",
            field="/data/held_out",
        )
    return count


def check_use(spec: LabelledData, *, tokens: bool = False, images: bool = False) -> None:
    """Refuse what data of this kind cannot be put to."""
    for field, unwanted, needed in (
        ("as_sequence", spec.as_sequence and tokens, "images and numbers"),
        ("augment", spec.augment != "none" and not images, "images"),
    ):
        if unwanted:
            held = "text" if tokens else "numbers"
            raise InvalidInputError(
                f"{field} is for {needed}; the data hold {held}",
                code="data_mismatch",
                fix=f"leave {field} out",
                field=f"/data/{field}",
            )


def _labelled(
    spec: LabelledData, shape: tuple[int, ...], classes: list[int | None], *, tokens: bool = False
) -> tuple[Signature | None, tuple[str, ...]]:
    kind: Literal["image", "vector", "sequence"] = "image" if len(shape) == 3 else "vector"
    check_use(spec, tokens=tokens, images=kind == "image")
    if spec.as_sequence:
        channels = shape[0] if kind == "image" else 1
        kind, shape = "sequence", (prod(shape) // channels, channels)
    if spec.task == "regression":
        return Signature(kind, shape, 1, regression=True), ()
    known = [count for count in classes if count is not None]
    if len(known) < len(classes):
        return None, ("the number of classes, from the labels",)
    return Signature(kind, shape, max(2, *known)), ()


def bad_data(role: str, detail: str) -> InvalidInputError:
    """The refusal of a file, as the worker words it."""
    return InvalidInputError(
        f"{role} data: {detail}",
        code="bad_data",
        fix="upload numeric arrays of equal length, saved by numpy.savez or safetensors, "
        "or text longer than the context",
        field=f"/data/{role}",
    )
