"""From a request to a committed batch: every cell is checked as a job, then all are queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stiefel_api.accepting import fingerprint_of, submission_of
from stiefel_api.checks import Checked, Headers, check
from stiefel_api.grids import Cell, axes, expand
from stiefel_api.problems import Problem
from stiefel_api.service import Service
from stiefel_api.views.batches import AxisView, BatchPlanView, CellPlanView, NewBatch
from stiefel_jobs import batch_records
from stiefel_jobs.batch_records import BatchSubmitted
from stiefel_jobs.store.batches import earlier_batch, submit_batch

_LISTED = 10


def accept_batch(
    service: Service, tenant: str, body: NewBatch, *, key: str | None, traceparent: str | None
) -> BatchSubmitted:
    """Check every cell, queue all jobs in one transaction, and ring; on return all is committed.

    Raises:
        Problem: a cell cannot be carried out, or there are too many.
        StoreError: the key belongs to another request, or a quota is used up.
    """
    fingerprint = fingerprint_of(body)
    if key is not None:
        earlier = earlier_batch(service.db, tenant=tenant, key=key, fingerprint=fingerprint)
        if earlier is not None:
            return earlier
    checked = check_cells(service, tenant, body)
    submitted = submit_batch(
        service.db,
        tenant=tenant,
        new=batch_records.NewBatch(
            cells=[
                (cell.custom_id, submission_of(service, body, each, traceparent))
                for cell, each in checked
            ],
            axes=axes(body.parts()),
            name=body.name,
            labels=body.labels,
        ),
        fingerprint=fingerprint,
        idempotency_key=key,
        max_live=service.settings.max_live_jobs,
    )
    if not submitted.replayed:
        for job_id in submitted.job_ids:
            service.ringer.ring(job_id)
    return submitted


def plan_batch(service: Service, tenant: str, body: NewBatch) -> BatchPlanView:
    """Return what a batch would do.

    Raises:
        Problem: a cell cannot be carried out, or there are too many.
    """
    checked = check_cells(service, tenant, body)
    return BatchPlanView(
        size=len(checked),
        axes=[AxisView(**axis) for axis in axes(body.parts())],
        cells=[
            CellPlanView(custom_id=cell.custom_id, plan=each.view(listed=_LISTED))
            for cell, each in checked
        ],
    )


def check_cells(service: Service, tenant: str, body: NewBatch) -> list[tuple[Cell, Checked]]:
    """Check every cell as a job of its own.

    Raises:
        Problem: names every faulty field with the cells that have it.
    """
    cells = expand(body.parts(), most=service.settings.max_batch_jobs)
    headers = Headers()
    checked: list[tuple[Cell, Checked]] = []
    refused: list[tuple[Cell, Problem]] = []
    for cell in cells:
        try:
            found = check(service, tenant, cell.spec, device=body.device, headers=headers)
        except Problem as problem:
            refused.append((cell, problem))
        else:
            checked.append((cell, found))
    if refused:
        raise _refusal(refused, len(cells))
    return checked


def _refusal(refused: Sequence[tuple[Cell, Problem]], size: int) -> Problem:
    """Gather the faults by place and text: one value of an axis is wrong in many cells."""
    faults: dict[tuple[str, str], dict[str, Any]] = {}
    for cell, problem in refused:
        for error in problem.errors or [_whole(problem)]:
            pointer = cell.pointer(str(error.get("pointer", "")).removeprefix("/spec"))
            fault = {"pointer": pointer, "message": error["message"], "code": problem.code}
            known = faults.setdefault((pointer, str(error["message"])), {**fault, "cells": []})
            known["cells"].append(cell.custom_id)
    first, problem = refused[0]
    return Problem(
        422,
        "batch_refused",
        f"{len(refused)} of {size} cells are refused, and nothing was submitted; "
        f"the first is {first.custom_id}: {problem.detail}",
        fix=problem.fix or "Correct the fields listed in errors.",
        errors=list(faults.values()),
    )


def _whole(problem: Problem) -> Mapping[str, Any]:
    return {"pointer": "", "message": str(problem)}
