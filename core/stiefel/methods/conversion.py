"""The loop every conversion shares: read one tensor, convert or copy it, write it, checkpoint.

Memory holds one large matrix at a time, or one small one per core. What is finished is in the body
files and the ledger, so a run that was stopped or killed goes on after its last checkpoint and ends
with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError, StopRequested
from stiefel.methods.ahead import ahead
from stiefel.methods.delivering import deliver
from stiefel.methods.protocol import Outcome, Run
from stiefel.specs.conversion import ConversionSpec
from stiefel.specs.dtypes import BITS
from stiefel.specs.header import TensorInfo
from stiefel.specs.plan import Plan, Planned, plan
from stiefel.specs.shards import load_index
from stiefel.specs.treatment import Skip
from stiefel.weights import BodyWriter, Ledger, TensorReader

COPIES_PER_CHECKPOINT = 256  # unchanged tensors between checkpoints, at most
BYTES_PER_CHECKPOINT = 64 * 2**20
SPECTRUM_POINTS = 64  # singular values in one event


@dataclass(frozen=True)
class NewTensor:
    """One tensor to be written in the place of its source."""

    name: str
    dtype: str
    data: Tensor
    role: str  # projected | factor | merged | corrected
    claims: Mapping[str, float | int]


@dataclass(frozen=True)
class Converted:
    """What one matrix became: its tensors, figures for the report, and its singular values."""

    tensors: Sequence[NewTensor]
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    sigma: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """One tensor to convert, and what a long conversion may call between its iterations."""

    item: Planned
    x: Tensor
    seed: int
    breathe: Callable[[], None]  # a safe point: raises StopRequested where a stop is wanted
    curve: Callable[[int, Mapping[str, float]], None]  # one point of each of this tensor's curves


@dataclass
class Workshop:
    """The open files of one conversion."""

    run: Run
    plan: Plan
    readers: Mapping[str, TensorReader]
    ledger: Ledger
    identity: str
    index: str | None


@dataclass(frozen=True)
class Draft:
    """A converted tensor that is not written yet, and how long it took."""

    result: Converted | Skip
    seconds: float


Convert = Callable[[Task], Converted | Skip]
Prepare = Callable[[Workshop], Convert]


def convert_checkpoint(spec: ConversionSpec, run: Run, prepare: Prepare) -> Outcome:
    """Convert every file of ``run.input`` as ``spec`` says, and deliver the results.

    Args:
        spec: which tensors; validated.
        run: the attempt.
        prepare: called once with the open files; returns the function that converts one
            tensor, or says why that tensor stays as it is.

    Raises:
        InvalidInputError: the files or the selection cannot be used, or a selected tensor
            holds NaN or infinity; nothing is delivered then.
        StopRequested: the run was asked to stop; ``run.state`` is safe.

    Memory: a few times the largest converted matrix in float64, whatever the checkpoint's size.
    """
    with ExitStack() as stack:
        readers = {
            name: stack.enter_context(TensorReader(run.input / name))
            for name in spec.weight_files()
        }
        index_name = spec.index_file()
        index = load_index(run.input / index_name) if index_name else None
        decided = plan(spec, {name: r.table for name, r in readers.items()}, index=index)
        identity = _identity(spec, readers)
        ledger = stack.enter_context(Ledger(run.state / "ledger.jsonl", identity))
        shop = Workshop(run, decided, readers, ledger, identity, index_name)
        convert = prepare(shop)
        for name in readers:
            _convert_file(spec, shop, name, convert)
        return deliver(
            spec,
            run,
            plan=decided,
            ledger=ledger,
            metadata={name: reader.table.metadata for name, reader in readers.items()},
            index_name=index_name,
        )


def _identity(spec: ConversionSpec, readers: Mapping[str, TensorReader]) -> str:
    # Without defaults: a job paused before an upgrade that adds a field resumes after it.
    asked = spec.model_dump(mode="json", exclude_defaults=True)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    for name, reader in sorted(readers.items()):
        digest.update(f"\0{name}\0{reader.table.size}\0".encode())
        digest.update(reader.header())
    return digest.hexdigest()


def _convert_file(spec: ConversionSpec, shop: Workshop, file: str, convert: Convert) -> None:
    reader, ledger = shop.readers[file], shop.ledger
    selected = shop.plan.selected
    pace = _Pace(shop)

    def work(info: TensorInfo) -> Draft | None:
        item = selected.get(info.name)
        return None if item is None else _draft(spec, shop, item, convert)

    left = [info for info in _writing_order(shop.plan, reader) if info.name not in ledger.done]
    largest = max((prod(info.shape) for info in left if info.name in selected), default=0)
    with (
        BodyWriter(shop.run.state / f"{file}.body", ledger.ends.get(file, 0)) as body,
        closing(ahead(work, left, largest=largest)) as drafts,
    ):
        for info, draft in drafts:
            if draft is None:
                entry = _copied(reader, body, info, None)
            elif isinstance(draft.result, Skip):
                entry = _copied(reader, body, info, draft.result)
            else:
                entry = _written(shop, body, info, draft.result, draft.seconds)
            ledger.add({"file": file, "source": info.name, **entry})
            pace.step(info.nbytes, at_once=draft is not None)


def _writing_order(decided: Plan, reader: TensorReader) -> list[TensorInfo]:
    """Widest elements first, so that every tensor of the output is aligned to its element."""

    def key(info: TensorInfo) -> tuple[int, str]:
        item = decided.selected.get(info.name)
        dtype = item.treatment.outputs[0].dtype if item else info.dtype
        return -BITS[dtype], info.name

    return sorted(reader.table.tensors.values(), key=key)


class _Pace:
    """Progress after every tensor; a checkpoint after each conversion or a batch of copies."""

    def __init__(self, shop: Workshop) -> None:
        self._run = shop.run
        self._ledger = shop.ledger
        self._total = len(shop.plan.selected) + len(shop.plan.skipped)
        self._copies = 0
        self._bytes = 0
        self._all_bytes = 0

    def step(self, nbytes: int, *, at_once: bool) -> None:
        self._copies += 1
        self._bytes += nbytes
        self._all_bytes += nbytes
        done = len(self._ledger.done)
        self._run.progress(done, self._total, unit="tensors", bytes_done=self._all_bytes)
        if at_once or self._copies >= COPIES_PER_CHECKPOINT or self._bytes >= BYTES_PER_CHECKPOINT:
            self._copies = self._bytes = 0
            self._run.checkpoint(done)


def _copied(
    reader: TensorReader, body: BodyWriter, info: TensorInfo, skip: Skip | None
) -> dict[str, Any]:
    written = body.copy(info.name, info.dtype, info.shape, reader.blocks(info))
    entry: dict[str, Any] = {"tensors": [{**written.to_dict(), "role": "unchanged", "claims": {}}]}
    if skip is not None:
        entry["skip"] = {"code": skip.code, "reason": skip.reason}
    return entry


def _draft(spec: ConversionSpec, shop: Workshop, item: Planned, convert: Convert) -> Draft:
    """Read and convert one tensor; runs beside the writing of earlier ones."""
    began = time.perf_counter()
    result = convert(task_for(spec, shop, item))
    return Draft(result, time.perf_counter() - began)


def task_for(spec: ConversionSpec, shop: Workshop, item: Planned) -> Task:
    """Read one tensor of the plan and make it ready to be converted."""
    name = item.tensor.name

    def curve(step: int, values: Mapping[str, float]) -> None:
        shop.run.metrics(step, {f"{key}/{name}": value for key, value in values.items()})

    return Task(
        item,
        read_finite(shop.readers[item.file], item.tensor),
        _tensor_seed(spec.seed, name),
        lambda: _stop_if_wanted(shop.run),
        curve,
    )


def _written(
    shop: Workshop, body: BodyWriter, info: TensorInfo, result: Converted, seconds: float
) -> dict[str, Any]:
    tensors = [
        {
            **body.tensor(new.name, new.dtype, new.data).to_dict(),
            "role": new.role,
            "claims": dict(new.claims),
        }
        for new in result.tensors
    ]
    _publish(shop.run, len(shop.ledger.done), info.name, result)
    return {
        "tensors": tensors,
        "before": dict(result.before),
        "after": dict(result.after),
        "seconds": round(seconds, 4),
    }


def _stop_if_wanted(run: Run) -> None:
    """Leave a long conversion; what is finished has been checkpointed where it was written."""
    if run.stop_requested:
        raise StopRequested("The run was asked to stop.")


def read_finite(reader: TensorReader, info: TensorInfo) -> Tensor:
    """Read one tensor and refuse NaN and infinity.

    Raises:
        InvalidInputError: ``non_finite_weights``, naming the tensor, how many and the first.
    """
    x = reader.tensor(info)
    finite = torch.isfinite(x)
    if bool(finite.all()):
        return x
    wrong = (~finite).flatten().nonzero()
    place = [int(i) for i in torch.unravel_index(wrong[0, 0], x.shape)]
    raise InvalidInputError(
        f"tensor {info.name!r} holds {len(wrong):,} NaN or infinite value(s), the first at {place}",
        code="non_finite_weights",
        fix="Repair the tensor, or leave it out with an exclude pattern.",
        tensor=info.name,
    )


def _tensor_seed(seed: int, name: str) -> int:
    """A seed of its own for every tensor, so that the order of work does not matter."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:7], "big")


def _publish(run: Run, step: int, name: str, result: Converted) -> None:
    figures = {key: value for key, value in result.after.items() if isinstance(value, int | float)}
    run.metrics(step, {key: float(value) for key, value in figures.items()})
    if result.sigma is not None and result.sigma.numel():
        count = result.sigma.numel()
        picks = torch.linspace(0, count - 1, min(count, SPECTRUM_POINTS)).round().long()
        values = [float(f"{value:.6g}") for value in result.sigma[picks].tolist()]
        run.event("job.spectrum", {"tensor": name, "count": count, "sigma": values})
